"""A search over a method's settings: its trials are cells, their runs ordinary records, and validation rows choose.

A trial is known by what it sets, and what optuna proposes follows from a fixed seed and the scores of the trials before. So the
same search over the same records proposes the same trials, and one that was interrupted goes on.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from experiments.engine.aggregate import Summary, of_records, summarise, unlike
from experiments.engine.render import Table, interval, number
from experiments.engine.sweeps import read_sweep
from vera.config import GROUPS, RunConfig, choices, conf_file, explain, fields, marks, own_conf, recipe
from vera.config.components import component
from vera.config.composing import compose_on, variant, written
from vera.config.identity import hashed
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.records.record import Record
from vera.records.store import Store

SEED = 0  # of optuna's samplers
RESULTS_DIR = Path("results")  # what tables are made from
FOLDER = "results/tune"
HELD = "task.validation=0.1"  # where nothing else is said
ETA = 3  # of a rung of successive halving, one in so many goes on
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::[^:,]*)*)")

Sampler = Literal["grid", "random", "tpe"]


@dataclass(frozen=True)
class Axis:
    """One searched key. points: its values in their order, as overrides have them; () for any number from low to high."""

    key: str
    text: str
    points: tuple[str, ...]
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    whole: bool = False

    def value(self, number: float) -> str:
        """A number of the range as an override, to three digits."""
        return str(round(number)) if self.whole else f"{number:.3g}"


def axis(word: str) -> Axis | None:
    """key=low..high[:log][:points] or key=a,b,c; None for an override with one value. Raises ConfigError."""
    key, _, text = word.partition("=")
    if (found := _RANGE.fullmatch(text)) is not None:
        return _range(key, text, found[1], found[2], found[3].split(":")[1:])
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return None
        points = tuple(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{word}: {explain(error)}") from None
    if len(set(points)) != len(points):
        raise ConfigError(f"{word}: a value is there twice")
    return Axis(key, text, points)


def _range(key: str, text: str, first: str, last: str, options: list[str]) -> Axis:
    def wrong(why: str) -> ConfigError:
        return ConfigError(f"{key}={text}: {why}; a range is low..high[:log][:points], such as train.lr=1e-4..1e-1:log:7")

    low, high = float(first), float(last)
    counts = [option for option in options if option != "log"]
    if len(counts) > 1 or len(options) - len(counts) > 1 or not all(re.fullmatch(r"[0-9]{1,4}", count) for count in counts):
        raise wrong(f"{':'.join(options)} is not log, a number of points, or both")
    log = "log" in options
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise wrong("low must be below high")
    if log and low <= 0:
        raise wrong("a logarithmic range begins above 0")
    made = Axis(key, text, (), low, high, log, whole=all(re.fullmatch(r"[0-9]+", bound) for bound in (first, last)))
    if not counts:
        return made
    if int(counts[0]) < 2:
        raise wrong("a range has two points or more")
    numbers = (np.geomspace if log else np.linspace)(low, high, int(counts[0]))
    points = tuple(dict.fromkeys(made.value(number) for number in numbers))
    if len(points) < len(numbers):
        kind = "whole numbers; bounds with a point, such as 0.0, are for others" if made.whole else "values of three digits"
        raise wrong(f"there are {len(points)} {kind}")
    return Axis(key, text, points, low, high, log, made.whole)


@dataclass(frozen=True)
class Search:
    """What is searched. fixed: overrides of every run, the choices first; steps: of each rung, () for the recipe's length."""

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    sampler: Sampler
    trials: int
    steps: tuple[int, ...] = ()

    def run(self, trial: Trial) -> RunConfig:
        return composed([*self.fixed, *trial.overrides, *([f"train.max_steps={trial.steps}"] if trial.steps else [])])

    @property
    def base(self) -> RunConfig:
        """The run of the first seed with nothing chosen yet: the first trial's."""
        return self.run(next(_trials(self.axes, self.steps[:1])))

    @property
    def text(self) -> str:
        """What was searched, as a person reads it."""
        over = " ".join(f"{axis.key}={axis.text}" for axis in self.axes)
        halving = f", of each rung the best third goes on ({', '.join(map(str, self.steps))} steps)" if self.steps[1:] else ""
        return f"{self.sampler}, {self.trials} trials over {over}{halving}"


