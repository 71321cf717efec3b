"""Real text: MiniLM-L6 on the four small GLUE tasks in the form of Table 2, beside a linear probe."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from experiments.artefacts.search import ends, tuned
from experiments.engine import analysis
from experiments.engine.aggregate import (
    PAPER_SEEDS,
    common,
    detectable,
    epoch_of,
    lost,
    paired,
    pairs,
    permutation_p,
    sources,
    two_sided_p,
)
from experiments.engine.published import Column, load
from experiments.engine.render import DASH, Table, figure, p_value, signed
from experiments.engine.rows import (
    Asked,
    Entry,
    difference,
    n,
    over_seeds,
    rows,
    score,
    scores,
    seconds,
    steps,
    trained,
    unlike_notes,
)
from vera.config import choices
from vera.config.memory import composed
from vera.records.sources import CONFIGURED

SWEEP = "glue_minilm"
PROBE = "probe_minilm"
TASKS = ("rte", "mrpc", "cola", "stsb")
METHODS = {
    "head": "Head only",
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "adapter_h": "AdapterH",
    "ia3": "IA3",
    "lora_fa": "LoRA-FA r=8",
    "lora": "LoRA r=8",
    "vera": "VeRA r=256",
}
PAIRS = (("vera", "lora"), ("full", "lora"), ("vera", "full"), ("adapter_h", "lora"))
BUDGETED, BUDGETS = ("head", "full", "bitfit", "lora", "vera"), (4, 12)  # epochs of CoLA
POWER = 0.8
NOTE = (
    "MiniLM-L6 (BERT, d=384, six layers), which a CPU can train, on GLUE's official files; not the paper's RoBERTa. The head "
    "is a dense layer and a map to the classes, both new, as RoBERTa's is."
)
RATES = "Learning rates: of each task's own search on held-out rows, as conf/recipe/minilm.yaml says."


def cell(task: str, method: str) -> list[str]:
    """The overrides of one cell."""
    return ["model=minilm", f"task={task}", f"method={method}"]


def build(asked: Asked) -> list[Table]:
    """Scores in Table 2's form; each cell with interval, last epoch and cost; pairs of methods seed by seed."""
    columns = {key: column for key, column in load("table2").columns.items() if key in TASKS}
    probe = (analysis.read(PROBE, asked.results) or {}).get("tasks", {})
    entries = {
        (task, method): asked.entry(
            [columns[task].label, label],
            cell(task, method),
            metric=columns[task].metric,
            scale=columns[task].scale,
            digits=columns[task].digits,
        )
        for task in columns
        for method, label in METHODS.items()
    }
    every, more = dict(entries), []  # more: tasks with seeds that some methods alone have, for the sake of a claim
    for task, column in columns.items():
        whole = {method: entry for method in METHODS if len((entry := entries[task, method]).records) >= PAPER_SEEDS}
        for method, entry in zip(whole, asked.alike(list(whole.values())), strict=True):
            more += [column.label] * (len(entry.records) < len(whole[method].records))
            entries[task, method] = entry
    yardstick, foreign = {}, []
    weights = sources([record for entry in entries.values() for record in entry.records], ("backbone",))
    for task, column in columns.items():
        of_runs = sources([record for method in METHODS for record in entries[task, method].records], ("data", *CONFIGURED))
        like = all(found <= {probe.get(task, {}).get(name)} for name, found in {**weights, **of_runs}.items())
        yardstick[task] = probe[task]["metrics"][column.metric] if task in probe and like else None
        foreign += [column.label] * (task in probe and not like)
    of_probe = [
        DASH if value is None else figure(columns[t].scale * value, columns[t].digits) for t, value in yardstick.items()
    ]
    made = [["Linear probe", DASH, *of_probe]]
    for method, label in METHODS.items():
        mine = [entries[task, method] for task in columns]
        count = next((trained(entry) for entry in mine if entry.records), DASH)
        made.append([label, count, *(entry.printed() if entry.records else DASH for entry in mine)])
    others = ", ".join(dict.fromkeys(more))
    extra = [f"Over the seeds that all methods with {PAPER_SEEDS} or more have; there are others of {others}."] if more else []
    notes = [
        NOTE,
        "Score x 100 on the development set: accuracy; Matthews correlation (CoLA); Pearson correlation (STS-B). "
        f"{over_seeds(asked.stat)}, of each run's best epoch unless another is asked for.",
        "Linear probe: mean-pooled embeddings of the frozen MiniLM and a regularised linear model on them (scripts/probe.py). "
        "It is the yardstick: a comparison of methods counts where they reach it.",
        " ".join(["Trained: parameters outside the head.", *asked.searched(RATES)]),
        f"Epochs: {'; '.join(f'{column.label} {_epochs(task, asked)}' for task, column in columns.items())}.",
        *extra,
        *asked.searched(*_at_ends({task: column.label for task, column in columns.items()})),
    ]
    notes += _devices({column.label: [entries[task, method] for method in METHODS] for task, column in columns.items()})
    if foreign:
        notes.append(
            f"No linear probe for {', '.join(foreign)}: it was measured on other rows or another backbone than the runs "
            "(scripts/probe.py measures it again)."
        )
    title = "MiniLM on four GLUE tasks"
    tables = [Table(SWEEP, title, ["Method", "Trained", *(c.label for c in columns.values())], made, notes)]
    run = [entry for entry in entries.values() if entry.records]
    if run:
        tables.append(_cells(run, title, asked))
        tables.append(_tests(entries, every, yardstick, title, columns))
    budgets = _budgets(replace(asked, shown={}), columns["cola"])
    if budgets is not None:
        notes.append(f"Other numbers of epochs on CoLA: {budgets.name}.")
        tables.append(budgets)
    return tables


