"""Which jobs of a sweep there is nothing to do for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vera.config import RunConfig
from vera.config.composing import NotComposed
from vera.config.memory import composed
from vera.errors import VeraError
from vera.records import sources, workers
from vera.records.record import Record
from vera.records.store import Store

# Whether there is nothing to do for a job, from its overrides. The sweep's script says; asked before any job is composed.
skip: Callable[[list[str]], bool] | None = None


def finished(overrides: list[str]) -> tuple[RunConfig, Record] | None:
    """The run that these overrides describe and its record; None when there is none, when the record is or may be one of other
    data or weights than are here now, or when the overrides are wrong: whoever starts the job says so. Raises NotComposed."""
    try:
        run = composed(overrides)
        if workers.remains(Path(run.results_dir), run.run_name):  # to be cleaned up, or its worker has not left yet
            return None
        record = Store(run.results_dir).find(run.run_name)
        return None if record is None or sources.unknown(run, record) else (run, record)
    except NotComposed:
        raise
    except (VeraError, ValueError):
        return None
