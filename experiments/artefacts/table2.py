"""What Table 2 decides: GLUE with RoBERTa."""

from __future__ import annotations

from experiments.artefacts import glue_minilm
from experiments.engine.claims import Claim, by_seed, decides, mean_over, row_of
from experiments.engine.published import load
from experiments.engine.rows import Asked
from experiments.engine.verdicts import LOOKS, Line, Part, decide


@decides("same_glue_large")
def _same_glue(claim: Claim, asked: Asked) -> list[Line]:
    vera, lora = (row_of("table2", "roberta_large", method) for method in ("vera", "lora"))
    each = [by_seed(asked, vera.overrides(c.task), lora.overrides(c.task), c.metric) for c in load("table2").columns.values()]
    paper = f"VeRA {vera.average}, LoRA {lora.average}"
    small = {
        task: by_seed(asked, *(glue_minilm.cell(task, method) for method in ("vera", "lora"))) for task in glue_minilm.TASKS
    }
    run = {task: found for task, found in small.items() if found}
    part, over = Part("", mean_over(asked, run.values()) if run else []), ", ".join(run or small)
    return [
        decide("RoBERTa-large, average (points)", paper, [Part("", mean_over(asked, each))], "equal", claim.margin),
        decide(f"MiniLM, average of {over} (points)", paper, [part], "equal", claim.margin, miniature=True, looks=LOOKS),
    ]
