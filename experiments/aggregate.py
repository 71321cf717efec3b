"""Seeds of a cell to one number with its uncertainty."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import bootstrap, permutation_test

from experiments.compositions import composed
from experiments.published import Statistic
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

    def centre(self, stat: Statistic) -> float:
        """The number that stands for the seeds: their mean, their best, or else their median."""
        return {"mean": self.mean, "best": max(self.values)}.get(stat, self.median)


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


def epoch_of(stat: Statistic) -> str:
    """Which epoch of a run a statistic reads: the last one, or the best one by the task's primary metric."""
    return "last" if stat == "last" else "best"


def cell_records(cells: dict[str, list[Record]], overrides: Sequence[str]) -> list[Record]:
    """The records of the cell that `python scripts/train.py OVERRIDES` would fill, by seed; [] when nobody has run it."""
    return cells.get(composed(overrides).cell_id, [])


def summarise_records(records: Sequence[Record], metric: str | None = None, select: str = "best") -> Summary:
    """One metric (default: the primary one) of at least one record, at the best or the last epoch.

    Raises RecordError when a record lacks the metric.
    """
    return replace(summarise([record.score(metric, select) for record in records]), mixed=_mixed(records))


def summarise_cost(records: Sequence[Record], field: str) -> Summary | None:
    """One number of the records' cost, or None where a record does not have it (peak memory on a CPU)."""
    values = [getattr(record.cost, field) for record in records]
    if not values or None in values:
        return None
    return replace(summarise(values), mixed=_mixed(records))


def _mixed(records: Sequence[Record]) -> tuple[str, ...]:
    sources = {
        "backbone": {record.provenance.model_fingerprint for record in records},
        "data": {record.provenance.data_fingerprint for record in records},
        "precision": {record.cost.precision for record in records},
    }
    return tuple(name for name, found in sources.items() if len(found) > 1)


@dataclass(frozen=True)
class Paired:
    """Differences of two methods on the same seeds. p: two-sided, over all sign changes of the differences (n = 5: 0.0625 at
    the least); None for fewer than two pairs."""

    n: int
    difference: float
    p: float | None


def paired(ours: Sequence[Record], theirs: Sequence[Record], metric: str | None = None, select: str = "best") -> Paired | None:
    """A paired permutation test of the mean difference ours - theirs over common seeds; None when there are none."""
    by_seed = {record.run.seed: record.score(metric, select) for record in theirs}
    pairs = [(r.score(metric, select), by_seed[r.run.seed]) for r in ours if r.run.seed in by_seed]
    if not pairs:
        return None
    mine, others = (np.array(side) for side in zip(*pairs, strict=True))
    p = None
    if len(pairs) > 1:
        p = float(
            permutation_test(
                (mine, others), _mean_difference, permutation_type="samples", vectorized=True, rng=np.random.default_rng(0)
            ).pvalue
        )
    return Paired(len(pairs), float((mine - others).mean()), p)


def _mean_difference(mine, others, axis):
    return np.mean(mine - others, axis=axis)
