"""Records as rows of a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vera.config import GROUPS, beside, choice, choices, conf_folders, dotted, younger
from vera.errors import RecordError
from vera.records.record import Record
from vera.records.sources import CONFIGURED, code_said, configured
from vera.records.store import Store

if TYPE_CHECKING:
    import pandas

NOT_SETTINGS = {"name", "neutral", "facts", "_target_"}  # of a group, as far as telling runs apart goes
CODE = {f"{group}_code": group for group in GROUPS[:3]}  # of a project's own classes
# Fingerprints in the provenance and its notes, and of which group they are.
PRINTS = {"model_fingerprint": "model", "data_fingerprint": "task", **dict.fromkeys(CONFIGURED, "model"), **CODE}


def frame(results_dir: str | Path = "results", history: bool = False) -> pandas.DataFrame:
    """Every record of a results folder, one row a run, by file name.

    Columns: model, task, method, seed, cell (eight digits of the cell_id); parameters and head_parameters (trained);
    best_epoch; for each metric (a fraction) best_*, last_* and, where the epoch was chosen on other rows, test_*; collapsed
    (null, or why); seconds, steps, peak_memory_bytes; device, precision, threads, processes; commit; and each key of the
    configuration that is not the same in all of them, as model.*, task.*, method.* or train.*, null for a run that has no such
    key. Where one model, task or method has records of several versions, model.version, task.version or method.version; where
    one model or task has several fingerprints, model_fingerprint, configuration, preprocessing or data_fingerprint; where a
    project's own class has been several, model_code, task_code or method_code.

    history: one row an evaluated epoch instead: epoch, step, train_loss and the metrics by their names, of the rows that choose
    the epoch. Raises RecordError for a folder without records, or with an invalid one.
    """
    import pandas  # not needed by runs

    records = Store(results_dir).records()
    if not records:
        raise RecordError(f"{results_dir} holds no record: there is nothing in {Store(results_dir).runs}")
    settings = varying([record.run.config for record in records])
    prints = {key: [_print(record, key) for record in records] for key in PRINTS}
    for key, group in PRINTS.items():
        named = zip((record.run.config[group]["name"] for record in records), prints[key], strict=True)
        if not _several((name, value) for name, value in named if value is not None):
            del prints[key]
    rows = [
        {**identity(record), **part, **chosen, **{key: values[index] for key, values in prints.items()}}
        for index, (record, chosen) in enumerate(zip(records, settings, strict=True))
        for part in (_epochs(record) if history else [_scores(record)])
    ]
    for key in dict.fromkeys(key for row in rows for key in row):
        kinds = {type(row[key]) for row in rows if row.get(key) is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:  # task.validation is dev or 0.1: a column has one type
            rows = [{**row, key: None if row.get(key) is None else str(row[key])} for row in rows]
    return pandas.DataFrame(rows)


def identity(record: Record) -> dict[str, Any]:
    run = record.run
    return {"model": run.model, "task": run.task, "method": run.method, "seed": run.seed, "cell": run.cell_id[:8]}


def _scores(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": record.parameters.adapter, "head_parameters": record.parameters.head}
    found["primary"], found["best_epoch"] = record.scores.primary, record.scores.best.epoch
    for which, selected in record.scores.chosen().items():
        found |= {f"{which}_{metric}": value for metric, value in selected.metrics.items()}
    cost = record.cost
    return {
        **found,
        "collapsed": record.collapsed,
        "seconds": cost.seconds,
        "steps": cost.steps,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "device": cost.device,
        **{"precision": cost.precision, "threads": cost.threads, "processes": cost.processes},
        "commit": record.provenance.git_sha,
    }


def _epochs(record: Record) -> Iterator[dict[str, Any]]:
    for entry in record.scores.history:
        yield {"epoch": entry.epoch, "step": entry.step, "train_loss": entry.train_loss, **entry.metrics}


def varying(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration the keys, dotted, in whose values they differ; a seed that follows the run's differs as well. A
    version where one component has several: by another name it is another one anyway."""
    flat = [dict(leaves(config)) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    differing = [key for key in keys if any(settings.get(key) != flat[0].get(key) for settings in flat)]
    for group in GROUPS:
        versions = ((str(config[group].get("name")), config[group].get("version")) for config in configs)
        if (key := f"{group}.version") in differing and not _several(versions):
            differing.remove(key)
    return [{key: settings.get(key) for key in differing} for settings in flat]


def _several(pairs: Iterable[tuple[str, Any]]) -> bool:
    """Whether one name stands with several values."""
    distinct = set(pairs)
    return len(distinct) > len({name for name, _ in distinct})


def _print(record: Record, key: str) -> str | None:
    """None of what an older record does not note."""
    if key in CODE:
        return code_said(record, [CODE[key]])
    return configured(record.provenance.notes).get(key) if key in CONFIGURED else getattr(record.provenance, key)


def leaves(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a configuration by dotted key; a list is a text such as "query, value". A key that is younger than the
    record has the value that means "as before"."""
    for group in GROUPS:
        values = config[group]
        name = "default" if group == "train" else str(values.get("name"))
        values = beside(values, younger(values, _neutral(group, name, values.get("version"), *conf_folders())))
        for key, value in dotted.leaves({key: value for key, value in values.items() if key not in NOT_SETTINGS}, f"{group}."):
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


@lru_cache(maxsize=1024)
def _neutral(group: str, name: str, version: Any, *_: Path) -> dict[str, Any]:
    """What conf/ says of a component's younger keys; nothing of one that it lacks or has in another version."""
    if name not in choices(group):
        return {}
    here = choice(group, name)
    return here.get("neutral") or {} if here["version"] == version else {}
