"""results/paper: the paper's tables as printed, each row with the runs of this project that fill it.

A project outside this repository has tables of its own, under any name, in its published/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, model_validator

from experiments import ARTEFACTS, RESULTS
from vera.config import RunConfig, Strict, checked, choices, conf_file
from vera.config.components import read_yaml
from vera.config.memory import composed
from vera.config.paths import written
from vera.errors import ConfigError, one_line
from vera.project import project

FOLDER = RESULTS / "paper"
DASHES = ("–", "-")  # a cell that its source leaves empty
_CELL = re.compile(r"([-+]?\d*\.?\d+)\s*(?:±\s*(\d*\.?\d+))?")
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)"  # of a count, which may be parted by thousands
UNITS: dict[str, dict[str, float]] = {
    "params": {"": 1, "K": 1e3, "M": 1e6, "B": 1e9},
    "bytes": {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30},
}
Statistic = Literal["median", "mean", "last", "best"]
Schema = TypeVar("Schema", bound=Strict)


class Column(Strict):
    """One measured quantity: a metric of a task's runs, a field of their cost, or a judge's mean score on a question set.

    Printed as scale x value with `digits`. also: the task's other metrics that a row may be printed in, and their names.
    """

    label: str
    task: str
    metric: str | None = None
    also: dict[str, str] = {}
    cost: Literal["seconds", "steps", "examples", "tokens", "peak_memory_bytes"] | None = None
    judged: str | None = None
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    digits: int = Field(default=1, ge=0, le=9)

    @model_validator(mode="after")
    def _one_source(self):
        if sum(source is not None for source in (self.metric, self.cost, self.judged)) != 1:
            raise ValueError("give one of metric, cost and judged")
        return self

    @property
    def score(self) -> str | None:
        """The name under which a record's metrics hold this quantity; None for a cost."""
        return self.metric or (judged_metric(self.judged) if self.judged else None)


def judged_tasks() -> dict[str, str]:
    """By question set, the task whose runs answer it, in the tables that show judges' scores."""
    columns = [column for name in names() for column in load(name).columns.values()]
    return {column.judged: column.task for column in columns if column.judged}


def judged_metric(questions: str) -> str:
    """How the judge's mean score on a question set is called among a record's metrics."""
    return f"judged:{questions}"


def judged_pairs(questions: str, overrides: Sequence[str] = ()) -> set[frozenset[str]]:
    """The rows whose answers judges see side by side, two and two of each model, by their cells; a backbone as it is by its
    model. overrides: of every run. Raises ConfigError."""
    pairs = set()
    for name in names():
        table = load(name)
        for column, model in product(table.columns.values(), table.models):
            if column.judged != questions:
                continue
            rows = [row for row in table.rows if row.model == model]
            sides = [run_of(name, row, column.task, overrides).cell_id if row.method else row.model for row in rows]
            pairs |= set(map(frozenset, zip(sides[::2], sides[1::2], strict=False)))
    return pairs


class Runs(Strict):
    """The runs that fill a row: one model and method, at its recipe but for the keys of `variant`.

    params  the number of trainable parameters as printed.
    scale   the only scale (conf/scale) at which there is such a row; None for every one.
    """

    label: str
    model: str
    method: str | None
    variant: dict[str, Any] = {}
    params: str | None = None
    scale: Literal["paper", "mini"] | None = None

    def overrides(self, task: str) -> list[str]:
        """What to give to scripts/train.py, in front of the seed."""
        return [f"model={self.model}", f"task={task}", f"method={self.method}", *self.settings]

    @property
    def settings(self) -> list[str]:
        """`variant`, as overrides."""
        return [f"{key}={written(value)}" for key, value in self.variant.items()]


class Study(Strict):
    """Who ran a row, on how many seeds, what is printed of them, and of which epoch; None for what its source does not say."""

    by: str
    seeds: int | None = Field(None, ge=1)
    over: Literal["median", "mean"] | None = None
    epoch: Literal["best", "last"] | None = None

    @property
    def stat(self) -> Statistic | None:
        """The statistic of ours that is like it, or nearest to it (`unlike`); None where it is not known."""
        return "last" if self.epoch == "last" else self.over if self.epoch == "best" else None

    @property
    def unlike(self) -> bool:
        """Whether it is known, and none of ours is like it."""
        return self.epoch == "last" and self.over == "mean"


