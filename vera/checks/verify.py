"""Repeat a recorded run from the config that its record holds, and compare the two records number by number."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vera import seeds
from vera.config import (
    GROUPS,
    RunConfig,
    beside,
    checked,
    choice,
    component,
    dotted,
    group_marks,
    normalised,
    resolve,
    younger,
)
from vera.errors import ConfigError, RecordError
from vera.records.record import Record
from vera.records.sources import CLASSES, CONFIGURED, configured
from vera.records.store import Store
from vera.run import LOCAL, check_sources, execute

MICRO = ("train.micro_batch_size", "train.micro_batch_tokens", "train.eval_batch_size", "train.cuda_graphs")


@dataclass(frozen=True)
class Value:
    """One number or text of a run, as recorded and as it came out now; None where one of the two has no such."""

    name: str
    recorded: float | str | None
    repeated: float | str | None

    @property
    def difference(self) -> float:
        """Absolute; infinite where one side is missing and between texts, 0 where both are missing or alike."""
        if not (isinstance(self.recorded, (int, float)) and isinstance(self.repeated, (int, float))):
            return 0.0 if self.recorded == self.repeated else math.inf
        return abs(self.recorded - self.repeated)


@dataclass(frozen=True)
class Comparison:
    """values: every number, in the order of the record; conditions: what differs in provenance (name, recorded, here)."""

    values: list[Value]
    conditions: list[tuple[str, str, str]]

    def differing(self, tolerance: float = 0.0) -> list[Value]:
        return [value for value in self.values if not value.difference <= tolerance]


def read_record(path: Path) -> Record:
    """The record in a file, wherever it lies, or the only one in a folder that was published. Raises RecordError."""
    if path.is_dir():
        inside = Store(path).names()
        if len(inside) != 1:
            raise RecordError(f"{path} holds {len(inside)} records (runs/<run>.json); name the one to repeat")
        path = Store(path).path(inside[0])
    if path.suffix != ".json":
        raise RecordError(f"{path} is not called <run>.json, as a record is")
    return Store.read(path)


def _written(key: str, choices: dict[str, dict[str, Any]]) -> str | None:
    """A path that a yaml of conf/ gives as such."""
    group, name = key.split(".")
    value = choices[group].get(name)
    return value if isinstance(value, str) and "${" not in value else None


def run_of(record: Record, overrides: Sequence[str], folder: Path) -> RunConfig:
    """The recorded run, to be computed below `folder`. `overrides`: KEY=VALUE for paths, micro-batches, device and cache_dir.

    The record is taken for data: its classes must be the ones that conf/ names for the model, task and method of these names,
    and none of its paths is used. Where the data and weights come from now is said anew or left to conf/; whether they are the
    recorded ones, their fingerprints decide (`repeat`). Raises ConfigError, also for a record whose config means another run
    today.
    """
    choices = {group: choice(group, "default" if group == "train" else getattr(record.run, group)) for group in GROUPS}
    marks = {group: group_marks(choices[group], group) for group in GROUPS[:3]}
    paths = [f"{group}.{key}" for group, found in marks.items() for key, mark in found.items() if mark in ("place", "source")]
    given = _given(overrides, [*paths, *MICRO, "device", "cache_dir"])
    groups: dict[str, Any] = {}
    for group in GROUPS:
        values = dict(record.run.config[group])
        here = choices[group]
        if group != "train":
            _check_class(values, here, group)
        if values.get("version") != here["version"]:
            raise ConfigError(
                f"the record was made with version {values.get('version')!r} of {group}={here.get('name', 'default')}, this is "
                f"version {here['version']}, which computes something else; its commit is {record.provenance.git_sha}"
            )
        # A key younger than the record: it stands at the value that means "as before".
        added = younger(values, here.get("neutral") or {})
        groups[group] = {**beside(values, added), "neutral": beside(values.get("neutral") or {}, added)}
    usual = resolve("run", ["tracker=none"])
    cache_dir = str(given.get("cache_dir") or usual["cache_dir"])
    for key in paths:
        group, name = key.split(".")
        if groups[group].get(name) not in (None, LOCAL):
            raise ConfigError(f"run.config.{key} shows a path, which no record of this project does")
        said = "task.data_dir" if key == "model.data_dir" else key  # as conf/model says
        value = given.get(key, given.get(said, cache_dir if name == "cache_dir" else None))
        if value is None and groups[group].get(name) == LOCAL:
            value = _written(said, choices)
        if value is not None or name in groups[group]:
            groups[group][name] = value
    for key in MICRO:
        name = key.partition(".")[2]
        groups["train"][name] = given.get(key, groups["train"].get(name))
    groups["train"]["save"] = False
    groups |= {group: normalised(groups[group], group) for group in GROUPS[:3]}
    run = checked(
        RunConfig,
        {
            **groups,
            "tracker": usual["tracker"],
            "claim_timeout": usual["claim_timeout"],
            "seed": record.run.seed,
            "results_dir": str(folder / "results"),
            "work_dir": str(folder / "work"),
            "cache_dir": cache_dir,
            "device": given.get("device") or "auto",
            "progress": False,
            "follows_seed": record.run.follows_seed,
            "unhashed": record.run.unhashed,
        },
    )
    if (run.cell_id, run.run_name) != (record.run.cell_id, record.name):
        raise ConfigError(f"the config in {record.name}.json makes the run {run.run_name}, not the recorded one")
    return run


def _check_class(values: dict[str, Any], here: dict[str, Any], group: str) -> None:
    """Raises ConfigError unless a recorded group is of conf/'s class; a class may have moved since."""
    target, expected = values.get("_target_"), here["_target_"]
    if target != expected and str(target).rpartition(".")[2] == expected.rpartition(".")[2]:
        values["_target_"] = target = expected
    component(values, group)
    if target != expected:
        raise ConfigError(f"run.config.{group}._target_ is {target!r}, conf/{group} has {expected!r}")


