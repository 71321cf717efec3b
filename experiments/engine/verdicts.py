"""Rules of decision: from differences to a reading, from readings to a claim's verdict.

A reading of seeds rests on Student's paired, one-sided test at 5%. A claim about several cells holds when it holds in each (the
largest p counts), and is refuted when one cell refutes it (the smallest p, times the number of cells). Fewer than five pairs
decide nothing. Sign-flip p values, two-sided, stand beside and decide nothing.

Where more seeds cost seconds, a reading is taken group-sequentially (Pocock 1977): at 5, 10, 20 and 40 pairs in the order of
their seeds, each time at one stricter level; the first look that decides counts, and what the last one leaves open stays open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from experiments.engine.aggregate import PAPER_SEEDS, exceeds_p, paired, permutation_p
from experiments.engine.render import DASH, p_value, signed

Reading = Literal["supported", "not supported", "undecided", "not run"]
Kind = Literal["better", "not worse", "equal"]
LEVEL = 0.05
LOOKS = (5, 10, 20, 40)
# Student's one-sided p falls below this at one of the four looks with probability LEVEL where the mean is at the bound.
LOOK_LEVEL = 0.016
IN_MINIATURE = "supported in miniature only"
DISAGREE = "miniatures disagree"


@dataclass(frozen=True)
class Line:
    """One piece of evidence. source: what it was taken on; result: p, interval or count; miniature: not the paper's own."""

    source: str
    paper: str
    ours: str
    test: str
    result: str
    reading: Reading
    miniature: bool = False


@dataclass(frozen=True)
class Part:
    """One cell of a claim: differences pair by pair ([] for a cell that nobody has run; no number where a run of the pair
    collapsed), and how they are printed. margin: in the printed unit, where a cell has its own."""

    label: str
    differences: Sequence[float]
    scale: float = 100
    digits: int = 1
    margin: float | None = None


def decide(
    source: str,
    paper: str,
    parts: Sequence[Part],
    kind: Kind,
    margin: float = 0.0,
    *,
    pairs: int = PAPER_SEEDS,
    miniature: bool = False,
    looks: Sequence[int] = (),
) -> Line:
    """A claim about every part: better (than zero), not worse (than -margin), or equal (within margin).

    margin: in the printed unit, of each part that has none of its own; "better" is refuted where that much or more is excluded
    (0: where it is worse). pairs: how many it takes to decide anything. looks: numbers of pairs at which a group-sequential
    reading looks, () for one of all.
    """
    parts = [replace(part, margin=margin) if part.margin is None else part for part in parts]
    run = [part for part in parts if part.differences]
    if not run:
        return Line(source, paper, DASH, DASH, DASH, "not run", miniature)
    if not looks:
        return Line(source, paper, *_reading(parts, kind, pairs, LEVEL), miniature)
    least = min(len(part.differences) for part in run)
    for number, look in enumerate(looks, 1):
        first = [replace(part, differences=part.differences[:look]) for part in parts]
        ours, test, result, reading = _reading(first, kind, look, LOOK_LEVEL)
        if reading in ("supported", "not supported") or number == len(looks) or least < looks[number]:
            break
    test += f", look {number} of {len(looks)} at {LOOK_LEVEL:g}"
    if any(len(part.differences) > look for part in run):
        result += f"; all pairs: {_collapsed(run) or _estimates(run, LOOK_LEVEL)}"
    return Line(source, paper, ours, test, result, reading, miniature)


