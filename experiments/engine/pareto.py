"""What a score costs: every method on a model and task against trainable parameters, memory and seconds, the front marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.engine import plots
from experiments.engine.aggregate import WORKED, Summary, epoch_of, summarise_cost, unlike, whole
from experiments.engine.render import DASH, INTERVAL, Table, interval
from experiments.engine.rows import Asked, Entry, given, n, over_seeds, tested_note, trained, unlike_notes
from vera.config import choices
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.records.record import Record

COSTS = {"Trained": "Trainable parameters (without the head)", "Memory": "Peak GPU memory (MiB)", "Seconds": "Seconds a run"}
MIB = 2**20
CALM = 1.5  # a method's slowest seed to its fastest one, where its seconds are those of the method and not of other work


def entries(asked: Asked, model: str, task: str) -> list[Entry]:
    """Every method that has records of its recipe's cell on this model and task, by trainable parameters. Raises ConfigError
    for overrides with which no method makes a run."""
    found, refused = [], None
    for method in sorted(_ran(asked, model, task).intersection(choices("method"))):
        keys = [f"model={model}", f"task={task}", f"method={method}"]
        try:
            composed([*keys, *asked.overrides])
        except ConfigError as error:  # no such run: the method is for other models, or needs a setting that no recipe has
            refused = error
            continue
        found.append(asked.entry([method], keys))
    if refused and not found:
        raise refused
    alike = asked.alike([entry for entry in found if entry.records])
    return sorted((entry for entry in alike if entry.records), key=lambda entry: (entry.parameters, entry.labels))


def _ran(asked: Asked, model: str, task: str) -> set[str]:
    """The methods that have records, of whatever settings."""
    runs = (record.run for records in asked.cells.values() for record in records)
    return {run.method for run in runs if (run.model, run.task) == (model, task)}


def cost(entry: Entry, which: str) -> float | None:
    """One of COSTS, the median over the seeds that did not collapse; None where all did, or one does not have it (memory on a
    CPU)."""
    if which == "Trained":
        return float(entry.parameters)
    summary = summarise_cost(entry.records, "seconds" if which == "Seconds" else "peak_memory_bytes")
    return None if summary is None else summary.median / (MIB if which == "Memory" else 1)


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which points (cost, score) no other beats, which costs at most as much, scores at least as well, and is another point."""

    def beaten(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    return {index for index, point in enumerate(points) if not beaten(*point)}


def fronts(found: Sequence[Entry]) -> dict[str, set[int]]:
    """For each cost that every entry has, and that is not barred, which entries are on its front by their medians; a collapsed
    one never is."""
    scores = [entry.summary().centre(entry.stat) for entry in found]
    alive = [index for index, score in enumerate(scores) if math.isfinite(score)]
    made, without = {}, barred(found)
    for which in (name for name in COSTS if name not in without):
        values = [cost(found[index], which) for index in alive]
        if alive and None not in values:
            pairs = [(value or 0.0, scores[index]) for value, index in zip(values, alive, strict=True)]
            made[which] = {alive[place] for place in front(pairs)}
    return made


def barred(found: Sequence[Entry]) -> dict[str, list[str]]:
    """The costs of which no front can be drawn, and every reason."""
    records = _records(found)
    if unlike(records):
        return {name: ["No front: the scores are not like with like."] for name in COSTS}
    both, seconds = [], []
    if work := unlike(records, WORKED):
        both.append(f"No front of memory and seconds: the runs differ in {', '.join(work)}.")
    if threads := unlike(records, ["threads"]):
        seconds.append(f"No front of seconds: the runs differ in {threads[0]}.")
    if disturbed := restless(found):
        names = ", ".join(entry.labels[0] for entry in disturbed)
        times = f"{names} took over {CALM} times as long with one seed as with another"
        seconds.append(f"No front of seconds: {times}: the machine had other work.")
    reasons = {"Memory": both, "Seconds": both + seconds}
    return {name: why for name, why in reasons.items() if why}


def _records(found: Sequence[Entry]) -> list[Record]:
    return [record for entry in found for record in entry.records]


def restless(found: Sequence[Entry]) -> list[Entry]:
    """The entries whose seeds took unlike times, though they compute alike: the machine had other work."""
    return [entry for entry in found if (took := _took(entry)) and max(took) > CALM * min(took)]


def _machines(found: Sequence[Entry]) -> list[str]:
    return sorted({f"{r.cost.device}, {r.cost.threads} threads" for r in _records(found)})


def _took(entry: Entry) -> list[float]:
    return [record.cost.seconds for record in whole(entry.records)]


def table(asked: Asked, model: str, task: str, name: str) -> Table:
    found = entries(asked, model, task)
    on = fronts(found)
    metric = found[0].records[0].scores.primary if found else "score"
    columns = ["Method", "Trained", "n", metric, INTERVAL, "Memory (MiB)", "Seconds", "On the front of"]
    lines = []
    for index, entry in enumerate(found):
        memory, seconds, took = cost(entry, "Memory"), cost(entry, "Seconds"), _took(entry)
        texts = [DASH if memory is None else f"{memory:.0f}"]
        texts.append(DASH if seconds is None else f"{seconds:.1f} [{min(took):.1f}, {max(took):.1f}]")
        marks = ", ".join(which.lower() for which in on if index in on[which]) or DASH
        scored = [entry.printed(), interval(entry.summary(), entry.scale, entry.digits)]
        lines.append([*entry.labels, trained(entry), n(entry), *scored, *texts, marks])
    devices, with_ = _machines(found), f" with {asked.named}" if asked.named else ""
    hidden = sorted(_ran(asked, model, task) - {entry.labels[0] for entry in found})
    at = f"of a recipe's settings{with_}"
    notes = [
        f"{over_seeds(asked.stat)} of {metric} x 100, {epoch_of(asked.stat or 'median')} epoch, each method at its "
        f"recipe{with_}; trainable parameters without the head.",
        "On the front: no other method here costs at most as much and scores at least as well, by these scores and the "
        "medians of the costs before rounding; where the ranges of the seeds overlap, the order may be chance.",
        f"Seconds: training and evaluation, median and range over seeds, on {'; '.join(devices) or 'nothing yet'}. Memory is "
        "the GPU allocator's peak; a CPU has none. A run that collapsed counts for neither.",
        "Over the seeds that all rows have.",
        *([f"Not shown: {', '.join(hidden)}, with records, but none {at}."] if hidden else []),
        *dict.fromkeys(reason for why in barred(found).values() for reason in why),
        *tested_note(_records(found)),
        *unlike_notes(_records(found)),
    ]
    return Table(name, f"What a score costs: {task} with {model}", columns, lines, notes)


def draw(asked: Asked, model: str, task: str, stem: Path) -> list[Path]:
    """Score against each cost, the front as a line; stem.pdf, .png and .svg; none where there is nothing to draw."""
    every = entries(asked, model, task)
    alive = [index for index, entry in enumerate(every) if math.isfinite(entry.summary().centre(entry.stat))]
    found = [every[index] for index in alive]
    on = {
        which: {alive.index(index) for index in chosen}
        for which, chosen in fronts(every).items()  # as the table has them
        if any(cost(entry, which) for entry in found)
    }
    if not on:
        return plots.clear(stem)
    canvas, panels = plots.panels(max(6.0, 4.2 * len(on)), 3.6, len(on))
    scores: list[Summary] = [entry.scaled() for entry in found]
    named = []
    for axes, (which, chosen) in zip(panels, on.items(), strict=True):
        at = [cost(entry, which) or 0.0 for entry in found]
        logarithmic = min(value for value in at if value > 0) * 10 < max(at)
        left = min(value for value in at if value > 0) / 3 if logarithmic else 0.0
        names = [entry.labels[0] + (" (0)" if not value else "") for entry, value in zip(found, at, strict=True)]
        at = [value or left for value in at]  # nothing trained but the head: at the left edge
        for index, entry in enumerate(found):
            color = plots.PALETTE[2] if index in chosen else plots.PALETTE[0]
            plots.series(axes, [at[index]], [scores[index]], {"color": color, "marker": "o"}, entry.labels[0], dots=False)
        line = sorted(chosen, key=lambda index: at[index])
        axes.plot([at[i] for i in line], [scores[i].median for i in line], color=plots.PALETTE[2], linewidth=1, alpha=0.5)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel(COSTS[which])
        named.append((axes, at, names))
    panels[0].set_ylabel(f"{found[0].records[0].scores.primary} x 100")
    said = plots.median_over([len(entry.records) for entry in found], sum(entry.summary().collapsed for entry in every))
    canvas.suptitle("\n".join([f"{task} with {model}, front in blue", said, *given(asked)]), fontsize=8)
    for axes, at, names in named:
        plots.name_points(axes, at, scores, names)
    return plots.save(canvas, stem)
