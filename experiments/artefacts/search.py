"""How each recipe's settings were chosen, trials a method: unequal search is the usual flaw of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from experiments.engine.render import DASH, Table
from experiments.engine.rows import Asked
from experiments.engine.tuning import edge
from vera.config import choices, conf_file, dotted
from vera.config.components import read_yaml
from vera.records.store import Store

COLUMNS = ["Recipe", "Task", "Chosen", "At the end", "Trials", "Seeds", "Runs", "Steps", "Search", "Chosen on"]
TAKES = ((), "it is made from the recipes that make tune has written")


def build(asked: Asked) -> list[Table]:
    """A line for each cell that `make tune` has written; the other recipes say in a comment where their values come from."""
    lines, by_hand, named = [], 0, set[str]()
    for name in choices("recipe"):
        found = tuned(name)
        by_hand += found is None
        for task, cell in (found or {}).items():
            source = cell["source"]
            named |= source["cells"].keys()
            chosen = [f"{key}={value}" for key, value in dotted.leaves({k: v for k, v in cell.items() if k != "source"})]
            seeds = ", ".join(map(str, source["seeds"]))
            counts = [str(len(source["cells"])), seeds, str(source["runs"]), f"{source['steps']:,}"]
            at_end = "; ".join(list(ends(cell)) or ends(cell, last_rung=True)) or DASH
            lines.append([name, task, " ".join(chosen), at_end, *counts, source["search"], source["chosen_on"]])
    notes = [
        f"{by_hand} recipes are written by hand: the paper's settings, each with its source, or a search told in a comment.",
        "At the end: a chosen value that is the smallest or the largest of those tried, or of those that the last rung tried "
        "(on one side of it nothing was trained as long), so that a better one may lie beyond.",
        "Trials: cells that were tried, those of every rung; steps: of training, over all runs. Methods whose numbers differ "
        "were not searched alike.",
        *_beside(Store(asked.results / "tune").names(), named),
    ]
    return [Table("search", "What the recipes were chosen from", COLUMNS, lines or [[DASH] * len(COLUMNS)], notes)]


def tuned(recipe: str) -> dict[str, Any] | None:
    """What `make tune` has written to a recipe: a cell a task; None where it has not."""
    return read_yaml(conf_file("recipe", recipe)).get("tuned")


def ends(cell: dict[str, Any], last_rung: bool = False) -> Iterator[str]:
    """Which chosen values are the first or the last that were tried, or that went on to the last rung: train.lr smallest."""
    tried = [line.rpartition(": ")[0].split() for line in cell["source"]["cells"].values()]
    trials = [dict(word.split("=", 1) for word in words) for words in tried]
    if last_rung:
        longest = max(int(trial.get("train.max_steps", 0)) for trial in trials)
        trials = [trial for trial in trials if int(trial.get("train.max_steps", 0)) == longest]
    for key, value in dotted.leaves({key: part for key, part in cell.items() if key != "source"}):
        end = edge(str(value), [trial[key] for trial in trials if key in trial])
        if end:
            yield f"{key} {end}{' of the last rung' if last_rung else ''}"


def _beside(names: Iterable[str], named: Collection[str]) -> list[str]:
    """Which trials have records and are no recipe's: of earlier searches, and by hand."""
    counts: Counter[str] = Counter()
    for cell in {name.rpartition("--s")[0] for name in names}:
        of, _, short = cell.rpartition("--")
        counts[" ".join(of.split("--"))] += short not in named
    told = [f"{of} ({count})" for of, count in sorted(counts.items()) if count]
    return [f"Trials that are in none of these rows have records in results/tune: {', '.join(told)}."] if told else []