@dataclass(frozen=True)
class Trial:
    """values: what it sets, in the order of the axes."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    steps: int | None = None

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in zip(self.keys, self.values, strict=True)]


@dataclass
class Tried:
    """A trial with its runs, by seed, and what they score on the validation rows; summary is None while runs are missing."""

    trial: Trial
    run: RunConfig
    records: list[Record]
    summary: Summary | None = field(default=None)


def _trials(axes: Sequence[Axis], steps: Sequence[int] = ()) -> Iterator[Trial]:
    """The product of the axes; of a range without points, its ends."""
    values = [axis.points or (axis.value(axis.low), axis.value(axis.high)) for axis in axes]
    for chosen in itertools.product(*values):
        yield Trial(tuple(axis.key for axis in axes), chosen, steps[0] if steps else None)


def read(
    words: Sequence[str],
    seeds: Sequence[int],
    sampler: Sampler | None = None,
    trials: int | None = None,
    steps: Sequence[int] = (),
    results: Path = RESULTS_DIR,
) -> Search:
    """The search that a command line asks for, with every key and range checked. Raises ConfigError with one line.

    results: whose records' seeds are reported ones.
    """
    given = {word.partition("=")[0].lstrip("+"): word for word in words}
    for group in ("method", "model", "task"):
        if not given.get(group, "").partition("=")[2]:
            raise ConfigError(f"make tune needs METHOD=, MODEL= and TASK=: {group} is not given")
    searched = [made for word in words if (made := axis(word)) is not None]
    fixed = [word for word in words if word.partition("=")[0] not in {found.key for found in searched}]
    if not searched:
        raise ConfigError(
            "nothing to search: give a key several values, such as train.lr=1e-4..1e-1:log:7 or train.head_lr=1e-3,4e-3"
        )
    for found in searched:
        if found.key == "seed":
            raise ConfigError(f"seed={found.text}: the seeds of every trial are given with --seeds")
        if (
            found.key in ("task", "model", "method")
            or found.key.partition(".")[0] not in GROUPS
            or found.key.startswith("task.")  # a recipe is the method's on the model, for every task
        ):
            raise ConfigError(f"{found.key} is not a setting to be chosen; those of model, method and train are")
    if steps and any(word.partition("=")[0] == "train.max_steps" for word in words):
        raise ConfigError("--steps and train.max_steps both say how long to train; keep one")
    if list(steps) != sorted(set(steps)) or any(count < 1 for count in steps):
        raise ConfigError(f"--steps {','.join(map(str, steps))}: rungs are numbers of steps, each above the one before")
    if "." in given["task"]:
        raise ConfigError(f"{given['task']}: a recipe keeps what is chosen by the task's name, which cannot have a dot")
    if "task.validation" not in given and _may_hold_out(given["task"]):
        fixed.append(HELD)
    fixed += [word for word in _own_words(given["task"]) if word.partition("=")[0] not in given]
    if "results_dir" not in given:
        fixed.append(f"results_dir={FOLDER}")
    open_ended = [found.key for found in searched if not found.points]
    size = math.prod(len(found.points) for found in searched)
    if sampler is None:
        sampler = "grid" if not open_ended and (trials is None or trials >= size) else "tpe"
    if sampler == "grid" and open_ended:
        raise ConfigError(
            f"{open_ended[0]}: a grid needs a number of points, such as 1e-4..1e-1:log:7; or give --search random"
        )
    if sampler == "grid" and trials is not None and trials < size:
        raise ConfigError(
            f"the grid has {size} points, --trials {trials} is fewer; leave it out, or give --search random or tpe"
        )
    if sampler != "grid" and trials is None:
        raise ConfigError(f"--search {sampler} needs --trials, how many to try")
    if sampler == "tpe" and len(steps) > 1:
        raise ConfigError("--search tpe proposes one trial after the other, which has no rungs; give one number of steps")
    if sampler == "grid" or not open_ended:
        trials = min(size, trials or size)
    asked = Search(tuple(fixed), tuple(searched), tuple(seeds), sampler, trials or 0, tuple(steps))
    _check(asked, results)
    return asked


def _settings(task: str) -> dict[str, Any]:
    """The yaml that task=... names; nothing where there is none, which composing tells."""
    name = task.partition("=")[2]
    return yaml.safe_load(conf_file("task", name).read_text(encoding="utf-8")) if name in choices("task") else {}


def _may_hold_out(task: str) -> bool:
    """Whether a task takes a fraction of its training rows for validation, and has no validation rows beside a test set."""
    settings = _settings(task)
    if _three_splits(settings):
        return False
    return "anyOf" in fields(settings, "task").get("validation", {}) if "_target_" in settings else True


def _own_words(task: str) -> tuple[str, ...]:
    """What a task's trials have instead of what is computed on its test rows (vera.tasks.base)."""
    settings = _settings(task)
    return component(settings, "task").searched if "_target_" in settings else ()


