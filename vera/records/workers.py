"""Who computes which run: one small file a claimed run, so that any number of workers share a results folder.

results_dir/claims/<run>.<generation>.json    host, process, since when, how far

A claim appears whole and exclusively (a hard link to a finished file). Its holder rewrites it every now and then; the file's
time of change is the sign of life, measured by the file server's clock. A claim is stale when its process is gone from this
machine, or when it gave no sign of life for its timeout. Taking over is creating the next generation, which one worker alone
can do. A holder that finds a higher generation than its own has lost the run, and writes nothing more.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from vera.config import Strict
from vera.errors import Claimed, ClaimLost, ConfigError, RecordError
from vera.io.files import link_new, os_error_as, remove_temporaries
from vera.records.record import now

FOLDER = "claims"
BEATS = 20  # signs of life in a timeout
LONGEST_BEAT = 15.0  # seconds
PROBE_SECONDS = 60.0  # how long a look at the file server's clock is good for
PROBE = ".clock."  # how files begin that are made for such a look: of no run, so that no run's end removes them
LEFT_BEHIND = 3600.0  # seconds after which one is a killed worker's
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GONE = {errno.ENOENT, errno.ESTALE}


class Holder(Strict):
    """What a claim says. machine: where `pid` means this process. created: when it started, in seconds after boot.

    timeout: seconds without a sign of life after which others may take over. seconds_left: as the last steps went."""

    host: str
    machine: str
    pid: int
    created: float
    token: str
    started: str
    timeout: float
    step: int | None = None
    total: int | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid} since {self.started}"


class Held(Strict):
    """A claim as found: its holder (None for a file that is none) and its last sign of life, on the file server's clock."""

    name: str
    generation: int
    holder: Holder | None
    beat: float

    def __str__(self) -> str:
        return str(self.holder) if self.holder else "somebody unknown"

    @property
    def dead(self) -> bool:
        """Whether its process ran on this machine and is gone."""
        return self.holder is not None and self.holder.machine == machine() and not _alive(self.holder.pid, self.holder.created)


@functools.cache
def machine() -> str:
    """Host, boot and process namespace: within these a process id means something."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _created(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()  # which a clock that is set moves alike (psutil 7.1)


def _alive(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(_created(process) - created) < 0.1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


class Claim:
    """A run that this process may compute. As a context it gives signs of life, and releases the run at its end."""

    def __init__(self, root: Path, name: str, generation: int, timeout: float):
        self.folder, self.name, self.generation = root / FOLDER, name, generation
        self.path = self.folder / f"{name}.{generation}.json"
        process = psutil.Process()
        self.holder = Holder(
            host=socket.gethostname(),
            machine=machine(),
            pid=process.pid,
            created=_created(process),
            token=uuid.uuid4().hex,
            started=now(),
            timeout=timeout,
        )
        self.lost = False
        self._begun: tuple[float, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"claim {name}", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self.release()

    def progress(self, step: int, total: int) -> None:
        """Note how far the run is. Raises ClaimLost when a sign of life has found it taken over."""
        if self.lost:
            self._raise_lost()
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, step
        began, first = self._begun
        left = (total - step) * (now - began) / (step - first) if step > first else None
        self.holder = self.holder.model_copy(update={"step": step, "total": total, "seconds_left": left})

    def check(self) -> None:
        """To be called before writing for the run. Raises ClaimLost when it belongs to another worker."""
        found = look(self.path)
        mine = found is not None and found.holder is not None and found.holder.token == self.holder.token
        if not mine or max(_generations(self.folder, self.name), default=0) > self.generation:
            self.lost = True
        if self.lost:
            self._raise_lost()

    def release(self) -> None:
        """Give the run free; nothing when it is lost."""
        with suppress(OSError, ClaimLost):
            self.check()
            remove_temporaries(self.folder, self.name)
            for generation in sorted(_generations(self.folder, self.name)):
                if generation <= self.generation:
                    (self.folder / f"{self.name}.{generation}.json").unlink(missing_ok=True)

    def create(self) -> bool:
        """Write the claim, whole, unless another worker has this generation or a higher one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self._write()
        try:
            if not link_new(temporary, self.path):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))  # the name first, then the content
                try:
                    os.replace(temporary, self.path)
                except FileNotFoundError:  # removed by the winner's end: no claim without a holder is left
                    self.path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return False
        except FileNotFoundError:  # the winner has cleaned up
            return False
        finally:
            temporary.unlink(missing_ok=True)
        if max(_generations(self.folder, self.name)) > self.generation:
            self.path.unlink(missing_ok=True)
            return False
        return True

    def _write(self) -> Path:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{self.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.holder.model_dump_json() + "\n")
            os.chmod(temporary, 0o644)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return Path(temporary)

    def _live(self) -> None:
        while not self._stop.wait(min(LONGEST_BEAT, self.holder.timeout / BEATS)):
            try:
                self.check()
                self.beat()
            except ClaimLost:
                return
            except OSError:  # a file server that does not answer now may do so at the next beat
                continue

    def beat(self) -> None:
        """One sign of life, with the progress where there is space for it."""
        temporary = None
        try:
            temporary = self._write()
            os.replace(temporary, self.path)
        except OSError:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            os.utime(self.path)

    def _raise_lost(self) -> None:
        winner = held(self.folder.parent, self.name)
        by = f" by {winner}" if winner else ""
        raise ClaimLost(f"taken over{by}, since this process gave no sign of life for a while; it writes nothing more of it")


