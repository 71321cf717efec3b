"""What Table 3 decides: E2E with GPT-2."""

from __future__ import annotations

from experiments.artefacts import e2e_mini
from experiments.engine import miniature
from experiments.engine.claims import Claim, by_seed, decides, printed_mean, row_of
from experiments.engine.published import load
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line, Part, decide


@decides("better_e2e")
def _better_e2e(claim: Claim, asked: Asked) -> list[Line]:
    published, parts, higher = load("table3"), [], []
    for model, label in published.models.items():
        vera, lora = (row_of("table3", model, method) for method in ("vera", "lora"))
        for key, column in published.columns.items():
            found = by_seed(asked, vera.overrides(column.task), lora.overrides(column.task), column.metric, "last")
            parts.append(Part(f"{label} {column.label}", list(found.values()), column.scale, column.digits))
            higher.append(printed_mean(vera.cells[key]) > printed_mean(lora.cells[key]))
    small = []
    for metric, (scale, digits) in e2e_mini.METRICS.items():
        sides = (["model=gpt2_mini", "task=e2e", f"method={method}"] for method in ("vera", "lora"))
        found = by_seed(asked, *sides, metric=metric, select="last")
        small.append(Part(metric, list(found.values()), scale, digits, claim.metrics[metric]))
    paper = f"higher in {sum(higher)} of {len(higher)} printed cells"
    return [
        decide("GPT-2 medium and large", paper, parts, "better"),
        miniature.decide(claim, small, "better", paper, "miniature on a small GPT-2"),
    ]
