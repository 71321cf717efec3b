"""Seeds of a cell to one number with its uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, nct, permutation_test, ttest_ind_from_stats
from scipy.stats import t as student

from experiments.engine.published import Statistic
from vera.config.memory import composed
from vera.records.record import Record
from vera.records.sources import CONFIGURED, DRAWN, code_said, made_of

PAPER_SEEDS = 5

# What runs have in common whose scores are compared; version: of model and task. Of CONFIGURED older records say nothing.
COMPARED = ("backbone", *CONFIGURED, "data", "version", "code of model and task")
WORKED = ("device", "processes", "precision")  # and those whose memory is; for seconds also the threads

Cells = Mapping[str, list[Record]]  # by cell_id, each list by seed


@dataclass(frozen=True)
class Summary:
    """n seeds of one cell: median, mean, sample standard deviation and interval of the median (`median_interval`).

    A collapsed seed counts as minus infinity, the worst rank. std and interval are None for a single seed, std also where a
    seed has collapsed. `mixed` names what the seeds should have in common and do not (`sources`).
    cell: the cell_id of the records, "" where the values come from no records.
    """

    values: tuple[float, ...]
    median: float
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    mixed: tuple[str, ...] = ()
    cell: str = ""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def collapsed(self) -> int:
        """How many of the seeds came to nothing."""
        return self.values.count(-math.inf)

    def centre(self, stat: Statistic) -> float:
        """The number that stands for the seeds: their mean, their best, or else their median."""
        return {"mean": self.mean, "best": max(self.values)}.get(stat, self.median)


def summarise(values: Sequence[float]) -> Summary:
    """Statistics of at least one value."""
    values = tuple(float(value) for value in values)
    return Summary(
        values=values,
        median=statistics.median(values),
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 and -math.inf not in values else None,
        interval=median_interval(values) if len(values) > 1 else None,
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics, as many from below as from above, that covers the median with 95% or more,
    whatever the distribution; with fewer than six values, of which no pair does, their range (five: 93.75%)."""
    ordered, n = sorted(values), len(values)
    left_out = 0  # on each side; P(coverage) = 1 - 2 P(B <= left_out), B binomial (n, 1/2)
    while 1 - 2 * binom.cdf(left_out + 1, n, 0.5) >= 0.95:
        left_out += 1
    return ordered[left_out], ordered[n - 1 - left_out]


def epoch_of(stat: Statistic) -> str:
    """Which epoch of a run a statistic reads: the last one, or the best one by the task's primary metric."""
    return "last" if stat == "last" else "best"


def cell_records(cells: Cells, overrides: Sequence[str]) -> list[Record]:
    """The records of the cell that `python scripts/train.py OVERRIDES` would fill, by seed; [] when nobody has run it."""
    return cells.get(composed(overrides).cell_id, [])


def summarise_records(records: Sequence[Record], metric: str | None = None, select: str = "best") -> Summary:
    """One metric (default: the primary one) of at least one record, at the best or the last epoch.

    Raises RecordError when a record lacks the metric.
    """
    return of_records(summarise([record.score(metric, select) for record in records]), records)


def whole(records: Sequence[Record]) -> list[Record]:
    """Those whose cost is that of a whole run: a collapsed one ended early."""
    return [record for record in records if not record.collapsed]


def summarise_cost(records: Sequence[Record], field: str) -> Summary | None:
    """One number of the cost of the `whole` runs; None without one, or where one does not have it (peak memory on a CPU)."""
    ran = whole(records)
    values = [getattr(record.cost, field) for record in ran]
    if not values or None in values:
        return None
    return of_records(summarise(values), ran)


def of_records(summary: Summary, records: Sequence[Record]) -> Summary:
    """The summary of values of these records of one cell, with what they should have in common and do not."""
    mixed = tuple(name for name, found in sources(records).items() if len(found) > 1)
    return replace(summary, mixed=mixed, cell=records[0].run.cell_id)


def sources(
    records: Sequence[Record], names: Sequence[str] = ("code", "backbone", *CONFIGURED, "data", "precision")
) -> dict[str, set[str]]:
    """What runs should have in common, and all values of it that these have."""
    return {name: {made for record in records if (made := _made_with(record)[name]) is not None} for name in names}


def _made_with(record: Record) -> dict[str, str | None]:
    cost, config = record.cost, record.run.config
    earlier = record.provenance.notes.get("resumed", [])  # starts on another machine

    def over(key: str, last: str | int) -> str:
        return " and ".join(sorted({str(last), *(str(start[key]) for start in earlier if key in start)}))

    return {
        **made_of(record),  # what a seed draws from a task's data `unlike` compares seed by seed
        "code of model and task": code_said(record, ("model", "task")),
        "version": ", ".join(f"{group} {config[group].get('version')}" for group in ("model", "task")),
        "device": over("device", cost.device),
        "processes": str(cost.processes),
        "threads": over("threads", cost.threads),
    }


