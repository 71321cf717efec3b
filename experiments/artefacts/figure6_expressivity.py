"""Figure 6: fitting random 10 x 10 matrices with LoRA's and VeRA's parametrisations (appendix E), in full."""

from __future__ import annotations

from pathlib import Path

from experiments.engine import analysis
from experiments.engine.aggregate import Difference, paired, summarise
from experiments.engine.claims import Claim, decides
from experiments.engine.plots import METHOD_STYLE, clear, figure, legend_below, save
from experiments.engine.render import DASH, Table, interval, signed
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line

TITLE = "Figure 6: fitting random 10 x 10 matrices"
MARGIN = 0.05  # of the entries' variance; what this project calls equally well
COLUMNS = [
    "Trained",
    "LoRA r",
    "LoRA error",
    "95% interval",
    "VeRA r",
    "VeRA error",
    "95% interval",
    "VeRA minus LoRA",
    "Reading",
]
TAKES = (), "it shows fits of random matrices (results/analysis/figure6.json)"


def differences(found: dict) -> dict[int, Difference]:
    """VeRA's error minus LoRA's, matrix by matrix, at every parameter count that both have.

    The intervals hold together with 95% (Bonferroni), so that a reading of all counts at once is safe.
    """
    lora, vera = ({fit["parameters"]: fit["mse"] for fit in found[method]} for method in ("lora", "vera"))
    shared = sorted(lora.keys() & vera.keys())
    return {count: paired(vera[count], lora[count], 1 - 0.05 / len(shared)) for count in shared}


def reading(difference: Difference) -> str:
    """What one interval says about "equally well" within MARGIN."""
    low, high = difference.interval
    if low >= -MARGIN and high <= MARGIN:
        return "equal"
    if high < 0:
        return "VeRA better" + (" by more than the margin" if high < -MARGIN else "")
    if low > 0:
        return "LoRA better" + (" by more than the margin" if low > MARGIN else "")
    return "undecided"


def outcome(found: dict) -> tuple[str, str]:
    """Whether the fits are equally good: supported, not supported or undecided, and why."""
    readings = {count: reading(difference) for count, difference in differences(found).items()}
    worst = max(difference.interval[1] for difference in differences(found).values() if difference.interval)
    counts = f"{len(readings)} equal parameter counts"
    if set(readings.values()) == {"equal"}:
        return "supported", f"equal within {MARGIN} of the entries' variance at all {counts}"
    if worst <= MARGIN:
        unequal = ", ".join(f"{count} ({text})" for count, text in readings.items() if text != "equal")
        worse = f"VeRA is worse than LoRA by more than {MARGIN} of the entries' variance at none of {counts}"
        return "supported", f"{worse}; not equal at {unequal}"
    if any(text.startswith("LoRA better by more") for text in readings.values()):
        worse = ", ".join(str(count) for count, text in readings.items() if text.startswith("LoRA better by more"))
        return "not supported", f"LoRA is better by more than {MARGIN} of the entries' variance at {worse} parameters"
    return "undecided", f"an interval reaches beyond {MARGIN} of the entries' variance"


def verdict(found: dict) -> str:
    """The paper's two statements against the measurement, in one or two sentences."""
    word, reason = outcome(found)
    smallest_lora = min(fit["parameters"] for fit in found["lora"])
    below = [fit["parameters"] for fit in found["vera"] if fit["parameters"] < smallest_lora]
    return (
        f"{word.capitalize()}: {reason}. VeRA also has sizes below rank-1 LoRA's {smallest_lora} parameters: "
        f"{', '.join(map(str, below))}."
    )


