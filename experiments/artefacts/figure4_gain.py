"""Figure 4: performance gain per thousand trainable parameters over training the head alone (appendix B)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.engine import miniature
from experiments.engine.aggregate import Summary, epoch_of, pairs, summarise
from experiments.engine.claims import Claim, decides
from experiments.engine.plots import PALETTE, clear, figure, median_over, save
from experiments.engine.published import choice
from experiments.engine.published import figure as published_figure
from experiments.engine.render import DASH, INTERVAL, Table, interval, number
from experiments.engine.rows import Asked, Entry, given, over_seeds, trained
from experiments.engine.verdicts import Line, Part, decide
from vera.records.record import Record

FORMULA = (
    "Gain = 100 x (accuracy of the method / accuracy of the head alone) / trainable parameters in thousands, as the paper's "
    "caption has it: a ratio of accuracies, which favours few parameters whatever they achieve."
)
COLUMNS = ["Method", "Trained", "n", "Gain (% per 1K)", INTERVAL, "Accuracy", "Head alone", "Paper's gain"]


@dataclass(frozen=True)
class Setting:
    """baseline: what makes the head-only run with VeRA's hyperparameters. methods: label to the method's overrides."""

    name: str
    title: str
    overrides: list[str]
    baseline: list[str]
    methods: dict[str, list[str]]
    notes: list[str]


FULL = Setting(
    "figure4",
    "Figure 4: gain per 1K trainable parameters, RTE, RoBERTa-large",
    ["model=roberta_large", "task=rte"],
    choice("figure4", "head"),
    {"LoRA": choice("figure4", "lora"), "VeRA": choice("figure4", "vera")},
    ["The paper prints the bars' values and not the baseline's accuracy."],
)
MINIATURE = Setting(
    "figure4_mini",
    f"Figure 4, {miniature.LABEL}: gain per 1K trainable parameters",
    miniature.OVERRIDES,
    choice("figure4", "head", "mini"),
    {label: choice("figure4", m, "mini") for label, m in (("Full", "full"), ("LoRA r=8", "lora"), ("VeRA r=256", "vera"))},
    [
        miniature.NOTE,
        miniature.SCORE,
        miniature.ALIKE,
        "Head alone: with VeRA's rate for the head, as in the paper; the digits table has it at the rate searched for it.",
    ],
)


def by_seed(records: Sequence[Record], baseline: Sequence[Record], select: str = "best") -> dict[int, float]:
    """The formula for each of their `pairs`, by seed; nan over a head that collapsed or got nothing right."""

    def gain(score: float, over: float, parameters: int) -> float:
        return 100 * (score / over) / (parameters / 1000) if math.isfinite(over) and over else math.nan

    both = pairs(records, baseline)
    return {r.run.seed: gain(r.score(select=select), h.score(select=select), r.parameters.adapter) for r, h in both}


def _gains(setting: Setting, asked: Asked) -> Iterator[tuple[str, Entry, Entry, Summary | None]]:
    """Label, the method's entry, the head's alone, and the gain of every method."""
    baseline = asked.entry([], [*setting.overrides, *setting.baseline])
    entries = [asked.entry([label], [*setting.overrides, *method]) for label, method in setting.methods.items()]
    if setting is MINIATURE:
        baseline, *entries = asked.alike([baseline, *entries])
    for label, entry in zip(setting.methods, entries, strict=True):
        gains = by_seed(entry.records, baseline.records, epoch_of(entry.stat))
        known = gains and not any(map(math.isnan, gains.values()))
        sides = [
            replace(of, records=[r for r in of.records if r.run.seed in gains]) if gains else of for of in (entry, baseline)
        ]
        yield label, *sides, summarise(list(gains.values())) if known else None


def published() -> dict[str, float]:
    """The printed bars by label."""
    return {row.label: row.value for row in published_figure("figure4").rows if row.value is not None}


def build(asked: Asked) -> list[Table]:
    """The paper's bars with ours beside them, and the same formula in miniature."""
    tables = []
    for setting in (FULL, MINIATURE):
        printed = {label: f"{value:.2f}" for label, value in published().items()} if setting is FULL else {}
        rows = []
        for label, entry, baseline, gain in _gains(setting, asked):
            shown = [DASH] * 3
            if gain is not None:
                digits = 2 if gain.median >= 0.1 else 4
                shown = [str(gain.n), number(gain, digits=digits, stat=entry.stat), interval(gain, digits=digits)]
            accuracies = [of.printed() if of.records else DASH for of in (entry, baseline)]
            rows.append([label, trained(entry) if entry.records else DASH, *shown, *accuracies, printed.pop(label, DASH)])
        rows = [[label, *[DASH] * 6, value] for label, value in printed.items()] + rows
        each = "each seed against the head alone of that seed."
        notes = [*setting.notes, FORMULA, f"{over_seeds(asked.stat)}, {each}"]
        tables.append(Table(setting.name, setting.title, COLUMNS, rows, notes))
    return tables


