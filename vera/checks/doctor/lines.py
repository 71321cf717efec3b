"""What a check gives: a line with what there is and what to do; and what the checks have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vera.checks.counts import account
from vera.config import RunConfig
from vera.errors import ConfigError

OK, TODO, NETWORK, UNUSED, NOTE = "ok", "to do", "needs a network", "not needed here", "note"
Status = Literal["ok", "to do", "needs a network", "not needed here", "note"]
OFFLINE = "connect, or give model.path= and task.data_dir= (then nothing is read from the hub)"


@dataclass(frozen=True)
class Line:
    """One check. found: what there is; remedy: what to do, "" where nothing is to be done."""

    status: Status
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Wanted:
    """One cell of a sweep. counts: {adapter, head, backbone} parameters, and operations of a run, where they are known."""

    run: RunConfig
    seeds: int
    counts: dict[str, int] | None
    operations: float | None


def verdict(lines: Iterable[Line]) -> int:
    """Exit status: 1 when something is to be done, else 3 when something could not be known without a network, else 0."""
    found = {line.status for line in lines}
    return 1 if TODO in found else 3 if NETWORK in found else 0


def describe(lines: Sequence[Line]) -> dict[str, Any]:
    """How many lines there are of each status."""
    return {status: sum(line.status == status for line in lines) for status in (OK, TODO, NETWORK, NOTE, UNUSED)}


def full(run: RunConfig) -> bool:
    return run.model.get("size") == "full"


def distinct(runs: Iterable[RunConfig], group: str) -> list[RunConfig]:
    """One run for each different setting of a group."""
    return list({repr(getattr(run, group)): run for run in runs}.values())


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def time(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"some {seconds / length:,.0f} {unit}"
    return "a minute or two"


def counts_of(item: Wanted) -> dict[str, int] | None:
    if item.counts is not None:
        return item.counts
    try:
        return account(item.run)
    except ConfigError:
        return None
