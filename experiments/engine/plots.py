"""How figures look: readable in print and for the colour-blind, the same bytes from the same records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from experiments.engine.aggregate import Summary, median_interval

PALETTE = ["#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"]  # Okabe and Ito

METHOD_STYLE = {  # colour, marker and line, so that print without colour tells them apart as well
    "head": {"color": PALETTE[0], "marker": "o", "linestyle": ":"},
    "full": {"color": PALETTE[4], "marker": "D", "linestyle": "-."},
    "lora": {"color": PALETTE[1], "marker": "s", "linestyle": "--"},
    "vera": {"color": PALETTE[2], "marker": "^", "linestyle": "-"},
    "bitfit": {"color": PALETTE[3], "marker": "v", "linestyle": ":"},
    "adapter_p": {"color": PALETTE[5], "marker": "P", "linestyle": "--"},
    "lora_fa": {"color": PALETTE[6], "marker": "X", "linestyle": "-."},
}
# Where a name may stand beside its point: offsets in points, and which of its ends is there.
BESIDE = [
    (5, 3, "left"),
    (-5, 3, "right"),
    (5, -9, "left"),
    (-5, -9, "right"),
    (5, 12, "left"),
    (-5, 12, "right"),
    (0, 8, "center"),
]


def median_over(counts: Sequence[int], collapsed: int = 0) -> str:
    """What points and bars show of cells with so many seeds: "median over seeds (n=3 to 5), range of the seeds". collapsed: how
    many of the runs came to nothing, which a line of its own says."""
    low, high = min(counts), max(counts)
    whole = [median_interval(range(n)) == (0, n - 1) for n in counts]
    bar = "range of the seeds" if all(whole) else "95% interval of the median"
    bar += ", of fewer than nine seeds their range" if any(whole) and not all(whole) else ""
    lost = f"\nnot shown: collapsed runs ({collapsed}), and ranges with one" if collapsed else ""
    return f"median over seeds ({f'n={low}' if low == high else f'n={low} to {high}'}), {bar}{lost}"


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of width x height inches with one set of axes."""
    made, (axes,) = panels(width, height, 1)
    return made, axes


def panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """A figure of width x height inches with `count` sets of axes side by side."""
    matplotlib.rcParams.update(
        {
            "font.size": 9,
            "pdf.fonttype": 42,
            "pdf.compression": 0,
            "svg.fonttype": "none",
            "svg.hashsalt": "vera",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    every = [made.add_subplot(1, count, index + 1) for index in range(count)]
    for axes in every:
        axes.grid(True, alpha=0.25, linewidth=0.6)
    return made, every


def series(axes: Axes, at: Sequence[float], scores: Sequence[Summary], style: dict, label: str, dots: bool = True) -> None:
    """A line through the seeds' medians, at each point their interval and, with `dots`, every seed."""
    axes.plot(at, [score.median for score in scores], **style, label=label, linewidth=1.4, markersize=6)
    for x, score in zip(at, scores, strict=True):
        if dots:
            axes.plot([x] * score.n, score.values, ".", color=style["color"], markersize=4, alpha=0.5)
        if score.interval is not None:
            axes.plot([x, x], score.interval, color=style["color"], linewidth=1.2)


def name_points(axes: Axes, at: Sequence[float], scores: Sequence[Summary], names: Sequence[str]) -> None:
    """Each name beside its point, where it covers the least of other names, points and ranges. Call it when all is drawn."""
    axes.figure.canvas.draw()
    place, taken = axes.transData.transform, []
    for x, score in zip(at, scores, strict=True):
        ends = [end for end in score.interval or () if math.isfinite(end)] + [score.median]
        (left, bottom), (_, top) = place((x, min(ends))), place((x, max(ends)))
        taken.append(Bbox.from_extents(left - 2, bottom - 4, left + 2, top + 4))
    for x, score, name in zip(at, scores, names, strict=True):
        text = axes.annotate(name, (x, score.median), xytext=(0, 0), textcoords="offset points", fontsize=7)
        covered = {}
        for dx, dy, side in BESIDE:
            text.set(position=(dx, dy), horizontalalignment=side)
            box = text.get_window_extent()
            common = (Bbox.intersection(box, other) for other in taken)
            covered[dx, dy, side] = sum(part.width * part.height for part in common if part is not None)
        dx, dy, side = min(BESIDE, key=lambda spot: covered[spot])
        text.set(position=(dx, dy), horizontalalignment=side)
        taken.append(text.get_window_extent())


def legend_below(axes: Axes) -> None:
    """One line under the axes, where it covers no data."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, frameon=False)


def _files(stem: Path) -> list[Path]:
    return [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png", "svg")]


def clear(stem: Path) -> list[Path]:
    """No picture: what `save` wrote there before is removed, since it would be of other records."""
    for path in _files(stem):
        path.unlink(missing_ok=True)
    return []


def save(made: Figure, stem: Path) -> list[Path]:
    """stem.pdf for print, stem.png, and stem.svg for the report, without dates or versions in them."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    made.draw_without_rendering()  # a first layout may leave an axis's label outside, which the next one brings in
    pdf, png, svg = made_paths = _files(stem)
    made.savefig(pdf, metadata={"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None})
    made.savefig(png, dpi=150, metadata={"Software": None})
    made.savefig(svg, metadata={"Date": None, "Creator": None})
    return made_paths