def build(asked: Asked) -> list[Table]:
    """One line a parameter count; where both parametrisations have it, their difference."""
    found = analysis.read("figure6")
    if found is None:
        return [Table("figure6", TITLE, COLUMNS, [[DASH] * len(COLUMNS)])]
    fits = {method: {fit["parameters"]: fit for fit in found[method]} for method in ("lora", "vera")}
    both, rows = differences(found), []
    for count in sorted(fits["lora"].keys() | fits["vera"].keys()):
        row = [str(count)]
        for method in ("lora", "vera"):
            fit = fits[method].get(count)
            if fit is None:
                row += [DASH] * 3
                continue
            spread = summarise(fit["mse"])
            row += [str(fit["rank"]), f"{spread.mean:.3f}±{spread.std:.3f}", interval(_mean(fit["mse"]), digits=3)]
        rows.append(
            [*row, signed(both[count], digits=3) if count in both else DASH, reading(both[count]) if count in both else DASH]
        )
    agreement = [fit["starts_at_the_best"] for fit in found["vera"]]
    notes = [
        f"Mean squared error over {found['matrices']} matrices of independent standard normal entries (an empty fit has 1): "
        "mean ± standard deviation over matrices, 95% interval of the mean (Student's t).",
        "LoRA: P Q, 20 r parameters, of which r² are redundant. VeRA: X diag(d) Y diag(b), r + 10 parameters; X, Y random, "
        "frozen.",
        "LoRA at its best (truncated singular value decomposition); VeRA the best of "
        f"{found['starts']} Levenberg-Marquardt fits of {found['steps']} steps. The share of starts that reach the best one "
        f"falls from {max(agreement):.2f} to {min(agreement):.2f} with the rank, so VeRA's own best may be lower still.",
        "VeRA minus LoRA at equal counts, matrix by matrix; the intervals hold together with 95% (Bonferroni). Equal: inside "
        f"±{MARGIN} of the entries' variance.",
        verdict(found),
    ]
    return [Table("figure6", TITLE, COLUMNS, rows, notes)]


def _mean(errors: list[float]) -> Difference:
    """The mean over matrices with its interval: the difference to an exact fit."""
    return paired(errors, [0.0] * len(errors))


def draw(asked: Asked, folder: Path) -> list[Path]:
    """figure6 as pdf and png; none where it has not been measured."""
    found = analysis.read("figure6")
    if found is None:
        return clear(folder / "figure6")
    canvas, axes = figure(width=5.0, height=3.4)
    for method, label in (("lora", "LoRA (P Q)"), ("vera", "VeRA (X diag(d) Y diag(b))")):
        style = METHOD_STYLE[method]
        at = [fit["parameters"] for fit in found[method]]
        means = [_mean(fit["mse"]) for fit in found[method]]
        axes.plot(at, [mean.mean for mean in means], **style, label=label, linewidth=1.4, markersize=5)
        axes.fill_between(
            at, *zip(*(mean.interval for mean in means), strict=True), color=style["color"], alpha=0.25, linewidth=0
        )
    axes.axvline(20, color="0.5", linewidth=0.8, linestyle=":")
    axes.annotate(
        "rank-1 LoRA", (20, 0.97), xycoords=("data", "axes fraction"), xytext=(4, -3), textcoords="offset points", fontsize=7
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Trainable parameters")
    axes.set_ylabel("Mean squared error (entries' variance)")
    axes.set_title(f"{TITLE}\nmean over n={found['matrices']} matrices, 95% interval of the mean", fontsize=7)
    legend_below(axes)
    return save(canvas, folder / "figure6")


@decides("expressivity")
def _expressivity(claim: Claim, asked: Asked) -> list[Line]:
    found = analysis.read("figure6")
    if found is None:
        return [Line("random 10 x 10 matrices", claim.paper, DASH, DASH, DASH, "not run")]
    reading, reason = outcome(found)
    intervals = [difference.interval for difference in differences(found).values()]
    result = f"intervals from {min(low for low, _ in intervals):+.3f} to {max(high for _, high in intervals):+.3f}"
    test = f"paired t intervals, 95% together (Bonferroni), n={found['matrices']}"
    return [Line(f"{found['matrices']} random 10 x 10 matrices, in full", claim.paper, reason, test, result, reading)]
