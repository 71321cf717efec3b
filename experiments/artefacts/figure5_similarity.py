"""Figure 5: cosine similarity of weight differences by layer, LoRA with VeRA and LoRA with random matrices (appendix D)."""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments.artefacts import glue_minilm
from experiments.engine import analysis, by_layer, miniature
from experiments.engine.claims import Claim, decides, over_layers
from experiments.engine.plots import PALETTE, clear, median_over
from experiments.engine.published import choice
from experiments.engine.render import DASH, INTERVAL, Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line, Part, decide

# Name: title, and the VeRA and the LoRA runs whose saved adapters scripts/analyse.py compares.
MEASURED = {
    "figure5": (
        "Figure 5: similarity of weight differences, query, RTE, RoBERTa-large",
        *(["model=roberta_large", "task=rte", *choice("figure5", method)] for method in ("vera", "lora")),
    ),
    "figure5_mini": (
        f"Figure 5, {miniature.LABEL}: similarity of weight differences, query",
        *([*miniature.OVERRIDES, *choice("figure5", method, "mini")] for method in ("vera", "lora")),
    ),
    "figure5_minilm": (
        "Figure 5, on MiniLM: similarity of weight differences, query, STS-B",
        *(glue_minilm.cell("stsb", method) for method in ("vera", "lora")),
    ),
}
RANKS = {"figure5_minilm": "VeRA with rank 256 and LoRA with rank 8, as in their runs"}
TAKES = ("results",), "it shows what scripts/analyse.py has measured of saved adapters"
SERIES = {"lora_vera": "LoRA-VeRA", "lora_random": "LoRA-Random"}
COLUMNS = ["Layer", "LoRA-VeRA", INTERVAL, "LoRA-Random", INTERVAL, "LoRA-VeRA minus LoRA-Random [95%]"]
PAPER_MEANS = {"lora_vera": "2.0e-3", "lora_random": "-8.0e-5"}
STYLE = {
    "lora_vera": {"color": PALETTE[2], "marker": "^", "linestyle": "-"},
    "lora_random": {"color": PALETTE[0], "marker": "o", "linestyle": ":"},
}


def build(asked: Asked) -> list[Table]:
    """One line a layer, and the mean over layers that the paper's text gives."""
    tables = []
    for name, (title, *cells) in MEASURED.items():
        found, rows = analysis.of_runs(name, asked.results, *cells), [[DASH] * len(COLUMNS)]
        if found:
            means = [[statistics.fmean(seed) for seed in found[series]] for series in SERIES]
            rows = [*by_layer.rows([found[series] for series in SERIES], 4), by_layer.line("mean", means, 4)]
        notes = [
            f"Cosine of the flattened weight differences of the query matrices, {RANKS.get(name, 'both methods of rank 64')}, "
            "seed by seed: median over seeds ± standard deviation; difference: mean over seeds, 95% interval (Student's t).",
            "Random: a matrix of independent normal entries for each layer and seed.",
            f"The paper's means over layers: LoRA-VeRA {PAPER_MEANS['lora_vera']}, LoRA-Random {PAPER_MEANS['lora_random']}. "
            "It names neither model nor task; its layers suggest RoBERTa-large.",
        ]
        if own := {"figure5_mini": miniature.NOTE, "figure5_minilm": glue_minilm.NOTE}.get(name):
            notes.insert(0, own)
        notes += analysis.said(found)
        tables.append(Table(name, title, COLUMNS, rows, notes, [len(rows) - 1] if found else []))
    return tables


def draw(asked: Asked, folder: Path) -> list[Path]:
    """figure5, figure5_mini and figure5_minilm, each only where it has been measured."""
    written = []
    for name, (title, *cells) in MEASURED.items():
        found = analysis.of_runs(name, asked.results, *cells)
        if found is None:
            clear(folder / name)
            continue
        shown = f"every seed, {median_over([len(found['seeds'])])}"
        heading = "\n".join([str(title), RANKS.get(name, "rank 64"), shown, *analysis.said(found)])
        cosines = {label: (found[series], STYLE[series]) for series, label in SERIES.items()}
        level = {"y": 0, "linewidth": 0.6}
        written += by_layer.draw(folder / name, heading, cosines, "Cosine similarity", level, dots=True)
    return written


@decides("similar_to_lora")
def _similar(claim: Claim, asked: Asked) -> list[Line]:
    lines = []
    for name, (_, *cells) in MEASURED.items():
        found, gaps = analysis.decisive(name, asked.results, *cells), []
        if found:
            sides = (over_layers(found[series], False) for series in ("lora_vera", "lora_random"))
            gaps = [a - b for a, b in zip(*sides, strict=True)]
        part = Part("LoRA-VeRA - LoRA-random", gaps, 1, 4)
        if name == "figure5_mini":
            lines.append(miniature.decide(claim, [part], "better", claim.paper, f"{miniature.LABEL} (cosine)"))
        else:
            source = "STS-B, MiniLM (cosine)" if name == "figure5_minilm" else "RTE, RoBERTa-large (cosine)"
            lines.append(decide(source, claim.paper, [part], "better", miniature=name == "figure5_minilm"))
    return lines
