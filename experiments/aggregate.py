"""Seeds of a cell to one number with its uncertainty."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.stats import bootstrap
from scipy.stats import t as student

from vera.config import compose
from vera.record import Record

PAPER_SEEDS = 5


@dataclass(frozen=True)
class Summary:
    """n seeds of one cell: median, mean, sample standard deviation and bootstrap 95% interval of the median.

    std and interval are None for a single seed. `mixed` names what the seeds should have in common and do not: backbone,
    data or precision.
    """

    values: tuple[float, ...]
    median: float
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    mixed: tuple[str, ...] = ()

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
    """The records of the cell that `python scripts/train.py OVERRIDES` would fill, by seed; [] when nobody has run it."""
    return cells.get(_cell_id(tuple(overrides)), [])


def summarise_records(records: Sequence[Record], metric: str | None = None, select: str = "best") -> Summary:
    """One metric (default: the primary one) of at least one record, at the best or the last epoch."""
    sources = {
        "backbone": {record.provenance.model_fingerprint for record in records},
        "data": {record.provenance.data_fingerprint for record in records},
        "precision": {record.cost.precision for record in records},
    }
    mixed = tuple(name for name, found in sources.items() if len(found) > 1)
    return replace(summarise([record.score(metric, select) for record in records]), mixed=mixed)


@lru_cache(maxsize=4096)
def _cell_id(overrides: tuple[str, ...]) -> str:
    return compose(overrides).cell_id


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences, and its interval (Student's t). interval is None for a single pair."""

    mean: float
    interval: tuple[float, float] | None
    n: int


def paired(ours: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> Difference:
    """ours - others, pair by pair; at least one pair."""
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return Difference(mean, None, 1)
    half = float(student.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(differences) / n**0.5
    return Difference(mean, (mean - half, mean + half), n)


def paired_records(ours: Sequence[Record], others: Sequence[Record]) -> Difference | None:
    """The best epoch's primary metric, `ours` minus `others`, over the seeds that both have; None when they share none.

    Runs of one seed share training images, data order and the head's initial weights, which is why pairs say more.
    """
    by_seed = {record.run.seed: record for record in others}
    both = [record for record in ours if record.run.seed in by_seed]
    if not both:
        return None
    return paired([record.score() for record in both], [by_seed[record.run.seed].score() for record in both])