def _three_splits(task: Mapping[str, Any]) -> bool:
    """Whether a task's own validation rows are apart from its test rows."""
    return {"validation", "test"} <= (task.get("files") or task.get("splits") or {}).keys()


def _check(search: Search, results: Path) -> None:
    """Raises ConfigError for keys and values that no run takes, for settings that decide nothing, and for reported seeds."""
    base = search.base
    if not search.seeds or len(set(search.seeds)) != len(search.seeds):
        raise ConfigError(f"--seeds {','.join(map(str, search.seeds))}: one seed or more, each once")
    for seed in search.seeds:
        where = _reported(base, results).get(seed)
        if where:
            raise ConfigError(
                f"--seeds {seed}: tables report this seed ({where}), so it chooses nothing; give others, such as 100,101"
            )
    for word in component(base.task, "task").searched:
        key, _, value = word.partition("=")
        if key == "task.primary" and base.task["primary"] != value:
            raise ConfigError(f"{key}={base.task['primary']} is of test rows, which choose nothing; leave it at {value}")
    first = next(_trials(search.axes, search.steps[:1]))
    for index, found in enumerate(search.axes):  # one after the other: every point once, not every pair
        cells: dict[str, str] = {}
        for value in found.points or (found.value(found.low), found.value(found.high)):
            trial = replace(first, values=(*first.values[:index], value, *first.values[index + 1 :]))
            other = cells.setdefault(search.run(trial).cell_id, value)
            if other != value:
                raise ConfigError(f"{found.key}: {other} and {value} make the same run; there is nothing to choose")


@lru_cache(maxsize=8)
def _of_sweeps() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in choices("sweep"):
        sweep = read_sweep(name)
        for seed in str(sweep.params.get("seed", "0")).split(",") if sweep.artefacts else ():
            if seed.strip().isdecimal():
                found.setdefault(int(seed), f"conf/sweep/{name}.yaml")
    return found


def _reported(run: RunConfig, results: Path) -> dict[int, str]:
    """The seeds that tables report, and where they stand: those of the sweeps that fill them, and of records of this method
    on this task."""
    found = dict(_of_sweeps())
    stem = "--".join(run.run_name.split("--")[:3])
    for name in Store(results).names():
        seed = name.rpartition("--s")[2]
        if name.startswith(f"{stem}--") and seed.isdecimal():
            found.setdefault(int(seed), f"{results}/runs/{name}.json")
    return found


Compute = Callable[[Sequence[RunConfig]], None]


def carry_out(search: Search, compute: Compute) -> list[Tried]:
    """Every trial, those of the last rung first, the best before the others; a trial with missing runs stands last.

    compute: makes the records of these runs as far as they are missing (for a dry run: none).
    """
    if search.sampler == "tpe":
        tried = _tpe(search, compute)
    elif search.sampler == "random":
        tried = _halve(search, _drawn(search), compute)
    else:
        tried = _halve(search, list(_trials(search.axes)), compute)
    return sorted(tried, key=lambda t: (-(t.trial.steps or 0), *_rank(t)))


def _rank(tried: Tried) -> tuple[float, float]:
    """Best first: the median, then the worst seed."""
    return (math.inf, math.inf) if tried.summary is None else (-tried.summary.median, -min(tried.summary.values))


