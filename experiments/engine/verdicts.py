"""Rules of decision: from differences to a reading, from readings to a claim's verdict.

A reading of seeds rests on Student's paired, one-sided test at 5%. A claim about several cells holds when it holds in each (the
largest p counts), and is refuted when one cell refutes it (the smallest p, times the number of cells). Fewer than five pairs
decide nothing. Sign-flip p values stand beside: five pairs cannot give less than 0.0625 there, so they alone never decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.engine.aggregate import PAPER_SEEDS, Difference, exceeds_p, paired, permutation_p
from experiments.engine.render import DASH, signed

Reading = Literal["supported", "not supported", "undecided", "not run"]
Kind = Literal["better", "not worse", "equal"]
LEVEL = 0.05
IN_MINIATURE = "supported in miniature only"


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
    """One cell of a claim: differences pair by pair ([] for a cell that nobody has run), and how they are printed."""

    label: str
    differences: Sequence[float]
    scale: float = 100
    digits: int = 1


def decide(source: str, paper: str, parts: Sequence[Part], kind: Kind, margin: float = 0.0, **more) -> Line:
    """A claim about every part: better (than zero), not worse (than -margin), or equal (within margin).

    `margin` is in the printed unit. more: `pairs`, how many it takes to decide anything (default five), and `miniature`.
    """
    enough, small = more.get("pairs", PAPER_SEEDS), more.get("miniature", False)
    run = [part for part in parts if part.differences]
    if not run:
        return Line(source, paper, DASH, DASH, DASH, "not run", small)
    counted = [part for part in run if len(part.differences) >= enough]
    bounds = {id(part): margin / part.scale for part in counted}
    against = [_refuting(part.differences, kind, bounds[id(part)]) for part in counted]
    holding = [_supporting(part.differences, kind, bounds[id(part)]) for part in counted]
    refuted = min(1.0, min(against) * len(parts)) if against else None
    if refuted is not None and refuted < LEVEL:
        reading, p = "not supported", f"p = {_p(refuted)} that it fails"
    elif len(run) < len(parts):
        reading, p = "not run", f"{len(run)} of {len(parts)} cells have been run"
    elif len(counted) < len(run):
        least = min(len(part.differences) for part in run)
        reading, p = "undecided", f"{least} of the {enough} pairs that it takes"
    else:
        reading, p = ("supported" if max(holding) < LEVEL else "undecided"), f"p = {_p(max(holding))}"
        if len(parts) > 1:
            p += f" (largest of {len(parts)})"
    flips = [permutation_p(part.differences, [0.0] * len(part.differences)) for part in run]
    known = [value for value in flips if value is not None]
    if known and kind == "better":
        p += f"; sign flips, two-sided: {_p(max(known))}"
    counts = sorted({len(part.differences) for part in run})
    test = {
        "better": "paired t, one-sided",
        "not worse": f"paired t, one-sided, margin {margin:g}",
        "equal": f"two one-sided paired t, margin {margin:g}",
    }[kind]
    ours = "; ".join(f"{part.label} {signed(_estimate(part.differences), part.scale, part.digits)}".strip() for part in run)
    return Line(source, paper, ours, f"{test}, n={'/'.join(map(str, counts))}", p, reading, small)


def _estimate(differences: Sequence[float]) -> Difference:
    """The mean with the interval that fits one-sided tests at LEVEL: 90% for 5%."""
    return paired(differences, [0.0] * len(differences), 1 - 2 * LEVEL)


def _supporting(differences: Sequence[float], kind: Kind, margin: float) -> float:
    above = _exceeds(differences, -margin if kind != "better" else 0.0)
    return max(above, _exceeds([-d for d in differences], -margin)) if kind == "equal" else above


def _refuting(differences: Sequence[float], kind: Kind, margin: float) -> float:
    below = _exceeds([-d for d in differences], margin if kind != "better" else 0.0)
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


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "below 0.0001"
