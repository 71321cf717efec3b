"""Figure 5: cosine similarity of weight differences by layer, LoRA with VeRA and LoRA with random matrices (appendix D)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.engine import analysis, miniature
from experiments.engine.aggregate import Cells, paired, summarise
from experiments.engine.claims import Claim, decides, over_layers
from experiments.engine.plots import PALETTE, figure, legend_below, save
from experiments.engine.published import choice
from experiments.engine.render import DASH, INTERVAL, Table, interval, number, signed
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
}
SERIES = {"lora_vera": "LoRA-VeRA", "lora_random": "LoRA-Random"}
PAPER_MEANS = {"lora_vera": "2.0e-3", "lora_random": "-8.0e-5"}
STYLE = {
    "lora_vera": {"color": PALETTE[2], "marker": "^", "linestyle": "-"},
    "lora_random": {"color": PALETTE[0], "marker": "o", "linestyle": ":"},
}


def build(cells: Cells, overrides: Sequence[str] = (), stat: str | None = None) -> list[Table]:
    """One line a layer, and the mean over layers that the paper's text gives."""
    tables = []
    for name, (title, *_) in MEASURED.items():
        found, rows = analysis.read(name), []
        for layer in range(found["layers"]) if found else ():
            values = {series: [seed[layer] for seed in found[series]] for series in SERIES}
            rows.append([str(layer), *_line(values)])
        if found:
            means = {series: [statistics.fmean(seed) for seed in found[series]] for series in SERIES}
            rows.append(["mean", *_line(means)])
        columns = ["Layer"]
        for label in SERIES.values():
            columns += [label, INTERVAL]
        columns.append("LoRA-VeRA minus LoRA-Random [95%]")
        notes = [
            "Cosine of the flattened weight differences of the query matrices, both methods with rank 64, seed by seed: median "
            "over seeds ± standard deviation; difference: mean over seeds, 95% interval (Student's t).",
            "Random: a matrix of independent normal entries for each layer and seed.",
            f"The paper's means over layers: LoRA-VeRA {PAPER_MEANS['lora_vera']}, LoRA-Random {PAPER_MEANS['lora_random']}. "
            "It names neither model nor task; its layers suggest RoBERTa-large.",
        ]
        if name.endswith("_mini"):
            notes.insert(0, miniature.NOTE)
        tables.append(Table(name, title, columns, rows or [[DASH] * len(columns)], notes, [len(rows) - 1] if rows else []))
    return tables


def _line(values: dict[str, list[float]]) -> list[str]:
    cells = []
    for found in values.values():
        summary = summarise(found)
        cells += [number(summary, digits=4), interval(summary, digits=4)]
    return [*cells, signed(paired(values["lora_vera"], values["lora_random"]), digits=4)]


def draw(cells: Cells, folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """figure5 and figure5_mini as pdf and png, each only where it has been measured."""
    written = []
    for name, (title, *_) in MEASURED.items():
        found = analysis.read(name)
        if found is None:
            continue
        canvas, axes = figure(width=5.0, height=3.4)
        layers = list(range(found["layers"]))
        for index, (series, label) in enumerate(SERIES.items()):
            style = STYLE[series]
            scores = [summarise([seed[layer] for seed in found[series]]) for layer in layers]
            at = [layer + (0.04 if index else -0.04) for layer in layers]
            axes.plot(at, [score.median for score in scores], **style, label=label, linewidth=1.4, markersize=6)
            for x, score in zip(at, scores, strict=True):
                axes.plot([x] * score.n, score.values, ".", color=style["color"], markersize=4, alpha=0.5)
                if score.interval is not None:
                    axes.plot([x, x], score.interval, color=style["color"], linewidth=1.2)
        axes.axhline(0, color=PALETTE[0], linewidth=0.6)
        axes.set_xticks(layers if len(layers) < 13 else layers[::5])
        axes.set_xlabel("Layer")
        axes.set_ylabel("Cosine similarity")
        count = len(found["seeds"])
        axes.set_title(f"{title}\nrank 64, median over seeds (n={count}), range of the seeds, every seed", fontsize=7)
        legend_below(axes)
        written += save(canvas, folder / name)
    return written


@decides("similar_to_lora")
def _similar(claim: Claim, cells: Cells) -> list[Line]:
    lines = []
    for name, source, small in (("figure5", "RTE, RoBERTa-large (cosine)", False), ("figure5_mini", miniature.LABEL, True)):
        found, gaps = analysis.read(name), []
        if found:
            sides = (over_layers(found[series], False) for series in ("lora_vera", "lora_random"))
            gaps = [a - b for a, b in zip(*sides, strict=True)]
        part = Part("LoRA-VeRA - LoRA-random", gaps, 1, 4)
        lines.append(decide(source, claim.paper, [part], "better", miniature=small))
    return lines
