"""results/paper: the paper's tables as printed, each row with the runs of this project that fill it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from vera.config import RunConfig, Strict, checked
from vera.config.memory import composed
from vera.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "results" / "paper"
Statistic = Literal["median", "mean", "last", "best"]


class Column(Strict):
    """One measured quantity: a metric of a task's runs, a field of their cost, or a judge's mean score on a question set.

    Printed as scale x value with `digits`.
    """

    label: str
    task: str
    metric: str | None = None
    cost: str | None = None
    judged: str | None = None
    scale: float = 1.0
    digits: int = 1

    @model_validator(mode="after")
    def _one_source(self):
        if sum(source is not None for source in (self.metric, self.cost, self.judged)) != 1:
            raise ValueError("give one of metric, cost and judged")
        return self

    @property
    def score(self) -> str | None:
        """The name under which a record's metrics hold this quantity; None for a cost."""
        return self.metric or (judged_metric(self.judged) if self.judged else None)


def judged_metric(questions: str) -> str:
    """How the judge's mean score on a question set is called among a record's metrics."""
    return f"judged:{questions}"


class Row(Strict):
    """One published line. params, bytes, cells and average are as printed.

    variant  config keys that differ from the recipe of this model and method.
    remark   why a printed count cannot be had from the method's formula.
    """

    label: str
    model: str
    method: str | None
    variant: dict[str, Any] = {}
    params: str | None = None
    bytes: str | None = None
    source: str
    average: str | None = None
    remark: str | None = None
    cells: dict[str, str]

    def overrides(self, task: str) -> list[str]:
        """What to give to scripts/train.py, in front of the seed."""
        return [f"model={self.model}", f"task={task}", f"method={self.method}", *(f"{k}={v}" for k, v in self.variant.items())]


class Published(Strict):
    """One table. stat: what the paper takes over the seeds, and so do we unless asked otherwise."""

    table: str
    title: str
    stat: Statistic
    models: dict[str, str]
    columns: dict[str, Column] = Field(min_length=1)
    notes: list[str] = []
    rows: list[Row] = Field(min_length=1)

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(column.task for column in self.columns.values()))


def load(name: str, folder: Path = FOLDER) -> Published:
    """results/paper/<name>.yaml. Raises ConfigError that names the file and the key."""
    path = folder / f"{name}.yaml"
    where = f"results/paper/{path.name}"
    try:
        published = checked(Published, _mapping(path), where)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # YAML raises ValueError for a date that does not exist
        raise ConfigError(f"{where}: {' '.join(str(error).split())[:300]}") from None
    for index, row in enumerate(published.rows):
        if row.cells.keys() != published.columns.keys():
            columns = ", ".join(published.columns)
            raise ConfigError(f"{where}.rows.{index}.cells ({row.label}): has {', '.join(row.cells)}; columns are {columns}")
        if row.model not in published.models:
            raise ConfigError(f"{where}.rows.{index}.model ({row.label}): {row.model!r} is not among `models`")
    return published


def names(folder: Path = FOLDER) -> list[str]:
    """Every table of scores in results/paper, in the paper's order."""
    found = [path.stem for path in folder.glob("table*.yaml") if "columns" in _mapping(path)]
    return sorted(found, key=lambda name: (int(re.search(r"\d+", name).group()), name))


def run_of(name: str, row: Row, task: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run (at the config's own seed) that fills a row's cells of one task. Raises ConfigError naming file and row."""
    try:
        return composed([*row.overrides(task), *overrides])
    except ConfigError as error:
        raise ConfigError(f"results/paper/{name}.yaml: row {row.label!r} of {row.model}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    loaded = _parsed(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ConfigError(f"results/paper/{path.name}: not a mapping")
    return loaded


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)
