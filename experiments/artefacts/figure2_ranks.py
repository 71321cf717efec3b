"""Figure 2: accuracy against trained parameters over the ranks of VeRA and LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.engine import miniature
from experiments.engine.aggregate import Cells, cell_records, summarise, summarise_records
from experiments.engine.claims import Claim, by_seed, decides
from experiments.engine.plots import METHOD_STYLE, figure, legend_below, save, seeds
from experiments.engine.published import figure as published
from experiments.engine.render import DASH, INTERVAL, Table, interval, number
from experiments.engine.verdicts import Line, Part, decide
from vera.runs.record import Record

RANKS = {row.method: row.grid["method.rank"] for row in published("figure2").rows}
LABELS = {"vera": "VeRA", "lora": "LoRA"}


@dataclass(frozen=True)
class Setting:
    """One version of the figure: its file's name, its runs and what its y axis shows."""

    name: str
    title: str
    overrides: list[str]
    axis: str
    notes: list[str]


SETTINGS = [
    Setting(
        "figure2",
        "Figure 2: RTE against trained parameters, RoBERTa-large",
        ["model=roberta_large", "task=rte"],
        "Accuracy on RTE (%)",
        [
            "The paper prints no values for this figure; its axis runs from 83 to 86, and its text puts VeRA four points above "
            "LoRA at equal size."
        ],
    ),
    Setting(
        "figure2_mini",
        f"Figure 2, {miniature.LABEL}: accuracy against trained parameters",
        miniature.OVERRIDES,
        "Accuracy on digits 5-9 (%)",
        [miniature.NOTE, miniature.SCORE],
    ),
]
ALPHA_NOTE = (
    "LoRA keeps alpha=16 at every rank, as its authors' scripts have it, and each method keeps the learning rates of its main "
    "experiment (LoRA's rank 8, VeRA's rank 256): other ranks may do better with their own."
)


def _found(setting: Setting, cells: Cells, overrides: Sequence[str]) -> dict[tuple[str, int], list[Record]]:
    return {
        (method, rank): cell_records(cells, [*setting.overrides, f"method={method}", f"method.rank={rank}", *overrides])
        for method, ranks in RANKS.items()
        for rank in ranks
    }


def build(cells: Cells, overrides: Sequence[str] = (), stat: str | None = None) -> list[Table]:
    """One line for each method and rank, at the paper's size and in miniature."""
    tables = []
    for setting in SETTINGS:
        rows, rules = [], []
        for (method, rank), records in _found(setting, cells, overrides).items():
            if rank == 1 and rows:
                rules.append(len(rows))
            line = [LABELS[method], str(rank)]
            if not records:
                rows.append([*line, *[DASH] * 5])
                continue
            best, last = summarise_records(records), summarise_records(records, select="last")
            trained = f"{records[0].parameters.adapter:,}"
            rows.append([*line, trained, str(best.n), number(best, 100), interval(best, 100), number(last, 100)])
        columns = ["Method", "Rank", "Trained", "n", "Best epoch", INTERVAL, "Last epoch"]
        notes = [*setting.notes, "Median over seeds ± standard deviation.", ALPHA_NOTE]
        tables.append(Table(setting.name, setting.title, columns, rows, notes, rules))
    return tables


def draw(cells: Cells, folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """figure2 and figure2_mini as pdf and png, each only where there are records."""
    written = []
    for setting in SETTINGS:
        found = {key: records for key, records in _found(setting, cells, overrides).items() if records}
        if not found:
            continue
        canvas, axes = figure(width=5.0, height=3.6)
        for method in RANKS:
            points = [(rank, records) for (name, rank), records in found.items() if name == method]
            if not points:
                continue
            parameters = [records[0].parameters.adapter for _, records in points]
            scores = [summarise([100 * record.score() for record in records]) for _, records in points]
            style = METHOD_STYLE[method]
            for at, score in zip(parameters, scores, strict=True):
                axes.plot([at] * score.n, score.values, ".", color=style["color"], markersize=4, alpha=0.5)
                if score.interval is not None:
                    axes.plot([at, at], score.interval, color=style["color"], linewidth=1.2)
            medians = [score.median for score in scores]
            axes.plot(parameters, medians, **style, label=LABELS[method], linewidth=1.4, markersize=6)
            below = method == "lora"
            for (rank, _), at, median in zip(points, parameters, medians, strict=True):
                axes.annotate(
                    str(rank),
                    (at, median),
                    textcoords="offset points",
                    xytext=(5, -11) if below else (-5, 4),
                    ha="left" if below else "right",
                    fontsize=7,
                    color=style["color"],
                )
        axes.set_xscale("log")
        axes.set_xlabel("Trained parameters (without the head)")
        axes.set_ylabel(setting.axis)
        count = seeds([len(records) for records in found.values()])
        axes.set_title(
            f"{setting.title}\nmedian over seeds ({count}), range of the seeds, every seed; numbers are ranks", fontsize=7
        )
        legend_below(axes)
        written += save(canvas, folder / setting.name)
    return written


@decides("equal_size")
def _equal_size(claim: Claim, cells: Cells) -> list[Line]:
    def part(base: Sequence[str], vera: int, lora: int) -> Part:
        sides = ([*base, "method=vera", f"method.rank={vera}"], [*base, "method=lora", f"method.rank={lora}"])
        return Part(f"VeRA r={vera} - LoRA r={lora}", list(by_seed(cells, *sides).values()))

    full = [part(["model=roberta_large", "task=rte"], 1024, 1)]
    small = [part(miniature.OVERRIDES, vera, lora) for vera, lora in ((64, 1), (256, 2))]
    return [
        decide("RTE, RoBERTa-large (points)", claim.paper, full, "better"),
        decide(f"{miniature.SOURCE}; VeRA has 25% fewer parameters", claim.paper, small, "better", miniature=True),
    ]