def _epochs(task: str, asked: Asked) -> str:
    """How many runs have of a task, and with which methods where they are not of one mind."""
    given = [word for word in asked.overrides if word.partition("=")[0] not in ("model", "task", "method")]
    found: dict[int, list[str]] = {}
    for method, label in METHODS.items():
        found.setdefault(composed([*cell(task, method), *given]).train.epochs, []).append(label)
    usual, *others = sorted(found, key=lambda epochs: -len(found[epochs]))
    return f"{usual}" + "".join(f" ({', '.join(found[epochs])}: {epochs})" for epochs in others)


def _budgets(asked: Asked, column: Column) -> Table | None:
    """CoLA with few and with many epochs, one of which is the recipe's; None where nobody has run the other, or --with gives
    the epochs."""
    if asked.gives("train.epochs"):
        return None
    shown = {"metric": column.metric, "scale": column.scale, "digits": column.digits}
    tried = {}
    for method, epochs in itertools.product(BUDGETED, BUDGETS):
        keys = [*cell("cola", method), f"train.epochs={epochs}"]
        tried[method, epochs] = asked.entry([METHODS[method], str(epochs)], keys, **shown)
    if not any(all(tried[method, epochs].records for epochs in BUDGETS) for method in BUDGETED):
        return None
    columns = {"n": n, "Steps": steps, **scores(asked.stat, intervals=False), "Train loss": _train_loss}
    made = []
    for (method, epochs), entry in tried.items():
        fewest = tried[method, BUDGETS[0]]
        against = {f"To {BUDGETS[0]} epochs": difference(fewest), "To LoRA for as long": difference(tried["lora", epochs])}
        made += rows([entry], {**columns, **against})
    epoch = epoch_of(asked.stat or "median")
    notes = [
        f"{over_seeds(asked.stat)}, x 100; differences of the {epoch} epoch over common seeds with Student's 95% interval of "
        "the mean. The best of more epochs is also the best of more looks at the development set; the last epoch is not.",
        "Train loss: of the last epoch, median over seeds.",
        *_devices({METHODS[method]: [tried[method, epochs] for epochs in BUDGETS] for method in BUDGETED}),
        *unlike_notes(record for entry in tried.values() for record in entry.records),
    ]
    heads = ["Method", "Epochs", *columns, *against]
    return Table(f"{SWEEP}_long", "How many epochs of CoLA MiniLM needs", heads, made, notes)


def _train_loss(entry: Entry) -> str:
    ran = [record.scores.history[-1].train_loss for record in entry.records if not record.collapsed]
    return figure(median(ran), 2) if ran else DASH


def _at_ends(tasks: dict[str, str]) -> list[str]:
    """What of the recipes was chosen at an end of what was tried for it."""
    found = {method: tuned(recipe) or {} for method in METHODS if (recipe := f"{method}_minilm") in choices("recipe")}
    told = [
        f"{label}, {METHODS[method]} ({', '.join(at)})"
        for task, label in tasks.items()
        for method, cells in found.items()
        if task in cells and (at := list(ends(cells[task])))
    ]
    return [f"A better rate may lie beyond what was tried: {'; '.join(told)}."] if told else []


