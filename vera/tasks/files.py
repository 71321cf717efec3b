"""Own texts by a yaml: CSV, TSV, JSON lines, parquet, or a data set on the hub by its columns."""

from __future__ import annotations

import re
from collections import Counter
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from sklearn.model_selection import train_test_split

from vera.config import HubId, Source
from vera.errors import ConfigError, DataError
from vera.io import hub, tables
from vera.io.hub import HubData
from vera.io.rows import csv_columns, number_of, read_csv, read_text
from vera.tasks.base import twice
from vera.tasks.metrics import OF_CLASSES, OF_SCORES, named
from vera.tasks.text import Row, Splits, TextTask, synthetic_rows
from vera.tasks.tsv import read_tsv

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]
Metric = Literal[(*OF_CLASSES, *OF_SCORES)]  # type: ignore[valid-type]
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
READ = ".csv, .tsv or .txt (tab-separated, no quotes), .jsonl, .json, .parquet"
_INSIDE = re.compile(r"(?!/)(?!.*(^|/)\.\.(/|$)).+")  # a file below a folder


class TextFiles(TextTask):
    """A class, or a score, of one text or of a pair.

    files      by split, below data_dir; their endings say how they are read. data_dir: the folder.
    hub        or a data set's id there, hub_subset its configuration, splits by our names; data_dir: a local copy of it.
    texts      the column of the text, or two of a pair; label: the column of the label.
    labels     what the files print, in the order of the class indices, and the names of those of a parquet file or hub that has
               indices with names; []: a score, any number.
    metrics    by name (vera.tasks.metrics), of all of which more is better.

    With train, validation and test the epoch is chosen on validation and test is read once. With two of them the second is
    both, or `validation: 0.1` keeps a tenth of train apart (vera.tasks.split). held_out: with train alone, the part of its rows
    that is the second, the same whatever the seed.
    """

    files: dict[Split, str] = {}
    data_dir: Annotated[str | None, Source] = None
    hub: HubId | None = None
    hub_subset: str | None = None
    splits: dict[Split, str] = {}
    held_out: float | None = Field(default=None, gt=0, lt=1)
    texts: list[str] = Field(min_length=1, max_length=2)
    label: str
    labels: list[str | int] = []
    metrics: list[Metric] = Field(min_length=1)

    @field_validator("files")
    @classmethod
    def _below(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files.values():
            if not _INSIDE.fullmatch(name):
                raise PydanticCustomError("below", "{name} must be a file below task.data_dir", {"name": name})
            if Path(name).suffix.lower() not in ENDINGS:
                raise PydanticCustomError("ending", "{name} is none of {read}", {"name": name, "read": READ})
        return files

    @field_validator("labels")
    @classmethod
    def _classes(cls, labels: list[str | int]) -> list[str | int]:
        texts = [str(label) for label in labels]
        if len(texts) == 1 or len(set(texts)) < len(texts):
            raise PydanticCustomError("labels", "must be two or more different ones, or none for a score")
        return labels

    @model_validator(mode="after")
    def _together(self):
        names = self.named
        allowed = OF_CLASSES if self.labels else OF_SCORES
        foreign = [metric for metric in self.metrics if metric not in allowed]
        problem = None
        if (self.hub is None) == (not self.files) or (self.hub is None) == bool(self.splits):
            problem = "give files, or hub with splits"
        elif "train" not in names or (len(names) < 2) == (self.held_out is None):
            problem = "name train, and validation or test or both; train alone needs held_out, and nothing else does"
        elif again := twice([normpath(name) for name in names.values()]):
            problem = f"{again} is named for two splits"
        elif again := twice([*self.texts, self.label]):
            problem = f"{again} is named for two columns"
        elif foreign:
            problem = f"{foreign[0]} is no metric of {'classes' if self.labels else 'a score'}; there are {', '.join(allowed)}"
        elif "f1" in self.metrics and self.outputs > 2:
            problem = "f1 is of two classes; f1_macro is of more"
        elif self.primary not in self.metrics:
            problem = f"primary={self.primary} is not among its metrics: {', '.join(self.metrics)}"
        if problem:
            raise PydanticCustomError("together", "{problem}", {"problem": problem})
        return self

    @property
    def named(self) -> dict[str, str]:
        """The file, or the hub's split, by our names of the splits."""
        return {str(split): name for split, name in (self.splits if self.hub else self.files).items()}

    @property
    def scored(self) -> tuple[str, ...]:
        return tuple(self.metrics)

    @property
    def outputs(self) -> int:
        return len(self.labels) or 1

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return tuple(map(str, self.labels)) or None

    def score(self, logits, labels):
        predictions = logits.argmax(-1) if self.labels else logits.squeeze(-1)
        return named(self.metrics, predictions.numpy(), labels.numpy())

    def hub_data(self):
        if self.synthetic or self.hub is None or self.data_dir is not None:
            return None
        return HubData(self.hub, "main", self.hub_subset, tuple(self.splits.values()), (*self.texts, self.label))

    def source_rows(self) -> tuple[Splits, str, str | None]:
        if self.synthetic:
            return synthetic_rows(len(self.texts), len(self.labels) or None), "synthetic", None
        commit = None
        if self.hub_data() is not None:
            found, commit = hub.load_rows(self.hub_data(), "give a folder with its files with task.data_dir=")
            by_split = {split: found[name] for split, name in self.named.items()}
        elif self.data_dir is None:
            raise ConfigError(f"task={self.name} reads files; give their folder with task.data_dir=")
        else:
            by_split = {split: self._read(Path(self.data_dir), name) for split, name in self.named.items()}
        rows = {split: [self._row(where, values) for where, values in found] for split, found in by_split.items()}
        if self.held_out is not None:
            rows = self._divided(rows["train"])
        elif "validation" not in rows:
            rows["validation"] = rows.pop("test")  # the only one beside train
        return rows, self.hub or ", ".join(self.files.values()), commit

    def _divided(self, rows: list[Row]) -> Splits:
        """Two parts of the rows, with the classes in their proportions."""
        classes = [label for _, label in rows] if self.labels else None
        alone = next((label for label, count in Counter(classes or ()).items() if count == 1), None)
        if alone is not None:
            raise DataError(
                f"task.held_out={self.held_out}: class {self.labels[int(alone)]!r} has one row, and both parts need one; give "
                "it more, take it out, or name a file of the other split"
            )
        try:
            train, validation = train_test_split(rows, test_size=self.held_out, random_state=0, stratify=classes)
        except ValueError:
            raise DataError(
                f"task.held_out={self.held_out} of {len(rows)} rows: each part needs a row"
                + (f" of each of the {len(set(classes))} classes" if classes else "")
                + "; take another part of them, or name a file of the other split"
            ) from None
        return {"train": train, "validation": validation}

    def plain(self, label):
        return float(f"{label:.6g}")  # of a score of any size

    def _read(self, folder: Path, name: str) -> list[tuple[str, tuple[Any, ...]]]:
        """("file:line", texts and label) of every row of a file, or of a split of a copy of the hub's. Raises DataError."""
        columns = (*self.texts, self.label)
        if self.hub is None:
            return read_table(folder / name, columns)
        paths = tables.split_files(folder, name, self.hub_subset)
        if not paths:
            of = f" in a folder {self.hub_subset}" if self.hub_subset else ""
            raise DataError(
                f"task.data_dir={folder} holds no files of the split {name}{of} "
                f"({', '.join(tables.FORMATS)}; CSV is read by files:){tables.not_arrow(folder)}"
            )
        return tables.read_columns(paths, columns)

    def _row(self, where: str, values: tuple[Any, ...]) -> Row:
        *texts, label = values
        for column, text in zip(self.texts, texts, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{where}, column {column!r}: {'an empty text' if text in ('', None) else f'{text!r} is no text'}"
                )
        if not self.labels:
            score = number_of(label)
            if score is None:
                raise DataError(f"{where}, column {self.label!r}: {label!r} is not a number")
            return tuple(texts), score
        label = label_of(where, self.label, label)
        if label not in self.class_names:
            by_name = all(map(str.isdecimal, self.class_names)) and (self.hub is not None or ".parquet, row" in where)
            raise DataError(
                f"{where}, column {self.label!r}: {label!r} is not one of task.labels: {', '.join(self.class_names)}"
                + "; indices that have names there are read as these" * by_name
            )
        return tuple(texts), self.class_names.index(label)


def label_of(where: str, column: str, value: Any) -> str:
    """A label as its class is written, 1.0 as "1". Raises DataError for a missing one (null, NaN, an empty cell) or a list."""
    if value is None or value != value or isinstance(value, (list, dict)) or not str(value).strip():
        raise DataError(f"{where}, column {column!r}: {value!r} is no label")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _ending(path: Path) -> str:
    """By which a file is read. Raises DataError for one that is not there, or that nothing reads."""
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path} is none of {READ}")
    return path.suffix.lower()


