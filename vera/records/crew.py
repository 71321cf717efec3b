"""Several workers of one command on one machine: workers=auto, or workers=4.

They are what as many shells would start, each on a GPU of its own, and which of them computes which run is decided by claims
(vera.records.workers). Here they are started, their lines become one stream, and a signal reaches all of them.
"""

from __future__ import annotations

import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vera.errors import ConfigError

ARGUMENT = "workers="
WORKER = "VERA_WORKER"  # set in the environment of a worker
PLACES = "CUDA_VISIBLE_DEVICES"
TOLD_AGAIN = re.compile(r"already done(?: \(.*\))?$")  # of a run that another worker has computed
WAITS = re.compile(r": claimed by .* pid (\d+) since .*; comes back to it$")


def parted(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """What the arguments say of workers, and the others. Raises ConfigError."""
    said = [argument.removeprefix(ARGUMENT) for argument in arguments if argument.startswith(ARGUMENT)]
    rest = [argument for argument in arguments if not argument.startswith(ARGUMENT)]
    if not said:
        return None, rest
    if said[-1] != "auto" and not re.fullmatch("[1-9][0-9]{0,2}", said[-1]):
        raise ConfigError(f"workers={said[-1]} is no number of workers; give auto (one a GPU) or a number such as 4")
    return said[-1], rest


def places(workers: str, gpus: Sequence[str]) -> list[str | None]:
    """The GPU of each worker, in turn where they are more than the GPUs; None: all that the command sees. auto is one a GPU,
    and one where there is none."""
    count = max(1, len(gpus)) if workers == "auto" else int(workers)
    return [gpus[index % len(gpus)] if gpus else None for index in range(count)]


@dataclass
class _Worker:
    number: int
    place: str | None
    process: subprocess.Popen[str]

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" (GPU {self.place})" if self.place is not None else "")


@dataclass
class Crew:
    """say: where a line goes."""

    say: Callable[[str], None]
    workers: list[_Worker] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def run(self, command: Sequence[str], places: Sequence[str | None]) -> int:
        """Start one worker a place and pass their lines on until all have ended; the exit status.

        It is 0 when one of them has ended well, since none does before every run is done; a dead worker's run is taken over by
        the others. SIGINT and SIGTERM are passed on, and each worker leaves with a checkpoint.
        """
        lines: queue.Queue[tuple[_Worker, str | None]] = queue.Queue()
        asked: list[int] = []

        def pass_on(signum: int, frame: object) -> None:
            asked.append(signum)
            for worker in self.workers:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(signum)

        before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number, place in enumerate(places, start=1):
                self.workers.append(self._started(number, place, command, lines))
            left = len(self.workers)
            while left:
                worker, line = lines.get()
                if line is not None:
                    self._tell(line)
                    continue
                left -= 1
                status = worker.process.wait()
                if status < 0 and not asked:
                    taken = "; the others take its run over" if left else "; the same command goes on from here"
                    self.say(f"error: {worker} was ended by signal {-status}{taken}")
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        statuses = [worker.process.returncode for worker in self.workers]
        if asked:
            return 128 + asked[0] if 128 + asked[0] in statuses else max(map(abs, statuses))
        return 0 if 0 in statuses else max((status for status in statuses if status > 0), default=1)

    def _started(
        self, number: int, place: str | None, command: Sequence[str], lines: queue.Queue[tuple[_Worker, str | None]]
    ) -> _Worker:
        environment = {**os.environ, WORKER: str(number)} | ({} if place is None else {PLACES: place})
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C reaches it once, through this process
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        worker = _Worker(number, place, process)

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put((worker, line.rstrip("\n")))
            lines.put((worker, None))

        threading.Thread(target=read, name=str(worker), daemon=True).start()
        return worker

    def _tell(self, line: str) -> None:
        """A line, unless it only says that one of the crew computes a run, or again that it is done."""
        name = line.partition(" ")[0].rstrip(":")
        waits = WAITS.search(line)
        by_us = waits is not None and int(waits[1]) in {worker.process.pid for worker in self.workers}
        if not by_us and not (TOLD_AGAIN.search(line) and name in self.told):
            self.say(line)
        self.told.add(name)


def _end_with_parent() -> None:
    """SIGTERM for this process when the one that started it is killed (prctl's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