def repeat(record: Record, overrides: Sequence[str] = (), threads: int | None = None) -> Record:
    """The record of the same run computed again in a temporary folder, with as many threads as recorded unless told.

    Raises VeraError.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        run = run_of(record, overrides, Path(folder))
        with seeds.threads(max(1, threads or min(record.cost.threads, os.cpu_count() or 1))):
            check_sources(run, record)
            return execute(run)


def compare(recorded: Record, repeated: Record) -> Comparison:
    """Parameter counts, each epoch's loss and metrics, the selected epochs, the work done, why it collapsed and what was noted
    (but for times and earlier starts); and which conditions differ."""
    old, new = dict(_numbers(recorded)), dict(_numbers(repeated))
    younger = {name for name in new if name.startswith("notes.")}  # than a record that lacks them
    names = [*old, *(name for name in new if name not in old and name not in younger)]
    was, now = dict(_conditions(recorded)), dict(_conditions(repeated))
    said = [configured(record.provenance.notes) | _classes(record) for record in (recorded, repeated)]
    for note in (*CONFIGURED, CLASSES):  # where both say it
        if note in said[0] and note in said[1]:
            was[note], now[note] = said[0][note], said[1][note]
    differing = [(name, was.get(name, "-"), now.get(name, "-")) for name in {**was, **now} if was.get(name) != now.get(name)]
    return Comparison([Value(name, old.get(name), new.get(name)) for name in names], differing)


def _numbers(record: Record) -> Iterator[tuple[str, float | str | None]]:
    for name, count in record.parameters.model_dump().items():
        yield f"parameters.{name}", count
    for entry in record.scores.history:
        yield f"epoch {entry.epoch} step", entry.step
        yield f"epoch {entry.epoch} train_loss", entry.train_loss
        for metric, value in entry.metrics.items():
            yield f"epoch {entry.epoch} {metric}", value
    each = {f"best by {metric}:": selected for metric, selected in record.scores.best_each.items()}
    for which, selected in {**record.scores.chosen(), **each}.items():
        yield f"{which} epoch", selected.epoch
        for metric, value in selected.metrics.items():
            yield f"{which} {metric}", value
    yield "cost.steps", record.cost.steps
    yield "cost.examples", record.cost.examples
    yield "collapsed", record.collapsed
    for name, note in record.provenance.notes.items():
        if name not in (*CONFIGURED, CLASSES, "resumed") and not name.endswith("seconds"):
            yield f"notes.{name}", json.dumps(note, sort_keys=True)


def _classes(record: Record) -> dict[str, str]:
    """The names of the classes, which no number depends on: another copy of the data may call them otherwise, or not at all."""
    notes = record.provenance.notes
    return {CLASSES: ", ".join(map(str, notes[CLASSES]))} if CLASSES in notes else {}


def _conditions(record: Record) -> Iterator[tuple[str, str]]:
    about = record.provenance.model_dump(exclude={"started", "finished", "versions", "notes"})
    about |= {f"versions.{name}": version for name, version in record.provenance.versions.items()}
    about |= record.cost.model_dump(include={"device", "precision", "threads", "processes"})
    about |= {key: dotted.get(record.run.config, key) for key in MICRO}
    about["resumed"] = "; ".join(map(json.dumps, record.provenance.notes.get("resumed", []))) or None
    about |= {f"outputs{Path(path).suffix}": mark[:16] for path, mark in record.outputs.items()}
    for name, value in about.items():
        yield name, "-" if value is None else str(value)


def _given(overrides: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key not in allowed:
            raise ConfigError(f"{override}: only {', '.join(allowed)} can be given; the rest is what the record says")
        given[key] = None if value == "null" else os.path.expanduser(value)  # which a shell does not after `task.data_dir=`
    return given