def _measure(search: Search, trials: Sequence[Trial], compute: Compute) -> list[Tried]:
    runs = [search.run(trial) for trial in trials]
    compute([run.with_seed(seed) for run in runs for seed in search.seeds])
    return [_tried(trial, run, search.seeds) for trial, run in zip(trials, runs, strict=True)]


def _tried(trial: Trial, run: RunConfig, seeds: Sequence[int]) -> Tried:
    store = Store(run.results_dir)
    found = [store.find(run.with_seed(seed).run_name) for seed in seeds]
    records = [record for record in found if record is not None]
    if len(records) < len(seeds):
        return Tried(trial, run, records)
    # The validation rows' best epoch, whatever the record says of test rows.
    values = [-math.inf if r.collapsed else r.scores.best.metrics[r.scores.primary] for r in records]
    return Tried(trial, run, records, of_records(summarise([value for value in values if value is not None]), records))


def _halve(search: Search, trials: list[Trial], compute: Compute) -> list[Tried]:
    """All trials for the first number of steps, the best third of them for the second, and so on."""
    done: list[Tried] = []
    for rung, steps in enumerate(search.steps or (None,)):
        tried = _measure(search, [Trial(trial.keys, trial.values, steps) for trial in trials], compute)
        done += tried
        if any(found.summary is None for found in tried):
            break
        left = -(-len(tried) // ETA) if rung + 1 < len(search.steps) else 0
        trials = [found.trial for found in sorted(tried, key=_rank)[:left]]
    return done


def _study(search: Search) -> tuple[Any, dict[str, Any]]:
    """optuna's study and the distribution of each axis, a range with points by their numbers."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f"--search {search.sampler} needs optuna: pip install optuna (the extra tune); a grid does without"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    sampler: Any = optuna.samplers.RandomSampler(seed=SEED)
    if search.sampler == "tpe":
        sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=min(10, -(-search.trials // 3)))
    made: dict[str, Any] = {}
    for found in search.axes:
        if found.points:
            ordered = not math.isnan(found.low)
            made[found.key] = (
                kinds.IntDistribution(0, len(found.points) - 1) if ordered else kinds.CategoricalDistribution(found.points)
            )
        elif found.whole:
            made[found.key] = kinds.IntDistribution(int(found.low), int(found.high), log=found.log)
        else:
            made[found.key] = kinds.FloatDistribution(found.low, found.high, log=found.log)
    return optuna.create_study(direction="maximize", sampler=sampler), made


def _proposals(search: Search) -> Iterator[tuple[Trial, Callable[[float], None]]]:
    """What optuna proposes, each with what tells it the score. It may propose the same again."""
    study, distributions = _study(search)
    for _ in range(20 * search.trials):
        asked = study.ask(distributions)
        values = []
        for found in search.axes:
            value = asked.params[found.key]
            by_number = found.points and not math.isnan(found.low)
            values.append(found.points[value] if by_number else value if found.points else found.value(value))
        trial = Trial(tuple(found.key for found in search.axes), tuple(values), search.steps[0] if search.steps else None)
        yield trial, lambda score, asked=asked: study.tell(asked, score)


def _drawn(search: Search) -> list[Trial]:
    drawn: dict[tuple[str, ...], Trial] = {}
    for trial, _ in _proposals(search):
        drawn.setdefault(trial.values, trial)
        if len(drawn) == search.trials:
            break
    return list(drawn.values())


def _tpe(search: Search, compute: Compute) -> list[Tried]:
    done: dict[tuple[str, ...], Tried] = {}
    for trial, tell in _proposals(search):
        if trial.values not in done:
            done[trial.values] = _measure(search, [trial], compute)[0]
        summary = done[trial.values].summary
        if summary is None or len(done) == search.trials:
            break
        tell(summary.median)
    return list(done.values())


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
        "Range of the seeds",
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
    if _three_splits(task):
        return f"{task['primary']} on the data's own validation rows, beside its test set"
    return f"{task['primary']} on the task's validation rows (task.validation=dev: of two splits, the reported one)"


def remarks(tried: Sequence[Tried], search: Search) -> list[str]:
    """How the choice was made, and what is doubtful about it."""
    seeds = ", ".join(map(str, search.seeds))
    said = [f"Validation: {chosen_on(search)}; median over the seeds {seeds}. Test rows choose nothing."]
    if (lacking := missing(tried, search)) > 0:
        more = " and what follows from them" if search.sampler == "tpe" or search.steps[1:] else ""
        return [*said, f"{lacking} runs are missing{more}; nothing is chosen yet."]
    if apart := _apart(tried):
        return [*said, f"The trials are not like with like, in {', '.join(apart)}; nothing is chosen."]
    best = tried[0]
    rung = [found for found in tried if found.trial.steps == best.trial.steps]
    for index, found in enumerate(search.axes):
        values = found.points or tuple(other.trial.values[index] for other in tried)
        edge = _edge(best.trial.values[index], values)
        if edge:
            said.append(f"The best {found.key} is the {edge} that was tried: it may lie beyond.")
    if best.summary is not None and best.summary.interval is not None:
        low = best.summary.interval[0]
        near = sum(found.summary is not None and found.summary.median >= low for found in rung[1:])
        said.append(f"{near} of {len(rung) - 1} other trials have a median within the range of the best one's seeds.")
    if best.summary is not None and best.summary.median == -math.inf:
        said.append("Every trial has collapsed: nothing is chosen.")
    return said


def _apart(tried: Sequence[Tried]) -> list[str]:
    return unlike([record for found in tried for record in found.records])


def _edge(value: str, values: Sequence[str]) -> str | None:
    """Whether a number is the smallest or the largest of several; None for words."""
    try:
        numbers = sorted({float(other) for other in values})
        place = numbers.index(float(value))
    except ValueError:
        return None
    if len(numbers) < 2 or 0 < place < len(numbers) - 1:
        return None
    return "largest" if place else "smallest"


# What is chosen becomes a cell of the method's recipe on the model.


def budget(tried: Sequence[Tried], search: Search) -> dict[str, Any]:
    """The source of a chosen cell: what was searched, on which seeds and for how long, and each trial's median."""
    records = [record for found in tried for record in found.records]
    return {
        "search": search.text,
        "chosen_on": chosen_on(search),
        "seeds": list(search.seeds),
        "with": variant(search.base, search.fixed),
        "runs": len(records),
        "steps": sum(record.cost.steps for record in records),
        "seconds": round(sum(record.cost.seconds for record in records)),
        "cells": {found.run.cell_id[:8]: _line(found) for found in tried},
    }


def _line(found: Tried) -> str:
    steps = [f"train.max_steps={found.trial.steps}"] if found.trial.steps else []
    return f"{' '.join([*found.trial.overrides, *steps])}: {number(found.summary, 1.0, 4)}"


def recipe_of(tried: Sequence[Tried], search: Search, folder: Path | None = None) -> tuple[Path, str]:
    """The recipe's path and text with the best trial in the task's cell; other tasks keep what they have.

    Raises ConfigError for a recipe that is written by hand, and where there is nothing to choose.
    """
    run, best = search.base, tried[0]
    if missing(tried, search) or _apart(tried) or best.summary is None or best.summary.median == -math.inf:
        raise ConfigError(f"no setting is chosen: {remarks(tried, search)[-1]}")
    if run.task.get("synthetic") or run.model.get("size") == "tiny":
        raise ConfigError("a rehearsal's tiny models and synthetic rows choose no setting; no recipe is written")
    model, task, method = (run.model["name"], run.task["name"], run.method["name"])
    name = f"{method}_{model}"
    path = (folder or own_conf() / "recipe") / f"{name}.yaml"
    there = path if folder or path.is_file() else conf_file("recipe", name)  # another search may just have written it
    values = {key: _typed(value) for key, value in [*_given(search), *zip(best.trial.keys, best.trial.values, strict=True)]}
    if {"train.epochs", "train.max_steps"} <= values.keys():
        raise ConfigError(
            "a recipe says how long to train in epochs or in steps, and this search sets both; --steps is its own"
        )
    held: dict[str, Any] = yaml.safe_load(there.read_text(encoding="utf-8")) if there.is_file() else {}
    if held and ("tuned" not in held or there != path):  # by hand, or this repository's when a project is worked in
        said = " ".join(f"{key}={value}" for key, value in values.items())
        raise ConfigError(f"{there} is written by hand and stays as it is; the best trial is {said}, for you to put there")
    if not held:
        beneath = recipe(method, model)
        more = conf_file("recipe", beneath).is_file()
        held = {**({"defaults": [beneath, "_self_"]} if more else {}), "tuned": {}}
    # What an earlier search has chosen for this task was part of every trial.
    before = held["tuned"].get(task, {})
    cell: dict[str, Any] = {key: copy.deepcopy(part) for key, part in before.items() if key != "source"}
    inherited = {key for key, _ in leaves(cell)} - values.keys()
    choices_ = [f"model={model}", f"task={task}", f"method={method}"]
    for key, value in values.items():
        _put(cell, key, value)
        if not str(_get(held, key)).startswith("${oc.select:tuned."):
            _put(held, key, f"${{oc.select:tuned.${{task.name}}.{key},{_argument(written(choices_, key), key)}}}")
    source = budget(tried, search) | ({"earlier": before["source"]} if inherited else {})
    held["tuned"] = {**held["tuned"], task: {**cell, "source": source}}
    cells = [{key: part for key, part in tuned.items() if key != "source"} for tuned in held["tuned"].values()]
    searched = sorted({key for values in cells for key, _ in leaves(values)})
    sources = {"sources": {"ours: chosen by make tune, as `tuned` says": searched}}
    order = ["defaults", "tuned", *GROUPS]
    made = {key: held[key] for key in order if key in held} | sources
    _check_kept(best.run, [*choices_, *_aside(search)], {key: part for key, part in made.items() if key != "defaults"}, search)
    lead = (
        f"# {method} on {model}, chosen by `make tune`: a cell of `tuned` a task, with its source; its runs are in {FOLDER}.\n"
    )
    return path, lead + yaml.safe_dump(made, sort_keys=False, width=120, allow_unicode=True)


def _aside(search: Search) -> list[str]:
    """The overrides of every trial that no recipe keeps: the data's and the backbone's."""
    return [word for word in search.fixed if word.lstrip("+").partition(".")[0] in ("model", "task") and "." in word]


def _check_kept(chosen: RunConfig, overrides: Sequence[str], recipe_: Mapping[str, Any], search: Search) -> None:
    """Raises ConfigError where the recipe would make another run than the one that was chosen."""
    kept = compose_on(overrides, recipe_)
    for group in ("model", "method", "train"):
        ours, theirs = (dict(leaves(hashed(group, run.scientific[group], (), run.unhashed))) for run in (kept, chosen))
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key) and not (search.steps and f"{group}.{key}" == "train.max_steps"):
                raise ConfigError(
                    f"the recipe would have {group}.{key}={ours.get(key)} where the best trial has {theirs.get(key)}; "
                    "nothing is written"
                )


