"""What Table 5 decides: image classification."""

from __future__ import annotations

import statistics

from experiments.engine import miniature
from experiments.engine.claims import Claim, by_seed, decides, mean_over, printed_mean, row_of
from experiments.engine.published import load
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line, Part, decide


@decides("same_images")
def _same_images(claim: Claim, asked: Asked) -> list[Line]:
    published, parts, paper = load("table5"), [], []
    for model, label in published.models.items():
        vera, lora = (row_of("table5", model, method) for method in ("vera", "lora"))
        sides = ((vera.overrides(c.task), lora.overrides(c.task), c.metric) for c in published.columns.values())
        each = [by_seed(asked, *side, "last") for side in sides]
        parts.append(Part(label, mean_over(asked, each)))
        gap = statistics.fmean(printed_mean(vera.cells[key]) - printed_mean(lora.cells[key]) for key in published.columns)
        paper.append(f"{label} {gap:+.1f}")
    text = "; ".join(paper)
    lines = [decide("mean over four data sets (accuracy, points)", text, parts, "not worse", claim.margin)]
    for on, source in ((miniature.OVERRIDES, miniature.SOURCE), (miniature.LARGE, miniature.LARGE_SOURCE)):
        small = by_seed(asked, *([*on, f"method={m}"] for m in ("vera", "lora")), select="last")
        lines.append(miniature.decide(claim, [Part("", list(small.values()))], "not worse", text, source))
    return lines
