"""Figure 2: accuracy against trainable parameters over the ranks of VeRA and LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.engine import miniature
from experiments.engine.claims import Claim, by_seed, decides
from experiments.engine.plots import METHOD_STYLE, clear, figure, legend_below, median_over, save, series
from experiments.engine.published import figure as published
from experiments.engine.render import Table
from experiments.engine.rows import Asked, Entry, given, n, over_seeds, rows, scores, trained
from experiments.engine.verdicts import Line, Part, decide

RANKS = {str(row.method): row.grid["method.rank"] for row in published("figure2").rows}
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
        "Figure 2: RTE against trainable parameters, RoBERTa-large",
        ["model=roberta_large", "task=rte"],
        "Accuracy on RTE (%)",
        [
            "The paper prints no values for this figure; its axis runs from 83 to 86, and its text puts VeRA four points above "
            "LoRA at equal size."
        ],
    ),
    Setting(
        "figure2_mini",
        f"Figure 2, {miniature.LABEL}: accuracy against trainable parameters",
        miniature.OVERRIDES,
        "Accuracy on digits 5-9 (%)",
        [miniature.NOTE, miniature.SCORE, miniature.ALIKE],
    ),
]
ALPHA_NOTE = (
    "LoRA keeps alpha=16 at every rank, as its authors' scripts have it, and each method keeps the learning rates of its main "
    "experiment (LoRA's rank 8, VeRA's rank 256): other ranks may do better with their own."
)


def _entries(setting: Setting, asked: Asked) -> list[Entry]:
    entries = [
        asked.entry([method, str(rank)], [*setting.overrides, f"method={method}", f"method.rank={rank}"])
        for method, ranks in RANKS.items()
        for rank in ranks
    ]
    return asked.alike(entries) if setting.overrides is miniature.OVERRIDES else entries


def build(asked: Asked) -> list[Table]:
    """One line for each method and rank, at the paper's size and in miniature."""
    columns = {"Trained": trained, "n": n, **scores(asked.stat)}
    tables = []
    for setting in SETTINGS:
        made = [[LABELS[method], *row] for method, *row in rows(_entries(setting, asked), columns)]
        notes = [*setting.notes, f"{over_seeds(asked.stat)}.", *asked.searched(ALPHA_NOTE)]
        rules = [len(RANKS["vera"])]
        tables.append(Table(setting.name, setting.title, ["Method", "Rank", *columns], made, notes, rules))
    return tables


def draw(asked: Asked, folder: Path) -> list[Path]:
    """figure2 and figure2_mini, each only where there are records."""
    written = []
    for setting in SETTINGS:
        found = [entry for entry in _entries(setting, asked) if entry.records]
        if not found:
            clear(folder / setting.name)
            continue
        canvas, axes = figure(width=5.0, height=3.6)
        for method in RANKS:
            points = [entry for entry in found if entry.labels[0] == method]
            if not points:
                continue
            at, values = [entry.parameters for entry in points], [entry.scaled() for entry in points]
            style = METHOD_STYLE[method]
            series(axes, at, values, style, LABELS[method])
            place = {"xytext": (5, -11), "ha": "left"} if method == "lora" else {"xytext": (-5, 4), "ha": "right"}
            for entry, x, value in zip(points, at, values, strict=True):
                text = {"textcoords": "offset points", "fontsize": 7, "color": style["color"], **place}
                axes.annotate(entry.labels[1], (x, value.median), **text)
        axes.set_xscale("log")
        axes.set_xlabel("Trainable parameters (without the head); ranks beside the points")
        axes.set_ylabel(setting.axis)
        said = median_over([len(entry.records) for entry in found], sum(entry.summary().collapsed for entry in found))
        axes.set_title("\n".join([setting.title, f"every seed, {said}", *given(asked)]), fontsize=7)
        legend_below(axes)
        written += save(canvas, folder / setting.name)
    return written


@decides("equal_size")
def _equal_size(claim: Claim, asked: Asked) -> list[Line]:
    def part(base: Sequence[str], vera: int, lora: int) -> Part:
        sides = ([*base, "method=vera", f"method.rank={vera}"], [*base, "method=lora", f"method.rank={lora}"])
        return Part(f"VeRA r={vera} - LoRA r={lora}", list(by_seed(asked, *sides).values()))

    full = [part(["model=roberta_large", "task=rte"], 1024, 1)]
    small = [part(miniature.OVERRIDES, vera, lora) for vera, lora in ((64, 1), (256, 2))]
    return [
        decide("RTE, RoBERTa-large (points)", claim.paper, full, "better"),
        miniature.decide(claim, small, "better", claim.paper, f"{miniature.SOURCE}; VeRA has 25% fewer parameters"),
    ]
