"""Figure 3: Euclidean norm of the trained d by layer, query against value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.engine import analysis, miniature
from experiments.engine.aggregate import Cells, paired, summarise
from experiments.engine.claims import Claim, decides, over_layers
from experiments.engine.plots import PALETTE, figure, legend_below, save
from experiments.engine.published import choice
from experiments.engine.render import DASH, INTERVAL, Table, interval, number, signed
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
}
PAPER_NOTE = (
    "The paper prints no values: its axis runs from 4 to 12; query moves more than value, later layers more than earlier ones."
)
STYLE = {
    "query": {"color": PALETTE[2], "marker": "^", "linestyle": "-"},
    "value": {"color": PALETTE[1], "marker": "s", "linestyle": "--"},
}


def build(cells: Cells, overrides: Sequence[str] = (), stat: str | None = None) -> list[Table]:
    """One line a layer: norms of query's and value's d, and query minus value, seed by seed."""
    tables = []
    for name, (title, _) in MEASURED.items():
        found, rows = analysis.read(name), []
        for layer in range(found["layers"]) if found else ():
            norms = {target: [seed[layer] for seed in found["norms"][target]] for target in STYLE}
            summaries = {target: summarise(values) for target, values in norms.items()}
            rows.append(
                [
                    str(layer),
                    *(
                        text
                        for summary in summaries.values()
                        for text in (number(summary, digits=2), interval(summary, digits=2))
                    ),
                    signed(paired(norms["query"], norms["value"]), digits=2),
                ]
            )
        notes = [PAPER_NOTE, "Median over seeds ± standard deviation; difference: mean over seeds, 95% interval (Student's t)."]
        if found:
            notes.append(
                f"Rank {found['rank']}: before training every norm is {found['initial']:.2f}. Adapters of the best epoch."
            )
        if name.endswith("_mini"):
            notes.insert(0, miniature.NOTE)
        columns = ["Layer", "Query", INTERVAL, "Value", INTERVAL, "Query minus value [95%]"]
        tables.append(Table(name, title, columns, rows or [[DASH] * len(columns)], notes))
    return tables


def draw(cells: Cells, folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """figure3 and figure3_mini as pdf and png, each only where it has been measured."""
    written = []
    for name, (title, _) in MEASURED.items():
        found = analysis.read(name)
        if found is None:
            continue
        canvas, axes = figure(width=5.0, height=3.4)
        layers = list(range(found["layers"]))
        for target, style in STYLE.items():
            scores = [summarise([seed[layer] for seed in found["norms"][target]]) for layer in layers]
            shift = 0.04 if target == "value" else -0.04
            at = [layer + shift for layer in layers]
            axes.plot(at, [score.median for score in scores], **style, label=target, linewidth=1.4, markersize=6)
            for x, score in zip(at, scores, strict=True):
                if score.interval is not None:
                    axes.plot([x, x], score.interval, color=style["color"], linewidth=1.2)
        axes.axhline(found["initial"], color=PALETTE[0], linestyle=":", linewidth=1.0, label="before training")
        axes.set_xticks(layers if len(layers) < 13 else layers[::5])
        axes.set_xlabel("Layer")
        axes.set_ylabel("$||d||_2$ (dimensionless)")
        axes.set_title(
            f"{title}\nrank {found['rank']}, median over seeds (n={len(found['seeds'])}), range of the seeds", fontsize=7
        )
        legend_below(axes)
        written += save(canvas, folder / name)
    return written


@decides("query_moves_more", "later_layers_move_more")
def _magnitudes(claim: Claim, cells: Cells) -> list[Line]:
    lines = []
    for name, source, small in (("figure3", "RTE, RoBERTa-large (norm)", False), ("figure3_mini", miniature.LABEL, True)):
        found, parts = analysis.read(name), [Part("", [])]
        if found:
            query, value = (over_layers(found["norms"][t], claim.id == "later_layers_move_more") for t in ("query", "value"))
            gaps = [a - b for a, b in zip(query, value, strict=True)]
            parts = [Part("query - value", gaps, 1, 2)]
            if claim.id == "later_layers_move_more":
                parts = [Part("query", query, 1, 2), Part("value", value, 1, 2)]
        lines.append(decide(source, claim.paper, parts, "better", miniature=small))
    return lines