def unlike(records: Sequence[Record], names: Sequence[str] = COMPARED) -> list[str]:
    """For each of these names in which records of one model and task differ: the name, each value, and the methods with it.
    With "data" also the first seed that has drawn other images in the same places."""
    found = [_apart(name, [(_made_with(record)[name], record) for record in records]) for name in names]
    if "data" in names:
        drawn: dict[tuple[int, str], list[tuple[str | None, Record]]] = {}
        for record in records:
            notes = record.provenance.notes
            if DRAWN in notes:
                drawn.setdefault((record.run.seed, str(notes["few_shot_rows"])), []).append((notes[DRAWN], record))
        found += [part for (seed, _), of in sorted(drawn.items()) if (part := _apart(f"images of seed {seed}", of))][:1]
    return [part for part in found if part]


def _apart(name: str, values: list[tuple[str | None, Record]]) -> str:
    """The name, each value of it that a record says and the methods with that; "" where there is one value."""
    whose: dict[str, set[str]] = {}
    for value, record in values:
        if value is not None:
            whose.setdefault(value, set()).add(record.run.method)
    listed = "; ".join(f"{value}: {', '.join(sorted(methods))}" for value, methods in sorted(whose.items()))
    return f"{name} ({listed})" if len(whose) > 1 else ""


def pairs(ours: Sequence[Record], others: Sequence[Record], compared: bool = True) -> list[tuple[Record, Record]]:
    """The runs of each seed that both sides have; with `compared` those alone that are not `unlike`.

    Runs of one seed share training rows, data order and the head's initial weights, which is why pairs say more.
    """
    by_seed = {record.run.seed: record for record in others}
    both = [(record, by_seed[record.run.seed]) for record in ours if record.run.seed in by_seed]
    return [pair for pair in both if not (compared and unlike(pair))]


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


def exceeds_p(differences: Sequence[float], bound: float = 0.0) -> float | None:
    """One-sided p of Student's test that the mean is above `bound`; None for fewer than two. Equal values leave no doubt."""
    if len(differences) < 2:
        return None
    above, spread = statistics.fmean(differences) - bound, statistics.stdev(differences)
    if spread == 0:
        return 0.0 if above > 0 else 1.0
    return float(student.sf(above / spread * len(differences) ** 0.5, len(differences) - 1))


def two_sided_p(differences: Sequence[float]) -> float | None:
    """Student's two-sided p that the mean is zero; None for fewer than two."""
    above, below = exceeds_p(differences), exceeds_p([-difference for difference in differences])
    return None if above is None or below is None else min(1.0, 2 * min(above, below))


def detectable(differences: Sequence[float], power: float = 0.8) -> float | None:
    """The true mean difference that Student's paired two-sided test at 5% shows with this power, for as many pairs with
    this spread; None for fewer than two pairs."""
    if len(differences) < 2:
        return None
    freedom = len(differences) - 1
    critical = float(student.ppf(0.975, freedom))

    def short(shift: float) -> float:
        return float(nct.sf(critical, freedom, shift)) - power  # the wrong side's share is none where this is large

    return float(brentq(short, 0.0, 30.0)) * statistics.stdev(differences) / len(differences) ** 0.5


def deviation_p(values: Sequence[float], printed: float, spread: float | None, seeds: int) -> float | None:
    """Two-sided p that the values and a published figure have one mean; None for a single value, on either side.

    Welch's test where the figure comes with a standard deviation (over `seeds` runs), else Student's against a constant.
    """
    if len(values) < 2 or (spread is not None and seeds < 2):
        return None
    mean, std = statistics.fmean(values), statistics.stdev(values)
    if std == 0 and not spread:
        return 1.0 if mean == printed else 0.0
    if spread is None:
        return float(2 * student.sf(abs(mean - printed) / std * len(values) ** 0.5, len(values) - 1))
    return float(ttest_ind_from_stats(mean, std, len(values), printed, spread, seeds, equal_var=False).pvalue)


def permutation_p(ours: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided p of the mean paired difference over all changes of sign (n = 5: 0.0625 at the least), from 14 pairs on over
    9,999 random ones; None for one pair."""
    if len(ours) < 2:
        return None
    samples = (np.array(ours), np.array(others))
    rng = np.random.default_rng(0)
    return float(permutation_test(samples, _mean_difference, permutation_type="samples", vectorized=True, rng=rng).pvalue)


def _mean_difference(ours, others, axis):
    return np.mean(ours - others, axis=axis)


def lost(ours: Sequence[Record], others: Sequence[Record], compared: bool = True) -> str:
    """In how many of the `pairs` a run collapsed, so that there is nothing to compare; "" for none."""
    both = pairs(ours, others, compared)
    count = sum(any(record.collapsed for record in pair) for pair in both)
    return f"a run collapsed in {count} of {len(both)} pairs" if count else ""


def common(
    ours: Sequence[Record], others: Sequence[Record], metric: str | None = None, select: str = "best", compared: bool = True
) -> tuple[list[float], list[float]]:
    """The scores of both sides over their `pairs`."""
    both = pairs(ours, others, compared)
    if lost(ours, others, compared):
        return [], []  # a mean over the survivors would flatter
    return [our.score(metric, select) for our, _ in both], [other.score(metric, select) for _, other in both]