class Row(Runs):
    """One published line. bytes, cells and average are as printed; a row of our own has no cells.

    source   where the paper has it from.
    metrics  by column, where the row is printed in another metric than the column's: one of its `also`.
    remark   why a printed count cannot be had from the method's formula.
    """

    bytes: str | None = None
    source: str
    study: Study | None = None
    metrics: dict[str, str] = {}
    average: str | None = None
    remark: str | None = None
    cells: dict[str, str] = {}


class Series(Runs):
    """One line or bar of a figure. grid: a key and its values, one run each. value: as printed, where it is."""

    method: str | None = None
    grid: dict[str, list[Any]] = Field({}, max_length=1)
    value: float | None = None

    def points(self) -> list[Series]:
        """One for each value of the grid."""
        points = [{key: value} for key, values in self.grid.items() for value in values]
        return [self.model_copy(update={"variant": {**self.variant, **point}, "grid": {}}) for point in points] or [self]


class Figure(Strict):
    """The runs behind one figure, and what is printed in it."""

    figure: str
    title: str
    tasks: list[str]
    notes: list[str] = []
    rows: list[Series] = Field(min_length=1)


class Published(Strict):
    """One table. stat: what the paper takes over the seeds, and so do we unless a row or the reader says otherwise.

    table: its number in the paper; None for numbers published elsewhere, in a file of any name.
    scored: the only epoch after which the task is scored in full; None for every one.
    """

    table: str | None = None
    title: str
    stat: Statistic
    scored: Literal["last"] | None = None
    models: dict[str, str]
    columns: dict[str, Column] = Field(min_length=1)
    notes: list[str] = []
    rows: list[Row] = Field(min_length=1)

    @property
    def source(self) -> str:
        """How a line of its own is called beside ours."""
        return "paper" if self.table else "published"

    @property
    def called(self) -> str:
        return f"Table {self.table}" if self.table else self.title

    @property
    def heading(self) -> str:
        return f"{self.called}: {self.title}" if self.table else self.title

    def columns_of(self, row: Row) -> dict[str, Column]:
        """The columns with the metrics that a row is printed in."""
        own = {key: {"metric": metric} for key, metric in row.metrics.items()}
        return {key: column.model_copy(update=own.get(key)) for key, column in self.columns.items()}

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(column.task for column in self.columns.values()))


def load(name: str, folder: Path | None = None) -> Published:
    """results/paper/<name>.yaml of a table. Raises ConfigError that names the file and the key."""
    published, where = read(Published, name, folder), _where(name)
    for index, row in enumerate(published.rows):
        if row.cells and row.cells.keys() != published.columns.keys():
            columns = ", ".join(published.columns)
            raise ConfigError(f"{where}.rows.{index}.cells ({row.label}): has {', '.join(row.cells)}; columns are {columns}")
        for key, text in {**row.cells, **({"average": row.average} if row.average else {})}.items():
            if text not in DASHES and not _CELL.fullmatch(text):
                raise ConfigError(
                    f"{where}.rows.{index} ({row.label}): {key} is {text!r}, neither a number (with its ±) nor a dash"
                )
        for key, units in UNITS.items():
            text = getattr(row, key)
            if text not in (None, *DASHES) and not re.fullmatch(rf"{NUMBER}({'|'.join(units)})", text):
                known = ", ".join(filter(None, units))
                raise ConfigError(
                    f"{where}.rows.{index} ({row.label}): {key} is {text!r}, neither a dash nor a number, alone or with {known}"
                )
        for key, metric in row.metrics.items():
            column = published.columns.get(key)
            if column is None or metric not in (column.metric, *column.also):
                of = "has no such column" if column is None else f"is no metric of {column.task}"
                there = ", ".join(published.columns if column is None else (column.metric, *column.also))
                raise ConfigError(f"{where}.rows.{index}.metrics.{key} ({row.label}): {metric!r} {of}; there are {there}")
        if row.model not in published.models:
            raise ConfigError(f"{where}.rows.{index}.model ({row.label}): {row.model!r} is not among `models`")
    return published


def number_in(cell: str) -> tuple[float, float | None] | None:
    """A printed cell's number and, where it has one, its ±; None for a dash."""
    found = _CELL.fullmatch(cell)
    return found and (float(found[1]), float(found[2]) if found[2] else None)


def figure(name: str, folder: Path | None = None) -> Figure:
    """results/paper/<name>.yaml of a figure. Raises ConfigError that names the file and the key."""
    return read(Figure, name, folder)


