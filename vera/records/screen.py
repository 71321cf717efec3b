"""What a person sees of a run and of its sweep while they go on: one live line in a terminal, lines of text elsewhere.

Whoever does something slow says so with `doing`, as one says something to a log; nothing is shown unless a run is `shown`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger("vera")

EPOCH_SECONDS = 10.0  # between two lines of epochs, where there is no terminal
COUNTED_SECONDS = 60.0  # between two lines of what is counted, likewise
QUIET_SECONDS = 180.0  # the longest that nothing is said there


class Screen:
    """One process's view of its sweep. `live`: a line in a terminal that is written over; else lines of the log.

    runs   how many runs the sweep has for this process, None where nobody knows (a launcher's worker).
    clock  seconds; tests give their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.runs: int | None = None
        self.begun = 0
        self.took: list[float] = []  # seconds of the runs that ended here
        self.live: Progress | None = None
        self.name = ""

    @contextmanager
    def run(self, name: str, live: bool, console: Console | None = None) -> Iterator[None]:
        """Show one run, called `name`, while the block lasts."""
        self.begun += 1
        self.name, self.what, self.done, self.of = name, "starting", 0, 0
        self.epoch = self.epochs = self.step = self.steps = self.seen = 0
        self.score = self.loss = ""
        self.start = self.trained_since = self.said = self.clock()
        if live:
            columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[about]}"))
            self.live = Progress(*columns, transient=True, console=console)
            self.live.start()
            self.bar = self.live.add_task(self._lead(), total=None, about="")
        try:
            yield
            self.took.append(self.clock() - self.start)
        finally:
            if self.live is not None:
                self.live.stop()
            self.live, self.name = None, ""

    def doing(self, what: str, done: int = 0, of: int = 0) -> None:
        """What the run is at: "evaluating", 40 of 120 batches."""
        self.what, self.done, self.of = what, done, of
        self._show()

    def trained(self, step: int, steps: int, loss: float | None) -> None:
        if not self.steps:
            self.seen, self.trained_since = step - 1, self.clock()
        self.what, self.step, self.steps = "training", step, steps
        self.loss = "" if loss is None else f"loss {loss:.3f}"
        self._show()

    def scored(self, epoch: int, epochs: int, metric: str, value: float | None) -> None:
        """The end of an epoch."""
        self.epoch, self.epochs = epoch, epochs
        self.score = f"{metric} {value:.4f}" if value is not None else f"{metric} undefined"
        self._show(EPOCH_SECONDS)

    def run_left(self) -> float | None:
        """Seconds that the run needs at its pace so far, evaluations included as soon as one was seen; None at its start."""
        done = self.step - self.seen
        return (self.clock() - self.trained_since) / done * (self.steps - self.step) if done > 0 else None

    def sweep_left(self) -> float | None:
        """Seconds of this run and those to come, which are taken to be as long as those that ended here, or as this one."""
        here = self.run_left()
        if self.runs is None or here is None:
            return None
        whole = sum(self.took) / len(self.took) if self.took else self.clock() - self.start + here
        return here + whole * max(0, self.runs - self.begun)

    def _lead(self) -> str:
        return f"run {self.begun} of {self.runs}  {self.name}" if self.runs and self.runs > 1 else self.name

    def _about(self) -> str:
        at = f"{self.what} {self.done:,} of {self.of:,}" if self.of else self.what
        epoch = f"epoch {self.epoch} of {self.epochs} done" if self.epoch else ""
        step = f"step {self.step:,} of {self.steps:,}" if self.steps else ""
        left = [(self.run_left(), "left"), (self.sweep_left(), "for the sweep") if self.runs and self.runs > 1 else (None, "")]
        times = ", ".join(f"{duration(seconds)} {what}" for seconds, what in left if seconds is not None)
        return "  ".join(part for part in (at, step, epoch, self.score, self.loss, times) if part)

    def _show(self, quiet: float = QUIET_SECONDS) -> None:
        if not self.name:
            return
        if self.live is not None:
            total, done = (self.of, self.done) if self.of else (self.steps or None, self.step)
            self.live.update(self.bar, description=self._lead(), total=total, completed=done, about=self._about())
        elif self.clock() - self.said >= quiet:
            self.said = self.clock()
            log.info("%s  %s", self._lead(), self._about())


class Silent(Screen):
    """Shows nothing: progress=false, and processes that are not the main one."""

    def _show(self, quiet: float = QUIET_SECONDS) -> None:
        pass


_screen: Screen = Screen()


@contextmanager
def shown(name: str, show: bool | str) -> Iterator[None]:
    """Show a run while the block lasts, in a live line or ("auto") where a person is watching; False shows nothing."""
    global _screen
    kept = _screen
    if show is False:
        _screen = Silent()
    try:
        console = Console(stderr=True)
        with _screen.run(name, bool(show) and (show is True or console.is_terminal), console):
            yield
    finally:
        _screen = kept


@contextmanager
def counted(
    name: str,
    what: str,
    show: bool | str = "auto",
    say: Callable[[str], None] = log.info,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, int], None]]:
    """A callback (so many done, of how many) for work that is no run, shown as a run is: `what` are counted."""
    console = Console(stderr=True)
    live = bool(show) and (show is True or console.is_terminal)
    with Progress(transient=True, console=console, disable=not live) as bar:
        task, told = bar.add_task(name, total=None), clock()

        def tell(done: int, of: int) -> None:
            nonlocal told
            bar.update(task, completed=done, total=of, description=f"{name}: {what}")
            if show is not False and not live and clock() - told >= COUNTED_SECONDS:
                told = clock()
                say(f"{name}: {done:,} of {of:,} {what}")

        yield tell


def doing(what: str, done: int = 0, of: int = 0) -> None:
    """Say what this process is at, for whoever is watching."""
    if _screen.name:
        _screen.doing(what, done, of)


def trained(step: int, steps: int, loss: float | None) -> None:
    if _screen.name:
        _screen.trained(step, steps, loss)


def scored(epoch: int, epochs: int, metric: str, value: float | None) -> None:
    if _screen.name:
        _screen.scored(epoch, epochs, metric, value)


def expect(runs: int) -> None:
    """So many more runs are to come in this process."""
    _screen.runs = (_screen.runs or 0) + runs


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    whole = round(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small}"
    return f"{whole} s"
