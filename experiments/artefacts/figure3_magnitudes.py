"""Figure 3: Euclidean norm of the trained d by layer, query against value."""

from __future__ import annotations

from pathlib import Path

from experiments.artefacts import glue_minilm
from experiments.engine import analysis, by_layer, miniature
from experiments.engine.claims import Claim, decides, over_layers
from experiments.engine.plots import PALETTE, clear, median_over
from experiments.engine.published import choice
from experiments.engine.render import DASH, INTERVAL, Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line, Part, decide

# Name: title, and the runs whose saved adapters scripts/analyse.py measures.
MEASURED = {
    "figure3": (
        "Figure 3: size of the trained d by layer, RTE, RoBERTa-large",
        ["model=roberta_large", "task=rte", *choice("figure3", "vera")],
    ),
    "figure3_mini": (
        f"Figure 3, {miniature.LABEL}: size of the trained d by layer",
        [*miniature.OVERRIDES, *choice("figure3", "vera", "mini")],
    ),
    "figure3_minilm": ("Figure 3, on MiniLM: size of the trained d by layer, STS-B", glue_minilm.cell("stsb", "vera")),
}
TAKES = ("results",), "it shows what scripts/analyse.py has measured of saved adapters"
COLUMNS = ["Layer", "Query", INTERVAL, "Value", INTERVAL, "Query minus value [95%]"]
PAPER_NOTE = (
    "The paper prints no values: its axis runs from 4 to 12; query moves more than value, later layers more than earlier ones."
)
STYLE = {
    "query": {"color": PALETTE[2], "marker": "^", "linestyle": "-"},
    "value": {"color": PALETTE[1], "marker": "s", "linestyle": "--"},
}


def build(asked: Asked) -> list[Table]:
    """One line a layer: norms of query's and value's d, and query minus value, seed by seed."""
    tables = []
    for name, (title, cell) in MEASURED.items():
        found = analysis.of_runs(name, asked.results, cell)
        notes = [PAPER_NOTE, "Median over seeds ± standard deviation; difference: mean over seeds, 95% interval (Student's t)."]
        if found:
            notes.append(
                f"Rank {found['rank']}: before training every norm is {found['initial']:.2f}. Adapters of the best epoch."
            )
        if own := {"figure3_mini": miniature.NOTE, "figure3_minilm": glue_minilm.NOTE}.get(name):
            notes.insert(0, own)
        notes += analysis.said(found)
        rows = by_layer.rows([found["norms"][target] for target in STYLE], 2) if found else [[DASH] * len(COLUMNS)]
        tables.append(Table(name, title, COLUMNS, rows, notes))
    return tables


def draw(asked: Asked, folder: Path) -> list[Path]:
    """figure3, figure3_mini and figure3_minilm, each only where it has been measured."""
    written = []
    for name, (title, cell) in MEASURED.items():
        found = analysis.of_runs(name, asked.results, cell)
        if found is None:
            clear(folder / name)
            continue
        heading = "\n".join([title, f"rank {found['rank']}, {median_over([len(found['seeds'])])}", *analysis.said(found)])
        level = {"y": found["initial"], "linestyle": ":", "linewidth": 1.0, "label": "before training"}
        norms = {target: (found["norms"][target], style) for target, style in STYLE.items()}
        written += by_layer.draw(folder / name, heading, norms, "$||d||_2$ (dimensionless)", level, dots=False)
    return written


@decides("query_moves_more", "later_layers_move_more")
def _magnitudes(claim: Claim, asked: Asked) -> list[Line]:
    lines = []
    for name, (_, cell) in MEASURED.items():
        found, parts = analysis.decisive(name, asked.results, cell), [Part("", [])]
        if found:
            query, value = (over_layers(found["norms"][t], claim.id == "later_layers_move_more") for t in ("query", "value"))
            gaps = [a - b for a, b in zip(query, value, strict=True)]
            parts = [Part("query - value", gaps, 1, 2)]
            if claim.id == "later_layers_move_more":
                parts = [Part("query", query, 1, 2), Part("value", value, 1, 2)]
        if name == "figure3":
            lines.append(decide("RTE, RoBERTa-large (norm)", claim.paper, parts, "better"))
        else:
            source = miniature.LABEL if name == "figure3_mini" else "STS-B, MiniLM"
            lines.append(miniature.decide(claim, parts, "better", claim.paper, f"{source} (norm)"))
    return lines
