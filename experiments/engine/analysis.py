"""What scripts/analyse.py and scripts/expressivity.py have measured, as they left it in <results>/analysis."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import RESULTS
from vera.config.memory import composed
from vera.errors import RecordError
from vera.records.record import Record
from vera.records.store import Store

log = logging.getLogger(__name__)


def of_runs(name: str, results: Path, *cells: Sequence[str]) -> dict[str, Any] | None:
    """A measurement of the runs of these cells (overrides); None, and a line that says so, where it is of other ones, of what
    has been trained again since, or over several backbones. What it was given beside them is in its `with`."""
    found = read(name, results)
    if found is None:
        return None
    given = found.get("with", [])
    wanted = {composed([*cell, *given]).cell_id[:8] for cell in cells}
    measured = {run.split("--")[3] for run in found["runs"]}
    if measured != wanted:
        log.warning(
            "%s: analysis/%s.json measures runs of %s, now %s: scripts/analyse.py measures them",
            *(name, name, ", ".join(sorted(measured)), ", ".join(sorted(wanted))),
        )
        return None
    store = Store(results)
    for run, measured_as in found.get("trained", {}).items():
        record = store.find(run)
        if record is not None and mark(record) != measured_as:
            log.warning(
                "%s: analysis/%s.json measures what %s was before it was trained again: scripts/analyse.py measures it anew",
                *(name, name, run),
            )
            return None
    if len(backbones := found.get("backbone", [])) > 1:
        log.warning(
            "%s: analysis/%s.json measures runs of unlike backbones (%s), which show nothing together: scripts/analyse.py",
            *(name, name, ", ".join(backbones)),
        )
        return None
    return found


def mark(record: Record) -> str:
    """Tells what a run has trained from what another run of its name has: by its weights, or else by when it was finished."""
    return record.weights.get("best", record.provenance.finished)


def decisive(name: str, results: Path, *cells: Sequence[str]) -> dict[str, Any] | None:
    """The same where it is of these cells alone, as a claim takes it."""
    found = of_runs(name, results, *cells)
    return None if found is None or found.get("with") else found


def said(found: dict[str, Any] | None) -> list[str]:
    """Notes for a table of a measurement."""
    given = (found or {}).get("with")
    return [f"Not the runs named above: measured with {' '.join(given)}."] if given else []


def read(name: str, results: Path = RESULTS) -> dict[str, Any] | None:
    """One measurement, or None when nobody has made it. Raises RecordError for a file that is no JSON object."""
    path = results / "analysis" / f"{name}.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RecordError(f"{path} holds {type(found).__name__}, not an object")
    return found
