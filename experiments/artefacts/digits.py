"""The embedded default: the paper's Table 5 protocol on UCI digits, as a table, a picture and a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.engine import miniature
from experiments.engine.aggregate import common, paired, sources, summarise, summarise_records, unlike
from experiments.engine.plots import METHOD_STYLE, clear, figure, median_over, save
from experiments.engine.render import Table, signed
from experiments.engine.rows import Asked, Entry, given, n, over_seeds, rows, scores, trained
from vera.records.record import Record

METHODS = {
    "head": "Head only",
    "full": "Full",
    "bitfit": "BitFit",
    "adapter_p": "AdapterP",
    "lora": "LoRA r=8",
    "lora_fa": "LoRA-FA r=8",
    "vera": "VeRA r=256",
}
AGREE_POINTS = 1.0  # mean difference over common seeds, in points of accuracy


def records(asked: Asked) -> dict[str, Sequence[Record]]:
    """The digits records of every method, of the seeds that all have."""
    return {method: entry.records for method, entry in zip(METHODS, entries(asked), strict=True)}


def entries(asked: Asked, on: Sequence[str] = miniature.OVERRIDES, methods: Iterable[str] = METHODS) -> list[Entry]:
    """A row a method on one backbone, of the seeds that all have."""
    return asked.alike([asked.entry([METHODS[method]], [*on, f"method={method}"]) for method in methods])


def build(asked: Asked) -> list[Table]:
    """Accuracy on the digits 5-9 after ten images a class."""
    searched = (
        "Learning rates were chosen by the accuracy on these evaluation images, on seeds that are not reported: 100-103 "
        "(BitFit, AdapterP and LoRA-FA: 100 and 101); conf/recipe says which rates were tried."
    )
    return [scored(asked, "digits", "UCI digits in the protocol of Table 5", entries(asked), "d=128, 4 layers", searched)]


def scored(asked: Asked, name: str, title: str, found: list[Entry], shape: str, searched: str) -> Table:
    """The table of such rows. shape: of the backbone; searched: how the rates were chosen."""
    columns = {"Trained": trained, "Bytes": lambda entry: f"{entry.records[0].parameters.adapter_bytes:,}", "n": n}
    columns |= scores(asked.stat)
    heads = {record.parameters.head for entry in found for record in entry.records}
    notes = [
        "Accuracy in percent on the UCI digits 5-9: 10 training images a class, all others for evaluation; a ViT pretrained "
        f"on the digits 0-4 ({shape}). {over_seeds(asked.stat)}.",
        "Trainable parameters and bytes without the head, which every method trains as well"
        + "".join(f" ({head} parameters)" for head in heads)
        + ".",
        *asked.searched(searched),
        miniature.ALIKE,
    ]
    return Table(name, title, ["Method", *columns], rows(found, columns), notes)


def verdict(found: dict[str, Sequence[Record]]) -> str:
    """The demo's promise, in one honest sentence."""
    if not (found["lora"] and found["vera"]):
        return "VeRA and LoRA cannot be compared yet: runs are missing."
    if apart := unlike([*found["lora"], *found["vera"]]):
        return f"VeRA and LoRA are not compared: their runs differ in {', '.join(apart)}."
    lora, vera = (summarise_records(found[method]) for method in ("lora", "vera"))
    if vera.collapsed or lora.collapsed:
        return f"VeRA and LoRA are not compared: {vera.collapsed} and {lora.collapsed} of their seeds have collapsed."
    gap = 100 * (vera.median - lora.median)
    fewer = found["lora"][0].parameters.adapter / found["vera"][0].parameters.adapter
    relation = f"{abs(gap):.1f} points {'above' if gap >= 0 else 'below'} LoRA's"
    holds = "as" if gap >= -4 and fewer >= 5 else "NOT as"
    return (
        f"VeRA's median is {relation} with {fewer:.1f} times fewer trainable parameters: {holds} the paper leads one to expect."
    )


def compare(mine: dict[str, Sequence[Record]], committed: dict[str, Sequence[Record]]) -> list[str]:
    """This machine's runs against the repository's: what they were not made of alike, then a line a method, seed by seed."""
    both = [[record for method in METHODS for record in found[method]] for found in (mine, committed)]
    here, there = (sources(records) for records in both)
    lines = [
        f"another {name} ({_several(here[name])} here, {_several(there[name])} in the repository): what follows repeats "
        "nothing, so it neither agrees nor differs"
        for name in here
        if all(both) and here[name] != there[name]
    ]
    different = bool(lines)
    for method, label in METHODS.items():
        if any(record.collapsed for record in mine[method]):
            lines.append(f"{label}: a seed has collapsed here, so there is no mean to compare")
            continue
        ours, theirs = common(mine[method], committed[method], compared=False)  # the first lines say what is unlike
        if not ours:
            lines.append(f"{label}: nothing to compare with")
            continue
        medians = f"{100 * statistics.median(ours):.1f} here, {100 * statistics.median(theirs):.1f} in the repository"
        lines.append(f"{label}: {medians}: {_agreement(ours, theirs, different)}")
    return lines


def _agreement(ours: list[float], theirs: list[float], different: bool) -> str:
    if ours == theirs:
        return "identical, seed by seed"
    difference = paired([100 * score for score in ours], [100 * score for score in theirs])
    found = f"{signed(difference)} seed by seed (mean of {difference.n})"
    if different:
        return found
    agrees = "agrees" if abs(difference.mean) <= AGREE_POINTS else "DIFFERS"
    return f"{found}: {agrees} (a mean within {AGREE_POINTS:.1f} points counts as agreement)"


def _several(values: set[str]) -> str:
    return ", ".join(sorted(values))


def draw(asked: Asked, folder: Path) -> list[Path]:
    """Score against trainable parameters, digits.pdf and digits.png; none where there is nothing to draw."""
    found = {method: runs for method, runs in records(asked).items() if runs}
    if not found:
        return clear(folder / "digits")
    canvas, axes = figure(width=5.0, height=3.4)
    collapsed = 0
    for method, runs in found.items():
        scores = summarise([100 * record.score() for record in runs])
        collapsed += scores.collapsed
        if not math.isfinite(scores.median):
            continue
        parameters = runs[0].parameters.adapter
        color, marker = METHOD_STYLE[method]["color"], METHOD_STYLE[method]["marker"]
        label = f"{METHODS[method]} ({parameters:,})"
        if parameters == 0:
            axes.axhline(scores.median, color=color, linestyle="--", linewidth=1.2, label=f"{label}: the median alone")
            continue
        axes.plot([0.93 * parameters] * scores.n, scores.values, ".", color=color, markersize=5, alpha=0.6)
        ends = None if scores.collapsed else scores.interval
        errors = None if ends is None else [[scores.median - ends[0]], [ends[1] - scores.median]]
        axes.errorbar(
            [parameters], [scores.median], yerr=errors, color=color, marker=marker, markersize=7, capsize=4, label=label
        )
    axes.set_xscale("log")
    axes.set_xlabel("Trainable parameters (without the head)")
    axes.set_ylabel("Accuracy on digits 5-9 (%)")
    said = median_over([len(runs) for runs in found.values()], collapsed)
    axes.set_title("\n".join([f"Every seed, {said}", *given(asked)]), fontsize=7)
    axes.legend(
        title="method (trainable parameters)", fontsize=7, title_fontsize=7, loc="center right", bbox_to_anchor=(1.0, 0.38)
    )
    return save(canvas, folder / "digits")