def acquire(root: Path, name: str, timeout: float) -> Claim:
    """Claim a run for this process. Raises Claimed when another worker has it, RecordError for a folder not writable."""
    with os_error_as(RecordError, f"results_dir={root} is not writable"):
        while True:
            found = held(root, name)
            if found is not None and not stale(root, found, timeout):
                raise Claimed(f"claimed by {found}")
            claim = Claim(root, name, 1 + (found.generation if found else 0), timeout)
            if claim.create():
                return claim
            time.sleep(0.05)  # another worker was faster


def stale(root: Path, found: Held, timeout: float) -> bool:
    """Whether a claim may be taken over. `timeout` is for a file that does not say its own."""
    if found.dead:
        return True
    return server_time(root) - found.beat > (found.holder.timeout if found.holder else timeout)


def held(root: Path, name: str) -> Held | None:
    """The newest claim on a run, or None."""
    for generation in sorted(_generations(root / FOLDER, name), reverse=True):
        found = look(root / FOLDER / f"{name}.{generation}.json")
        if found is not None:
            return found
    return None


def every(root: Path) -> dict[str, Held]:
    """The newest claim on each run by its name."""
    newest: dict[str, int] = {}
    for entry in _entries(root / FOLDER):
        name, _, generation = entry.removesuffix(".json").rpartition(".")
        if entry.endswith(".json") and not entry.startswith(".") and generation.isdecimal():
            newest[name] = max(newest.get(name, 0), int(generation))
    found = {name: look(root / FOLDER / f"{name}.{generation}.json") for name, generation in newest.items()}
    return {name: claim for name, claim in found.items() if claim is not None}


def remains(root: Path, name: str) -> bool:
    """Whether there is anything of a claim on a run, live or left by a killed worker."""
    return any(entry.startswith((f"{name}.", f".{name}.")) for entry in _entries(root / FOLDER))


def look(path: Path) -> Held | None:
    """One claim file; None when it is gone. Raises OSError."""
    try:
        with open(path, "rb") as file:
            text, beat = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    try:
        holder = Holder.model_validate_json(text)
    except ValidationError:
        holder = None
    name, _, generation = path.name.removesuffix(".json").rpartition(".")
    return Held(name=name, generation=int(generation), holder=holder, beat=beat)


def _generations(folder: Path, name: str) -> list[int]:
    start = f"{name}."
    middles = [e[len(start) : -len(".json")] for e in _entries(folder) if e.startswith(start) and e.endswith(".json")]
    return [int(middle) for middle in middles if middle.isdecimal()]


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


_clocks: dict[Path, tuple[float, float]] = {}


def server_time(root: Path) -> float:
    """Now, as the file server would stamp it: from a file touched there, at most PROBE_SECONDS ago. Raises
    OSError where none can be."""
    now = time.monotonic()
    asked, offset = _clocks.get(root, (None, 0.0))
    if asked is None or now - asked > PROBE_SECONDS:
        with tempfile.TemporaryFile(dir=root / FOLDER, prefix=PROBE, suffix=".tmp") as file:  # nameless where that can be
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())
            asked, offset = now, os.fstat(file.fileno()).st_mtime - now
        _clocks[root] = asked, offset
        _remove_probes(root / FOLDER, now + offset - LEFT_BEHIND)
    return now + offset


def _remove_probes(folder: Path, before: float) -> None:
    """Remove the probes that killed workers have left."""
    for entry in _entries(folder):
        if entry.startswith(PROBE):
            with suppress(OSError):  # another worker does the same
                if (folder / entry).stat().st_mtime < before:
                    (folder / entry).unlink()


def launched() -> int:
    """How many processes a launcher such as `accelerate launch` has started for each run. Its variables count as unset where
    they are empty, for Accelerate as well. Raises ConfigError."""
    for name in LAUNCHER:
        if not os.environ.get(name, "-").strip():
            del os.environ[name]
    text = os.environ.get("WORLD_SIZE", "1")
    if not re.fullmatch("[0-9]+", text) or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE={text} in the environment is no number of processes; unset it")
    return int(text)
