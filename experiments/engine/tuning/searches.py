"""What is searched, from a command line, with every key, value and seed checked before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from experiments.engine.sweeps import narrowing, read_sweep
from experiments.engine.tuning.axes import Axis, axis
from vera.config import GROUPS, RunConfig, choice, choices, fields
from vera.config.components import component
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.records.store import Store

RESULTS_DIR = Path("results")  # what tables are made from
FOLDER = "results/tune"
HELD = "task.validation=0.1"  # where nothing else is said

Sampler = Literal["grid", "random", "tpe"]


@dataclass(frozen=True)
class Search:
    """What is searched. fixed: overrides of every run, the choices first; steps: of each rung, () for the recipe's length."""

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    sampler: Sampler
    trials: int
    steps: tuple[int, ...] = ()

    def run(self, trial: Trial, seed: int | None = None) -> RunConfig:
        steps = [f"train.max_steps={trial.steps}"] if trial.steps else []
        return composed([*self.fixed, *trial.overrides, *steps, *([] if seed is None else [f"seed={seed}"])])

    @property
    def base(self) -> RunConfig:
        """The run of the first seed with nothing chosen yet: the first trial's."""
        return self.run(next(trials_of(self.axes, self.steps[:1])))

    @property
    def text(self) -> str:
        """What was searched, as a person reads it."""
        over = " ".join(f"{axis.key}={axis.text}" for axis in self.axes)
        halving = f", of each rung the best third goes on ({', '.join(map(str, self.steps))} steps)" if self.steps[1:] else ""
        most = "" if self.sampler == "grid" else "up to "  # what is drawn twice is tried once
        return f"{self.sampler}, {most}{self.trials} trials over {over}{halving}"


@dataclass(frozen=True)
class Trial:
    """values: what it sets, in the order of the axes."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    steps: int | None = None

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in zip(self.keys, self.values, strict=True)]


def trials_of(axes: Sequence[Axis], steps: Sequence[int] = ()) -> Iterator[Trial]:
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
    if "seed" in given:
        raise ConfigError(f"{given['seed']}: the seeds of every trial are given with --seeds")
    searched = [made for word in words if (made := axis(word)) is not None]
    fixed = [word for word in words if word.partition("=")[0] not in {found.key for found in searched}]
    if not searched:
        raise ConfigError(
            "nothing to search: give a key several values, such as train.lr=1e-4..1e-1:log:7 or train.head_lr=1e-3,4e-3"
        )
    for found in searched:
        if found.key in ("task", "model", "method"):
            raise ConfigError(f"{found.key}={found.text}: one {found.key} a search")
        if (
            found.key.partition(".")[0] not in GROUPS
            or found.key.startswith("task.")  # a recipe is the method's on the model, for every task
        ):
            raise ConfigError(f"{found.key} is not a setting to be chosen; those of model, method and train are")
        if sum(word.partition("=")[0].lstrip("+") == found.key for word in words) > 1:
            raise ConfigError(f"{found.key} is given twice; put all its values into one list or range")
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
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials {trials} tries nothing")
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
    """The settings that task=... names; nothing where there are none, which composing tells."""
    name = task.partition("=")[2]
    return choice("task", name) if name in choices("task") else {}


def _may_hold_out(task: str) -> bool:
    """Whether a task takes a fraction of its training rows for validation, and has no validation rows beside a test set."""
    settings = _settings(task)
    if three_splits(settings):
        return False
    return "anyOf" in fields(settings, "task").get("validation", {}) if "_target_" in settings else True


def _own_words(task: str) -> tuple[str, ...]:
    """What a task's trials have instead of what is computed on its test rows (vera.tasks.base)."""
    settings = _settings(task)
    return component(settings, "task").searched if "_target_" in settings else ()


def three_splits(task: Mapping[str, Any]) -> bool:
    """Whether a task's own validation rows are apart from its test rows."""
    return {"validation", "test"} <= (task.get("files") or task.get("splits") or {}).keys()


def _check(search: Search, results: Path) -> None:
    """Raises ConfigError for keys and values that no run takes, for settings that decide nothing, and for reported seeds."""
    base = search.base
    if not search.seeds or len(set(search.seeds)) != len(search.seeds):
        raise ConfigError(f"--seeds {','.join(map(str, search.seeds))}: one seed or more, each once")
    if Path(base.results_dir).resolve() == results.resolve():
        raise ConfigError(
            f"results_dir={base.results_dir}: tables are made from it, and trials are no results; leave it out, or give another"
        )
    held = base.task.get("validation", "dev")
    if three_splits(base.task) and held != "dev":
        name = base.task["name"]
        raise ConfigError(
            f"task.validation={held}: task={name} has validation rows of its own beside its test set; leave task.validation=dev"
        )
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
    first = next(trials_of(search.axes, search.steps[:1]))
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
        for seed in narrowing([f"seed={sweep.params.get('seed', sweep.seed)}"])[1] if sweep.artefacts else ():
            found.setdefault(seed, f"conf/sweep/{name}.yaml")
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
