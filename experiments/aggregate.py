"""Seeds of a cell to one number with its uncertainty."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import bootstrap

from vera.config import compose
from vera.errors import RecordError
from vera.record import Record

PAPER_SEEDS = 5


@dataclass(frozen=True)
class Summary:
    """n seeds of one cell: median, mean, sample standard deviation and bootstrap 95% interval of the median.

    std and interval are None for a single seed.
    """

    values: tuple[float, ...]
    median: float
    mean: float
    std: float | None
    interval: tuple[float, float] | None

    @property
    def n(self) -> int:
        return len(self.values)


def summarise(values: Sequence[float]) -> Summary:
    """Statistics of at least one value. The bootstrap (percentile, 9,999 resamples) has a fixed seed: tables do not vary."""
    values = tuple(float(value) for value in values)
    interval = None
    if len(values) > 1:
        low, high = bootstrap(
            (np.array(values),), np.median, confidence_level=0.95, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        interval = (float(low), float(high))
    return Summary(
        values=values,
        median=statistics.median(values),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        interval=interval,
    )


def cell_records(cells: dict[str, list[Record]], overrides: Sequence[str]) -> list[Record]:
    """The records of the cell that `python scripts/train.py OVERRIDES` would fill, by seed; [] when nobody has run it.

    Raises RecordError when they were not made from the same backbone and data.
    """
    records = cells.get(_cell_id(tuple(overrides)), [])
    for key in ("model_fingerprint", "data_fingerprint"):
        found = {getattr(record.provenance, key) for record in records}
        if len(found) > 1:
            names = ", ".join(record.name for record in records)
            raise RecordError(f"records of one cell disagree in provenance.{key}: {names}; keep those of one source")
    return records


@lru_cache(maxsize=4096)
def _cell_id(overrides: tuple[str, ...]) -> str:
    return compose(overrides).cell_id