def draw(asked: Asked, folder: Path) -> list[Path]:
    """figure4 (always: the paper's bars are printed) and figure4_mini (where there are records), as pdf and png."""
    written = []
    for setting in (FULL, MINIATURE):
        ours = {label: gain for label, _, _, gain in _gains(setting, asked) if gain is not None}
        paper = published() if setting is FULL else {}
        labels = list(dict.fromkeys([*paper, *ours]))
        if not labels:
            clear(folder / setting.name)
            continue
        canvas, axes = figure(width=5.0, height=3.4)
        bars, heading = {}, setting.title
        if paper:
            bars["paper, as printed"] = (paper, {"color": "white", "edgecolor": PALETTE[0], "hatch": "///"})
        if ours:
            lost = sum(gain.collapsed for gain in ours.values())
            heading += f"\nours: {median_over([gain.n for gain in ours.values()], lost)}"
            heights = {method: gain.median for method, gain in ours.items() if math.isfinite(gain.median)}
            bars["ours"] = (heights, {"color": PALETTE[2]})
        width = 0.7 / len(bars)
        for index, (name, (values, style)) in enumerate(bars.items()):
            at = [labels.index(label) + (index - (len(bars) - 1) / 2) * width for label in values]
            axes.bar(at, values.values(), width, label=name, **style)
            for x, (label, height) in zip(at, values.items(), strict=True):
                top = height
                if name == "ours" and ours[label].interval is not None and not ours[label].collapsed:
                    low, top = ours[label].interval
                    axes.plot([x, x], [low, top], color=PALETTE[0], linewidth=1.2)
                axes.annotate(_short(height), (x, top), textcoords="offset points", xytext=(0, 3), ha="center", fontsize=7)
        axes.set_xticks(range(len(labels)), [label.replace(" (", "\n(") for label in labels], fontsize=7)
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.15)
        axes.set_xlabel("Method")
        axes.set_ylabel("Gain (% per 1K parameters)")
        axes.set_title("\n".join([heading, *given(asked)]), fontsize=7)
        axes.legend(fontsize=7, loc="upper left")
        written += save(canvas, folder / setting.name)
    return written


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.2f}"


@decides("gain")
def _more_per_parameter(claim: Claim, asked: Asked) -> list[Line]:
    lines, printed = [], published()
    paper = f"VeRA {printed['VeRA']:.2f}, LoRA {printed['LoRA']:.2f} (% per 1K)"
    for setting in (FULL, MINIATURE):
        baseline = asked.records([*setting.overrides, *setting.baseline])
        vera, lora = (by_seed(asked.records([*setting.overrides, f"method={method}"]), baseline) for method in ("vera", "lora"))
        part = Part("VeRA - LoRA", [vera[seed] - lora[seed] for seed in vera if seed in lora], 1, 2)
        if setting is FULL:
            lines.append(decide("RTE, RoBERTa-large (% per 1K)", paper, [part], "better"))
        else:
            lines.append(miniature.decide(claim, [part], "better", paper, f"{miniature.LABEL} (% per 1K)"))
    return lines
