"""What is chosen becomes a cell of the method's recipe on the model."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.engine.render import number
from experiments.engine.tuning.choice import apart, chosen_on, missing, remarks
from experiments.engine.tuning.searches import RESULTS_DIR, Search
from experiments.engine.tuning.trials import Tried, level
from vera.config import GROUPS, RunConfig, conf_file, dotted, marks, own_conf, recipe
from vera.config.composing import compose_on, variant, written
from vera.config.identity import hashed
from vera.errors import ConfigError
from vera.records.store import Store


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


def _place(run: RunConfig, folder: Path | None = None) -> tuple[Path, Path]:
    """Where the recipe of a run is written, and where there is one already."""
    name = f"{run.method['name']}_{run.model['name']}"
    path = (folder or own_conf() / "recipe") / f"{name}.yaml"
    return path, path if folder or path.is_file() else conf_file("recipe", name)  # another search may just have written it


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def stays(search: Search, folder: Path | None = None) -> str | None:
    """Why the recipe will not be written whatever is found; None where it will."""
    path, there = _place(search.base, folder)
    held = _read(there)
    if held and there != path:
        return f"{there} is this repository's, which a project cannot change, and stays as it is"
    return f"{there} is written by hand and stays as it is" if held and "tuned" not in held else None


def recipe_of(tried: Sequence[Tried], search: Search, folder: Path | None = None) -> tuple[Path, str]:
    """The recipe's path and text with the best trial in the task's cell; other tasks keep what they have.

    Raises ConfigError for a recipe that `stays`, and where there is nothing to choose.
    """
    run, best = search.base, tried[0]
    if run.task.get("synthetic") or run.model.get("size") == "tiny":
        raise ConfigError("a rehearsal's tiny models and synthetic rows choose no setting; no recipe is written")
    if missing(tried, search) or apart(tried) or level(tried) or best.summary is None or best.summary.median == -math.inf:
        raise ConfigError(f"no setting is chosen: {remarks(tried, search)[-1]}")
    model, task, method = (run.model["name"], run.task["name"], run.method["name"])
    path, there = _place(run, folder)
    values = {key: _typed(value) for key, value in [*_given(search), *zip(best.trial.keys, best.trial.values, strict=True)]}
    if {"train.epochs", "train.max_steps"} <= values.keys():
        raise ConfigError(
            "a recipe says how long to train in epochs or in steps, and this search sets both; --steps is its own"
        )
    if why := stays(search, folder):
        said = " ".join(f"{key}={value}" for key, value in values.items())
        raise ConfigError(f"{why}; the best trial is {said}, for you to put {'there' if there == path else 'into a sweep'}")
    held = _read(there)
    if not held:
        beneath = recipe(method, model)
        more = conf_file("recipe", beneath).is_file()
        held = {**({"defaults": [beneath, "_self_"]} if more else {}), "tuned": {}}
    # What an earlier search has chosen for this task was part of every trial.
    before = held["tuned"].get(task, {})
    cell: dict[str, Any] = {key: copy.deepcopy(part) for key, part in before.items() if key != "source"}
    inherited = {key for key, _ in dotted.leaves(cell)} - values.keys()
    choices_ = [f"model={model}", f"task={task}", f"method={method}"]
    for key, value in values.items():
        dotted.put(cell, key, value)
        if not str(dotted.get(held, key)).startswith("${oc.select:tuned."):
            dotted.put(held, key, f"${{oc.select:tuned.${{task.name}}.{key},{_argument(written(choices_, key), key)}}}")
    source, last = budget(tried, search), before.get("source", {})
    if {key: part for key, part in last.items() if key != "earlier"} == source:  # this search again
        source = last
    elif inherited:
        source = source | {"earlier": last}
    held["tuned"] = {**held["tuned"], task: {**cell, "source": source}}
    cells = [{key: part for key, part in tuned.items() if key != "source"} for tuned in held["tuned"].values()]
    searched = sorted({key for values in cells for key, _ in dotted.leaves(values)})
    sources = {"sources": {"ours: chosen by make tune, as `tuned` says": searched}}
    order = ["defaults", "tuned", *GROUPS]
    made = {key: held[key] for key in order if key in held} | sources
    if {"epochs", "max_steps"} <= made.get("train", {}).keys():
        raise ConfigError(
            f"a search of another task has put train.epochs or train.max_steps into {there}, and a recipe has one of them"
        )
    _check_kept(best.run, [*choices_, *_aside(search)], {key: part for key, part in made.items() if key != "defaults"}, search)
    lead = f"# {method} on {model}, chosen by `make tune`: a cell of `tuned` a task, with its source; "
    lead += f"the last search's runs are in {run.results_dir}.\n"
    return path, lead + yaml.safe_dump(made, sort_keys=False, width=120, allow_unicode=True)


def _aside(search: Search) -> list[str]:
    """The overrides of every trial that no recipe keeps: the data's and the backbone's."""
    return [word for word in search.fixed if word.lstrip("+").partition(".")[0] in ("model", "task") and "." in word]


def _check_kept(chosen: RunConfig, overrides: Sequence[str], recipe_: Mapping[str, Any], search: Search) -> None:
    """Raises ConfigError where the recipe would make another run than the one that was chosen."""
    kept = compose_on(overrides, recipe_)
    for group in ("model", "method", "train"):
        ours, theirs = (dict(dotted.leaves(hashed(group, run.scientific[group], (), run.unhashed))) for run in (kept, chosen))
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
    """How many records there are of the method on the task, whatever else they set: tables, with --with or without, would no
    longer find those that were made with the recipe as it is."""
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
