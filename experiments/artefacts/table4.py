"""What Table 4 decides: instruction tuning."""

from __future__ import annotations

import statistics

from experiments.engine.aggregate import Cells
from experiments.engine.claims import Claim, by_seed, decides, fewer, printed_mean, row_of
from experiments.engine.published import load
from experiments.engine.verdicts import Line, Part, decide


@decides("fewer_instruct")
def _fewer(claim: Claim, cells: Cells) -> list[Line]:
    return [fewer(claim.factor, "table4")]


@decides("same_instruct")
def _same_instruct(claim: Claim, cells: Cells) -> list[Line]:
    published, gaps, paper = load("table4"), [], []
    (column,) = published.columns.values()
    for model in published.models:
        vera, lora = (row_of("table4", model, method) for method in ("vera", "lora"))
        found = by_seed(cells, vera.overrides(column.task), lora.overrides(column.task), column.score, "last")
        gaps += [statistics.median(found.values())] if found else []
        paper.append(f"{printed_mean(vera.cells['score']) - printed_mean(lora.cells['score']):+.2f}")
    part = Part("", gaps, 1, 2)
    return [
        decide("MT-Bench, pairs are models", "; ".join(paper), [part], "not worse", claim.margin, pairs=len(published.models))
    ]
