"""Table 4: instruction tuning, with what judges said."""

from __future__ import annotations

import numpy as np

from experiments.engine.claims import Claim, by_seed, decides, printed_mean, row_of
from experiments.engine.comparison import compare
from experiments.engine.judged import table as judged_table
from experiments.engine.published import load
from experiments.engine.render import Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line, Part, decide


def build(asked: Asked) -> list[Table]:
    """Table 4, and every judgement there is."""
    judged = judged_table(asked.results)
    return [*compare("table4", asked), *([judged] if judged else [])]


@decides("same_instruct")
def _same_instruct(claim: Claim, asked: Asked) -> list[Line]:
    published, gaps, paper = load("table4"), [], []
    (column,) = published.columns.values()
    for model in published.models:
        vera, lora = (row_of("table4", model, method) for method in ("vera", "lora"))
        found = by_seed(asked, vera.overrides(column.task), lora.overrides(column.task), column.score, "last")
        gaps += [float(np.median([*found.values()]))] if found else []
        paper.append(f"{printed_mean(vera.cells['score']) - printed_mean(lora.cells['score']):+.2f}")
    part = Part("", gaps, 1, 2)
    return [
        decide("MT-Bench, pairs are models", "; ".join(paper), [part], "not worse", claim.margin, pairs=len(published.models))
    ]