def columns_of(path: Path) -> list[str]:
    """The columns that a file has, in their order; of JSON those of the first object. Raises DataError."""
    ending = _ending(path)
    if ending == ".parquet":
        return tables.parquet_columns(path)
    if ending in (".jsonl", ".json"):
        return list(tables.read_objects(path)[0][1])
    if ending == ".csv":
        return csv_columns(path)
    return read_text(path).partition("\n")[0].removesuffix("\r").split("\t")


def _unquoted(where: str, columns: tuple[str, ...], row: list[str]) -> tuple[str, ...]:
    """A row of a file without quoting. Raises DataError for a value in which quotes are doubled, as in CSV."""
    for column, value in zip(columns, row, strict=True):
        if len(value) > 1 and value[0] == value[-1] == '"' and '""' in value[1:-1]:
            raise DataError(
                f"{where}, column {column!r}: {value[:60]} is quoted as in CSV, and these files are read without quotes; "
                "write it as .csv, or without quoting"
            )
    return tuple(row)


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, tuple[Any, ...]]]:
    """("file:line", values of the columns) of every row of a file, which is read by its ending (READ); values may be
    empty. Raises DataError."""
    ending = _ending(path)
    if (parts := tables.shards(path)) > 1:
        raise DataError(
            f"{path} is one of {parts} parts of its split: join them into one file, or read all of them by the split's name, "
            f"with hub: <name/of it>, splits: {{train: train, ...}} and data_dir: {path.parent} in the task's yaml"
        )
    if ending == ".csv":
        return [(where, tuple(row)) for where, row in read_csv(path, columns, may_be_empty=columns)]
    if ending in (".tsv", ".txt"):
        return [(where, _unquoted(where, columns, row)) for where, row in read_tsv(path, columns, header=True)]
    return tables.read_columns([path], columns)