def _given(search: Search) -> Iterator[tuple[str, str]]:
    """The settings of method and training that were given for every trial, without which the best one would be another."""
    run = search.base
    for word in search.fixed:
        key, _, value = word.lstrip("+").partition("=")
        group, _, name = key.partition(".")
        if group in ("method", "train") and name:
            target = "TrainConfig" if group == "train" else str(run.method["_target_"])
            if name.partition(".")[0] not in marks(group, target):
                yield key, value


def in_use(search: Search, results: Path = RESULTS_DIR) -> int:
    """How many records there are that tables find under the recipe as it is, and would no longer."""
    stem = "--".join(search.base.run_name.split("--")[:3])
    return sum(name.startswith(f"{stem}--") for name in Store(results).names())


def _argument(value: Any, key: str) -> str:
    """A value as an argument of an interpolation."""
    if isinstance(value, list):
        return f"[{','.join(_argument(item, key) for item in value)}]"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if not re.fullmatch(r"[\w.+-]+|\$\{.*\}", text):
        raise ConfigError(f"{key} is {text} now, which a recipe cannot keep for other tasks; write it by hand")
    return text


def _typed(text: str) -> Any:
    try:
        return (
            float(text)
            if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text, re.IGNORECASE) and not text.isdecimal()
            else yaml.safe_load(text)
        )
    except (ValueError, yaml.YAMLError):
        return text


def _get(tree: dict[str, Any], key: str) -> Any:
    found: Any = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[leaf] = value


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