def rows_of(name: str) -> tuple[Sequence[Runs], list[str]]:
    """The rows of a table or figure, and its tasks. Raises ConfigError where results/paper has no rows for it."""
    if name in names():
        table = load(name)
        return table.rows, table.tasks()
    if not _file(name).is_file():
        known = sorted([*names(), *(path.stem for path in FOLDER.glob("figure*.yaml"))])
        raise ConfigError(f"artefacts: results/paper has no rows for {name!r}; there are {', '.join(known)}")
    found = figure(name)
    return [point for row in found.rows for point in row.points()], found.tasks


def choice(name: str, method: str, scale: str = "paper") -> list[str]:
    """Method and variant of a figure's row for a method at a scale, as overrides."""
    row = next(row for row in figure(name).rows if row.method == method and row.scale in (None, scale))
    return [f"method={method}", *row.settings]


def read(schema: type[Schema], name: str, folder: Path | None = None) -> Schema:
    """results/paper/<name>.yaml, or the project's. Raises ConfigError that names the file and the key."""
    where = _where(name)
    try:
        return checked(schema, _mapping(folder / f"{name}.yaml" if folder else _file(name)), where)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # YAML raises ValueError for a date that does not exist
        raise ConfigError(f"{where}: {one_line(error, 300)}") from None


def names(folder: Path | None = None) -> list[str]:
    """Every table of scores in results/paper: the paper's in its order, then others by name, then those of the project.

    Raises ConfigError for one of the others that has the name of something here.
    """
    found = [path.stem for path in (folder or FOLDER).glob("*.yaml") if _scored(path)]
    numbers = {name: re.fullmatch(r"table(\d+)\w*", name) for name in found}
    for name in found:
        _check_free((folder or FOLDER) / f"{name}.yaml")
    found.sort(key=lambda name: (int(number[1]) if (number := numbers[name]) else math.inf, name))
    return found if folder else found + own_names()


def _scored(path: Path) -> bool:
    return {"columns", "rows"} <= _mapping(path).keys()


def own_names() -> list[str]:
    """The project's tables of scores: all of its files but those of figures. Raises ConfigError for one that has the name of
    something here, or would not be read."""
    for path in _own().glob("*.yml"):
        raise ConfigError(f"{path}: only files called .yaml are read; call it {path.stem}.yaml")
    found = [path for path in sorted(_own().glob("*.yaml")) if "figure" not in _mapping(path)]
    for path in found:
        _check_free(path, (FOLDER / path.name).is_file())
    return [path.stem for path in found]


def stands_for(scale: str) -> dict[str, dict[str, str]] | None:
    """What a scale runs in place of the models and tasks of tables; None where these are themselves."""
    return read_yaml(conf_file("scale", scale)).get("stands_for") if scale in choices("scale") else None


def _check_free(path: Path, taken: bool = False) -> None:
    """Raises ConfigError for a table that is called as one of this repository's is, or may be: its modules write several, which
    begin with their names, and miniatures of tables and figures."""
    name = path.stem
    ours = any(name == module.stem or name.startswith(f"{module.stem}_") for module in ARTEFACTS.glob("[!_]*.py"))
    numbered = re.match(r"(table|figure)\d", name) is not None
    if taken or (name != f"table{_mapping(path).get('table')}" if numbered else ours):
        raise ConfigError(f"{path}: there is a {name} already; give this table a name of its own")


def _own() -> Path:
    return (project() or FOLDER / "none") / "published"


def _file(name: str) -> Path:
    path = _own() / f"{name}.yaml"
    return path if path.is_file() else FOLDER / path.name


def _where(name: str) -> str:
    return f"{'published' if _file(name).parent != FOLDER else 'results/paper'}/{name}.yaml"


def run_of(name: str, row: Row, task: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run (at the config's own seed) that fills a row's cells of one task. Raises ConfigError naming file and row."""
    try:
        return composed([*row.overrides(task), *overrides])
    except ConfigError as error:
        raise ConfigError(f"{_where(name)}: row {row.label!r} of {row.model}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    loaded = _parsed(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ConfigError(f"{_where(path.stem)}: not a mapping")
    return loaded


class _EachKeyOnce(yaml.SafeLoader):
    """YAML of which a doubled key is no silent choice of the last one."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.composer.ComposerError(None, None, f"{key[1]!r} is there twice", node.value[index][0].start_mark)
        return node


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    loader = _EachKeyOnce(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