def _devices(found: dict[str, list[Entry]]) -> list[str]:
    """Where the runs of each name were computed, by an entry's last label, if not all in one place: their rounding differs."""

    def listed(labels: set[str]) -> str:
        return ", ".join(sorted(labels))

    places: dict[str, dict[str, set[str]]] = {}
    for name, entries in found.items():
        for entry in entries:
            for device in _on(entry):  # of starts on another one, too
                places.setdefault(name, {}).setdefault(device, set()).add(entry.labels[-1])
    if len({device for devices in places.values() for device in devices}) < 2:
        return []
    told = [
        f"{name} on {', on '.join(f'{device} ({listed(of)})' for device, of in sorted(devices.items()))}"
        for name, devices in places.items()
    ]
    return [f"Computed: {'; '.join(told)}. Rounding differs between devices."]


def _cells(run: Sequence[Entry], title: str, asked: Asked) -> Table:
    """One line for each cell that has runs."""
    columns = {
        "n": n,
        **scores(asked.stat),
        "Second metric": _second,
        "Steps": steps,
        "Seconds": lambda entry: seconds(entry) if len(_on(entry)) == 1 else DASH,
        "Computed on": lambda entry: "; ".join(_on(entry)),
    }
    notes = [
        f"{over_seeds(asked.stat)}, x 100. Second metric: F1 (MRPC), Spearman (STS-B), at the best epoch of the first.",
        "Seconds are those of a machine with other work on it, and no measure of a method where two were computed on unlike "
        "devices; a dash where one's own runs were.",
    ]
    return Table(f"{SWEEP}_cells", f"{title}, cell by cell", ["Task", "Method", *columns], rows(run, columns), notes)


def _on(entry: Entry) -> list[str]:
    return sorted(sources(entry.records, ("device",))["device"])


def _second(entry: Entry) -> str:
    found = dict.fromkeys(metric for record in entry.records for metric in record.scores.best.metrics)
    others = [metric for metric in found if metric != entry.metric]
    return score(others[0], entry.scale, entry.digits)(entry) if others else DASH


def _tests(entries: dict, every: dict, yardstick: dict[str, float | None], title: str, columns: dict) -> Table:
    """Each pair over the seeds that all methods have (`entries`); where the two have more (`every`), over all of these too."""
    made, rules = [], []
    beyond: dict[str, None] = {}  # methods with more seeds than all have
    for task, column in columns.items():
        for methods in PAIRS:
            label = " - ".join(METHODS[method] for method in methods)
            few, many = ([found[task, method] for method in methods] for found in (entries, every))
            made += _test([column.label, label], few, yardstick[task])
            if len(pairs(*(entry.records for entry in many))) > len(pairs(*(entry.records for entry in few))):
                made += _test([column.label, f"{label}, all pairs"], many, yardstick[task])
                beyond |= dict.fromkeys(methods)
        rules.append(len(made))
    notes = [
        "Mean difference over common seeds, best epoch, with Student's 95% interval; p: Student's paired test, two-sided, "
        "and sign flips, of which five pairs cannot give less than 0.0625.",
        f"Power: the true difference that this many pairs, spread as these are, would show at 5% in {POWER:.0%} of cases. What "
        "is smaller than that is not ruled out by a p above 0.05.",
        "Reach the probe: whether the medians of both methods do.",
    ]
    if beyond:
        notes.append("All pairs: over every seed that both methods have; the other lines are over those that all methods have.")
        notes += _devices({column.label: [every[task, method] for method in beyond] for task, column in columns.items()})
    names = ["Task", "Pair", "n", "Difference [95%]", "p", "p, sign flips", "Power", "Reach the probe"]
    return Table(f"{SWEEP}_tests", f"{title}: methods seed by seed", names, made, notes, rules)


def _test(pair: list[str], sides: Sequence[Entry], probe: float | None) -> list[list[str]]:
    """The line of one pair: its test, or that runs of it collapsed; none where no seed has two runs alike."""
    if why := lost(*(entry.records for entry in sides)):
        return [[*pair, DASH, why, *[DASH] * 4]]
    ranked = common(sides[0].records, sides[1].records, sides[0].metric)
    if not ranked[0]:
        return []
    gaps = [a - b for a, b in zip(*ranked, strict=True)]
    scale, digits = sides[0].scale, sides[0].digits
    power = detectable(gaps, power=POWER)
    shown = [
        str(len(gaps)),
        signed(paired(*ranked), scale, digits),
        p_value(two_sided_p(gaps)),
        p_value(permutation_p(*ranked)),
        DASH if power is None else figure(scale * power, digits),
        _reached(sides, probe),
    ]
    return [[*pair, *shown]]


def _reached(sides: Sequence[Entry], probe: float | None) -> str:
    if probe is None:
        return DASH
    return "yes" if all(entry.summary("best").median >= probe for entry in sides) else "no"
