"""Which jobs of a sweep there is nothing to do for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vera.config.memory import composed
from vera.errors import VeraError
from vera.runs import workers
from vera.runs.record import Record
from vera.runs.store import Store

# Whether there is nothing to do for a job, from its overrides. The sweep's script says; asked before any job is composed.
skip: Callable[[list[str]], bool] | None = None


def finished(overrides: list[str]) -> Record | None:
    """The record of the run that these overrides describe; None when there is none, or the overrides are wrong.

    The seeds of a cell are composed once, all together.
    """
    cell = [override for override in overrides if not override.startswith("seed=")]
    seeds = [override.removeprefix("seed=") for override in overrides if override.startswith("seed=")]
    try:
        run = composed(cell)
        if seeds:
            run = run.model_copy(update={"seed": int(seeds[-1])})
        if workers.remains(Path(run.results_dir), run.run_name):  # to be cleaned up, or its worker has not left yet
            return None
        return Store(run.results_dir).find(run.run_name)
    except (VeraError, ValueError):  # whoever starts the job says what is wrong
        return None
