"""What a results folder says of a sweep while it runs: done, running, failed and missing, from file names and claims alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from experiments.engine.plan import failure
from experiments.engine.render import DASH
from vera.records import workers
from vera.records.screen import duration
from vera.records.store import stems
from vera.records.workers import Held

SHOWN_FAILURES = 20


@dataclass
class State:
    """Run names in a results folder. A run that is being tried again is running, not failed."""

    done: set[str]
    failed: set[str]
    running: dict[str, Held]


def look(results: Path) -> State:
    """The folder as it is now; no record is read, so 100,000 of them cost a tenth of a second."""
    done = set(stems(results / "runs"))
    running = {name: held for name, held in workers.every(results).items() if name not in done}
    return State(done, set(stems(results / "failed")) - done - running.keys(), running)


def counted(state: State, wanted: set[str]) -> list[int]:
    """Runs, done, running, failed, missing."""
    done, running, failed = wanted & state.done, wanted & state.running.keys(), wanted & state.failed
    return [len(wanted), len(done), len(running), len(failed), len(wanted - done - running - failed)]


def finished(state: State, wanted: set[str]) -> bool:
    """Whether nothing is left to wait for: every wanted run is done or failed, and nobody computes."""
    return not state.running and not wanted - state.done - state.failed


def shown(state: State, sweeps: dict[str, set[str]], results: Path) -> RenderableType:
    """The tables that `make status` shows. `sweeps` are the wanted runs by sweep; those not begun are one line."""
    table = Table("Sweep", *(_right(column) for column in ("Runs", "Done", "Running", "Failed", "Missing")), box=box.SIMPLE)
    counts = {name: counted(state, wanted) for name, wanted in sweeps.items()}
    begun = {name: of for name, of in counts.items() if any(of[1:4]) or len(sweeps) == 1}
    for name, of in begun.items():
        table.add_row(Text(name), *map(str, of))  # [table6a] is no style
    idle = set().union(*(wanted for name, wanted in sweeps.items() if name not in begun))
    if idle:
        table.add_row(f"{len(sweeps) - len(begun)} not begun", *map(str, counted(state, idle)))
    if len(sweeps) > 1:
        table.add_section()
        table.add_row("all, each run once", *map(str, counted(state, set().union(*sweeps.values()))))
    parts: list[RenderableType] = [table]
    if state.running:
        parts.append(_running(state.running, _now(results)))
    names = set().union(*sweeps.values()) & state.failed
    parts += [Text(f"failed: {name}: {failure(results, name)}", "red") for name in sorted(names)[:SHOWN_FAILURES]]
    if len(names) > SHOWN_FAILURES:
        parts.append(Text(f"and {len(names) - SHOWN_FAILURES} more in {results / 'failed'}", "red"))
    return Group(*parts)


def _now(results: Path) -> float:
    """By the clock that workers go by; by this machine's for someone who may not write there."""
    try:
        return workers.server_time(results)
    except OSError:
        return time.time()


def _running(running: dict[str, Held], now: float) -> Table:
    columns = ["Running", "Where", "Since", _right("Last sign"), _right("Step"), _right("Left")]
    table = Table(*columns, box=box.SIMPLE)
    for name, held in sorted(running.items()):
        age = max(0.0, now - held.beat)
        holder = held.holder
        if holder is None:
            table.add_row(name, "not readable", DASH, f"{duration(age)} ago", DASH, DASH)
            continue
        left = None if holder.seconds_left is None else max(0.0, holder.seconds_left - age)
        step = DASH if holder.step is None else f"{holder.step:,} of {holder.total:,}"
        note = DASH if left is None else duration(left)
        if held.dead:
            note = "killed; whoever comes takes over"
        elif age > holder.timeout:
            note = "silent; whoever comes takes over"
        table.add_row(name, f"{holder.host} {holder.pid}", holder.started, f"{duration(age)} ago", step, note)
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)
