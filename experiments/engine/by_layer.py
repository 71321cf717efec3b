"""Two series of saved adapters layer by layer, seed by seed, as rows and as a picture (Figures 3 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.engine.aggregate import paired, summarise
from experiments.engine.plots import PALETTE, figure, legend_below, save, series
from experiments.engine.render import interval, number, signed

Values = Sequence[Sequence[float]]  # by seed, then by layer


def line(label: str, sides: Sequence[Sequence[float]], digits: int) -> list[str]:
    """Median and interval of both series over seeds, and the mean difference of the first to the second."""
    summaries = [summarise(values) for values in sides]
    texts = [text for of in summaries for text in (number(of, digits=digits), interval(of, digits=digits))]
    return [label, *texts, signed(paired(*sides), digits=digits)]


def rows(sides: Sequence[Values], digits: int) -> list[list[str]]:
    """One row a layer."""
    layers = range(len(sides[0][0]))
    return [line(str(layer), [[seed[layer] for seed in values] for values in sides], digits) for layer in layers]


def draw(stem: Path, title: str, found: Mapping[str, tuple[Values, dict]], axis: str, level: dict, dots: bool) -> list[Path]:
    """found: label to values and style. level: a horizontal line; dots: whether every seed is shown."""
    canvas, axes = figure(width=5.0, height=3.4)
    for shift, (label, (values, style)) in zip((-0.04, 0.04), found.items(), strict=True):
        layers = list(range(len(values[0])))
        scores = [summarise([seed[layer] for seed in values]) for layer in layers]
        series(axes, [layer + shift for layer in layers], scores, style, label, dots=dots)
    axes.axhline(**{"color": PALETTE[0], **level})
    axes.set_xticks(layers if len(layers) < 13 else layers[::5])
    axes.set_xlabel("Layer")
    axes.set_ylabel(axis)
    axes.set_title(title, fontsize=7)
    legend_below(axes)
    return save(canvas, stem)
