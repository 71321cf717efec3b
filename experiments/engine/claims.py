"""The paper's claims: what they are, who decides them, and where the evidence comes from.

results/paper/claims.yaml states them, the artefacts decide them (`decides`), and experiments/engine/verdicts.py has the rules.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from experiments.engine import accounting, registry
from experiments.engine.aggregate import pairs
from experiments.engine.published import FOLDER, Row, load, read
from experiments.engine.render import DASH
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line
from vera.config import Strict
from vera.errors import ConfigError

Topic = Literal["counts", "quality", "parts", "cost"]


class Claim(Strict):
    """One statement of the paper. topic, short: where and how the report's first lines name it. factor: by model, so many times
    fewer parameters. rule: what would decide it.

    differs: what the miniature has otherwise than the paper, which is said where it refutes the claim.
    margin, miniature: the smallest difference that matters, in the printed unit, in the paper's setting and in miniature.
    metrics: the same in miniature for each of several metrics.
    """

    id: str
    topic: Topic
    short: str
    claim: str
    where: str
    paper: str | None = None
    factor: dict[str, float] = {}
    margin: float | None = None
    miniature: float = 0.0
    metrics: dict[str, float] = {}
    differs: str | None = None
    rule: str = "the ratio of the counts, rounded to one digit, is at least the claimed one"


class Claims(Strict):
    claims: list[Claim]


@lru_cache(maxsize=1)
def stated() -> tuple[Claim, ...]:
    """results/paper/claims.yaml. Raises ConfigError naming the key."""
    return tuple(read(Claims, "claims", FOLDER).claims)


Check = Callable[[Claim, Asked], list[Line]]
CHECKS: dict[str, Check] = {}


def decides(*claims: str) -> Callable[[Check], Check]:
    """Register what looks for the evidence of these claims (ids of results/paper/claims.yaml); artefacts call it."""

    def register(function: Check) -> Check:
        CHECKS.update(dict.fromkeys(claims, function))
        return function

    return register


# Lines that need no differences.


def fewer(factors: Mapping[str, float], table: str) -> Line:
    """LoRA's count divided by VeRA's for each model, against the claimed factor; both counted, so there is nothing to test."""
    paper, ours, met = [], [], []
    for model, factor in factors.items():
        lora, vera = (row_of(table, model, method) for method in ("lora", "vera"))
        paper.append(f"{quantity(lora.params) / quantity(vera.params):.1f} ({lora.params} / {vera.params})")
        counts = [next(iter(accounting.trained(row)), None) for row in (lora, vera)]
        if None in counts:
            return Line("counts", "; ".join(paper), DASH, DASH, DASH, "not run")
        ratio = counts[0] / counts[1]
        ours.append(f"{ratio:.1f} ({counts[0]:,} / {counts[1]:,})")
        met.append(float(f"{ratio:.1g}") >= factor)
    claimed = "/".join(dict.fromkeys(f"{factor:g}" for factor in factors.values()))
    result = f"at least {claimed}, rounded to one digit: {sum(met)} of {len(met)}"
    return Line("counts", "; ".join(paper), "; ".join(ours), "counting", result, "supported" if all(met) else "not supported")


# Where differences come from.


def by_seed(
    asked: Asked, ours: Sequence[str], others: Sequence[str], metric: str | None = None, select: str = "best"
) -> dict[int, float]:
    """Ours minus others for each of their `pairs`, by seed, of the records with this metric; no number where a run collapsed,
    which `verdicts.decide` tells."""
    sides = ([r for r in asked.records(overrides) if r.has(metric, select)] for overrides in (ours, others))
    return {our.run.seed: our.score(metric, select) - other.score(metric, select) for our, other in pairs(*sides)}


def mean_over(asked: Asked, found: Iterable[dict[int, float]]) -> list[float]:
    """The mean over cells for every seed that all of them have, no number where a run collapsed in one; that there is no such
    seed, though each has some, is `said`."""
    found = list(found)
    seeds = set.intersection(*(set(one) for one in found))
    if not seeds and all(found):
        each = "; ".join(", ".join(map(str, sorted(one))) for one in found)
        asked.said.append(f"A mean over several cells has no seed that each of them has (seeds {each}), and so is not shown.")
    gaps = [[one[seed] for one in found] for seed in sorted(seeds)]
    return [statistics.fmean(gap) if all(map(math.isfinite, gap)) else math.nan for gap in gaps]


def row_of(table: str, model: str, method: str) -> Row:
    """The published row of a method as it is, without a variant."""
    (row,) = (r for r in load(table).rows if (r.model, r.method, r.variant) == (model, method, {}))
    return row


def quantity(text: str) -> float:
    """0.061M, 96KB: the number meant."""
    value, unit = re.fullmatch(r"([\d.]+)(\D*)", text).groups()
    return float(value) * accounting.UNITS[unit]


def printed_mean(cell: str) -> float:
    return float(cell.partition("±")[0])


def over_layers(seeds: Sequence[Sequence[float]], half: bool) -> list[float]:
    """For each seed the mean over layers, or that of the second half minus that of the first."""
    if not half:
        return [statistics.fmean(seed) for seed in seeds]
    middle = len(seeds[0]) // 2
    return [statistics.fmean(seed[-middle:]) - statistics.fmean(seed[:middle]) for seed in seeds]


def evidence(asked: Asked) -> dict[str, list[Line]]:
    """Every claim's lines by id, in the yaml's order. Raises ConfigError for a claim without a check, or the reverse."""
    registry.load_all()
    ids = [claim.id for claim in stated()]
    if sorted(ids) != sorted(CHECKS):
        odd = ", ".join(sorted(set(ids) ^ set(CHECKS)) or sorted(ids))
        raise ConfigError(f"results/paper/claims.yaml: claims and what experiments/artefacts decides differ: {odd}")
    return {claim.id: CHECKS[claim.id](claim, asked) for claim in stated()}