def _reading(parts: Sequence[Part], kind: Kind, enough: int, level: float) -> tuple[str, str, str, Reading]:
    """Estimates, test, result and reading of the parts, some of which have been run."""
    run = [part for part in parts if part.differences]
    if collapsed := _collapsed(run):
        return DASH, "no test", f"{collapsed}, and what the others say would flatter", "undecided"
    counted = [part for part in run if len(part.differences) >= enough]
    against = [_refuting(part.differences, kind, (part.margin or 0.0) / part.scale) for part in counted]
    holding = [_supporting(part.differences, kind, (part.margin or 0.0) / part.scale) for part in counted]
    refuted = min(1.0, min(against) * len(parts)) if against else None
    reading: Reading
    if len(counted) == len(parts) and max(holding) < level:
        reading, p = "supported", f"p = {p_value(max(holding))}" + _largest(parts)
    elif refuted is not None and refuted < level:
        reading, p = "not supported", f"p = {p_value(refuted)} that it fails"
    elif len(run) < len(parts):
        reading, p = "not run", f"{len(run)} of {len(parts)} cells have been run"
    elif len(counted) < len(run):
        least = min(len(part.differences) for part in run)
        reading, p = "undecided", f"{least} of the {enough} pairs that it takes"
    else:
        reading, p = "undecided", f"p = {p_value(max(holding))}" + _largest(parts)
    tested, times = [(part, 0.0) for part in run], 1
    if reading == "not supported":  # as Student's p: of the part that refutes, against the margin that it excludes
        part = counted[against.index(min(against))]
        tested, times = [(part, (part.margin or 0.0) / part.scale)], len(parts)
    flips = [permutation_p(part.differences, [at] * len(part.differences)) for part, at in tested]
    known = [value for value in flips if value is not None]
    if known and kind == "better":
        p += f"; sign flips, two-sided: {p_value(min(1.0, max(known) * times))}"
    counts = sorted({len(part.differences) for part in run})
    margins = "/".join(dict.fromkeys(f"{part.margin or 0.0:g}" for part in parts))
    test = {
        "better": "paired t, one-sided" + (f", refuted below {margins}" if margins != "0" else ""),
        "not worse": f"paired t, one-sided, margin {margins}",
        "equal": f"two one-sided paired t, margin {margins}",
    }[kind]
    return _estimates(run, level), f"{test}, n={'/'.join(map(str, counts))}", p, reading


def _collapsed(parts: Sequence[Part]) -> str:
    """In how many pairs a run collapsed; "" for none."""
    most = max(sum(not math.isfinite(difference) for difference in part.differences) for part in parts)
    return f"a run collapsed in {most} of {max(len(part.differences) for part in parts)} pairs" if most else ""


def _largest(parts: Sequence[Part]) -> str:
    return f" (largest of {len(parts)})" if len(parts) > 1 else ""


def _estimates(parts: Sequence[Part], level: float) -> str:
    """The means with the interval that fits one-sided tests at `level`: 90% for 5%."""
    of = [(part, paired(part.differences, [0.0] * len(part.differences), 1 - 2 * level)) for part in parts]
    return "; ".join(f"{part.label} {signed(found, part.scale, part.digits)}".strip() for part, found in of)


def _supporting(differences: Sequence[float], kind: Kind, margin: float) -> float:
    above = _exceeds(differences, -margin if kind != "better" else 0.0)
    return max(above, _exceeds([-d for d in differences], -margin)) if kind == "equal" else above


def _refuting(differences: Sequence[float], kind: Kind, margin: float) -> float:
    below = _exceeds([-d for d in differences], -margin if kind == "better" else margin)
    return min(1.0, 2 * min(below, _exceeds(differences, margin))) if kind == "equal" else below


def _exceeds(differences: Sequence[float], bound: float) -> float:
    """exceeds_p of as many pairs as decide anything."""
    p = exceeds_p(differences, bound)
    assert p is not None, "one pair has no p value"
    return p


def verdict(lines: Sequence[Line]) -> tuple[str, Line]:
    """The claim's verdict and the line that it rests on: the paper's own experiment where there is one, else a miniature."""
    full = [line for line in lines if not line.miniature and line.reading != "not run"]
    if full:
        order = ("not supported", "undecided", "supported")
        line = min(full, key=lambda line: order.index(line.reading))
        return line.reading, line
    small = [line for line in lines if line.miniature and line.reading != "not run"]
    if small and all(line.reading == "supported" for line in small):
        return IN_MINIATURE, small[0]
    return "not run", next((line for line in small if line.reading != "supported"), lines[0])
