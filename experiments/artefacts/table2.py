"""What Table 2 decides: GLUE with RoBERTa."""

from __future__ import annotations

from experiments.artefacts.minilm_methods import SWEEP
from experiments.engine.claims import Claim, by_seed, decides, fewer, mean_over, row_of
from experiments.engine.published import load
from experiments.engine.rows import Asked
from experiments.engine.sweeps import read_sweep
from experiments.engine.verdicts import Line, Part, decide


@decides("fewer_glue_large", "fewer_glue_base")
def _fewer(claim: Claim, asked: Asked) -> list[Line]:
    return [fewer(claim.factor, "table2")]


@decides("same_glue_large")
def _same_glue(claim: Claim, asked: Asked) -> list[Line]:
    vera, lora = (row_of("table2", "roberta_large", method) for method in ("vera", "lora"))
    each = [by_seed(asked, vera.overrides(c.task), lora.overrides(c.task), c.metric) for c in load("table2").columns.values()]
    mini = by_seed(asked, *(_minilm(method) for method in ("vera", "lora")))
    paper = f"VeRA {vera.average}, LoRA {lora.average}"
    return [
        decide("RoBERTa-large, average (points)", paper, [Part("", mean_over(each))], "equal", claim.margin),
        decide(
            "MiniLM on STS-B, small budget (Pearson, points)",
            paper,
            [Part("", list(mini.values()))],
            "equal",
            claim.margin,
            miniature=True,
        ),
    ]


def _minilm(method: str) -> list[str]:
    params = read_sweep(SWEEP).params
    fixed = [f"{key}={params[key]}" for key in ("model", "task")]
    steps = [f"{key}={value}" for key, value in params.items() if key.startswith("train.")]
    return [*fixed, f"method={method}", *steps]
