"""What a search has found, as a table, and what is doubtful about it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from experiments.engine.aggregate import COMPARED, unlike
from experiments.engine.render import INTERVAL, Table, interval, number
from experiments.engine.tuning.searches import Search, three_splits
from experiments.engine.tuning.trials import Tried, level, rank
from vera.config.components import component


def missing(tried: Sequence[Tried], search: Search) -> int:
    """How many runs of these trials have no record."""
    return sum(len(search.seeds) - len(found.records) for found in tried)


def table(tried: Sequence[Tried], search: Search) -> Table:
    """A line a trial, the best first."""
    digits = 4
    lines = []
    for found in tried:
        first = found.records[0] if found.records else None
        line = [*found.trial.values, *([str(found.trial.steps)] if search.steps else [])]
        line += [str(len(found.records)), number(found.summary, 1.0, digits), interval(found.summary, 1.0, digits)]
        line += [f"{first.parameters.adapter:,}" if first else "–"]
        lines.append([*line, f"{sum(record.cost.seconds for record in found.records):.0f}", found.run.cell_id[:8]])
    base = search.base
    steps = ["Steps"] if search.steps else []
    columns = [
        *(axis.key for axis in search.axes),
        *steps,
        "n",
        "Validation",
        INTERVAL,
        "Trained",
        "Seconds",
        "Cell",
    ]
    title = f"{base.method['name']} on {base.task['name']} with {base.model['name']}: {search.text}"
    return Table("tune", title, columns, lines, remarks(tried, search))


def chosen_on(search: Search) -> str:
    """On which rows the choice rests."""
    task = search.base.task
    if component(task, "task").searched:
        return f"{task['primary']} on the task's validation rows, beside its test set"
    if task.get("validation", "dev") != "dev":
        return f"{task['primary']} on {task['validation']:g} of the training rows, held out"
    if three_splits(task):
        return f"{task['primary']} on the data's own validation rows, beside its test set"
    return f"{task['primary']} on the task's validation rows (task.validation=dev: of two splits, the reported one)"


def remarks(tried: Sequence[Tried], search: Search) -> list[str]:
    """How the choice was made, and what is doubtful about it."""
    seeds = ", ".join(map(str, search.seeds))
    said = [f"Validation: {chosen_on(search)}; median over the seeds {seeds}. Test rows choose nothing."]
    if (lacking := missing(tried, search)) > 0:
        more = " and what follows from them" if search.sampler == "tpe" or search.steps[1:] else ""
        return [*said, f"{lacking} runs are missing{more}; nothing is chosen yet."]
    if differing := apart(tried):
        return [*said, f"The trials are not like with like, in {', '.join(differing)}; nothing is chosen."]
    best = tried[0]
    lengths = sorted({found.trial.steps or 0 for found in tried})
    rungs = [[found for found in tried if (found.trial.steps or 0) == steps] for steps in lengths]
    said += cuts(rungs)
    rung = rungs[-1]
    most = None if best.summary is None else best.summary.median
    tied = [other.trial for other in rung if other.summary is not None and other.summary.median == most]
    if level(tried):
        of = f" of the rung of {best.trial.steps} steps" if search.steps[1:] else ""
        return [
            *said,
            f"All {len(rung)} trials{of} have the same scores, which chooses nothing: train longer (--steps) or search wider.",
        ]
    if len(tied) > 1:
        said.append(f"{len(tied)} trials have the best median; the one with the best worst seed, or the first, is taken.")
    for index, found in enumerate(search.axes):
        if len({trial.values[index] for trial in tied}) > 1:
            continue
        end = edge(best.trial.values[index], [other.trial.values[index] for other in tried])
        if end:
            said.append(f"The best {found.key} is the {end} that was tried: it may lie beyond.")
    if best.summary is not None and best.summary.n > 1:
        low = min(best.summary.values)
        near = sum(found.summary is not None and found.summary.median >= low for found in rung[1:])
        said.append(f"{near} of {len(rung) - 1} other trials have a median within the range of the best one's seeds.")
    if best.summary is not None and best.summary.median == -math.inf:
        said.append("Every trial has collapsed: nothing is chosen.")
    return said


def cuts(rungs: Sequence[Sequence[Tried]]) -> list[str]:
    """Where a trial went on to the next rung and an equal one did not. rungs: the trials of each, the best first."""
    said = []
    for rung, following in itertools.pairwise(rungs):
        tied = [index for index, found in enumerate(rung) if rank(found) == rank(rung[len(following) - 1])]
        if tied[-1] >= len(following):
            steps = rung[0].trial.steps
            said.append(f"{len(tied)} trials tied at the cut of the rung of {steps} steps; the first ones went on.")
    return said


def apart(tried: Sequence[Tried]) -> list[str]:
    return unlike([record for found in tried for record in found.records], (*COMPARED[:-1], "code", "precision"))


def edge(value: str, values: Sequence[str]) -> str | None:
    """Whether a number is the "smallest" or the "largest" of several; None for one between them, and for words."""
    try:
        numbers = sorted({float(other) for other in values})
        place = numbers.index(float(value))
    except ValueError:
        return None
    if len(numbers) < 2 or 0 < place < len(numbers) - 1:
        return None
    return "largest" if place else "smallest"
