"""Rows of a local copy of a hub data set, as `hf download` and the hub's cache lay it out: parquet, JSON or JSON lines.

A split's files are called after it, `<split>-00000-of-00002.parquet` or `<split>.jsonl`, or lie in a folder of its name. Those
of a configuration ("rte") lie in a folder of that name. Nothing is copied to the datasets cache.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from vera.errors import DataError, one_line
from vera.io.files import files_below, read_json
from vera.io.rows import check_path, positions, read_text

FORMATS = (".parquet", ".jsonl", ".json")  # the first that a split has is read
DESCRIBING = ("dataset_info.json", "dataset_dict.json")  # of save_to_disk, like a state.json beside the first, and no rows
_SHARD = re.compile(r"^(?P<name>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})$")


def split_files(
    folder: Path, split: str, subset: str | None = None, formats: Sequence[str] = FORMATS, named: Sequence[str] = ()
) -> list[Path]:
    """The files of one split, in order; none where the folder has none of it. named: what a file of all its rows may be called.

    Those of a subset (but "default") lie in a folder of its name, which may be `folder` itself (STS-B is stsb): there, only
    what no other configuration can have counts, files in `folder`, in data/ or in a folder of the split. Raises DataError when
    a shard is missing, and for a split that is there more than once.
    """
    if whole := [folder / name for name in named if (folder / name).is_file()]:
        return whole[:1]
    inside = folder / subset if subset and (folder / subset).is_dir() else folder
    if inside == folder and subset not in (None, "default") and _letters(folder.absolute().name) != _letters(subset):
        return []
    anywhere = subset is None or inside != folder
    every = [path for path in sorted(files_below(inside)) if path.suffix in formats and _belongs(path, inside, split, anywhere)]
    found = next(filter(None, ([path for path in every if path.suffix == ending] for ending in formats)), [])
    folders = {path.parent: path for path in every}
    kinds = folders if len(folders) > 1 else {_series(path, split): path for path in found}
    if len(kinds) > 1:
        names = " and ".join(str(path.relative_to(folder)) for path in kinds.values())
        raise DataError(
            f"{folder} holds the split {split} more than once: {names}; give the folder of one with task.data_dir=, or remove "
            "what is not meant"
        )
    _check_shards(found)
    return found


def not_arrow(folder: Path) -> str:
    """What the refusal of a folder without files of a split adds where the datasets library has saved one there."""
    saved = min(files_below(folder, ".arrow"), default=None)
    if saved is None:
        return ""
    return f"; {saved.relative_to(folder)}, as save_to_disk writes it, is not read: write parquet with Dataset.to_parquet"


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _belongs(path: Path, folder: Path, split: str, anywhere: bool) -> bool:
    *above, name = path.relative_to(folder).parts
    if any(part.startswith(".") for part in (*above, name)) or not (anywhere or {*above} <= {"data", split}):
        return False
    if name in DESCRIBING or (name == "state.json" and path.with_name(DESCRIBING[0]).is_file()):
        return False
    return re.split(r"[-.]", name)[0] == split or above[-1:] == [split]


def _series(path: Path, split: str) -> str:
    """What the files of a split have in common: a number of shards, or a name but for its digits; in a split's folder any."""
    if not path.name.startswith(split):
        return ""
    shard = _SHARD.match(path.stem)
    return f"{shard['name']} of {shard['count']}" if shard else re.sub(r"\d+", "0", path.stem)


def shards(path: Path) -> int:
    """Of how many files this is one, by its name (train-00000-of-00002.parquet); 1 for any other."""
    found = _SHARD.match(path.stem)
    return int(found["count"]) if found else 1


def _check_shards(files: list[Path]) -> None:
    numbered = [found for path in files if (found := _SHARD.match(path.stem))]
    for found in numbered:
        there = {int(other["index"]) for other in numbered if other.group("name", "count") == found.group("name", "count")}
        missing = sorted(set(range(int(found["count"]))) - there)
        if missing:
            name = f"{found['name']}-{missing[0]:05d}-of-{found['count']}{files[0].suffix}"
            raise DataError(f"{files[0].parent} lacks {name}; was the download interrupted?")


def read_columns(files: Sequence[Path], columns: Sequence[str]) -> list[tuple[str, tuple[Any, ...]]]:
    """("file, row N" or "file:line", values of the columns) of every row, classes as `by_name` gives them. Raises DataError,
    naming it, for what is no table."""
    rows = []
    for path in files:
        if path.suffix.lower() == ".parquet":
            rows += [(f"{path}, row {index}", values) for index, values in enumerate(_parquet(path, columns))]
        else:
            rows += _objects(path, columns)
    if not rows:
        raise DataError(f"{', '.join(map(str, files))}: no rows")
    return rows


def _parquet(path: Path, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    positions(path, columns, parquet_columns(path))
    try:
        table = pyarrow.parquet.read_table(path, columns=list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {one_line(error)}") from None
    return list(zip(*(by_name(table[name].to_pylist(), _classes(table.schema, name)) for name in columns), strict=True))


def by_name(values: Iterable[Any], names: Sequence[str] | None) -> list[Any]:
    """Class indices as their names, where a file says what they stand for: two files may count in different orders. An index
    without a name, such as -1 for a missing label, stays."""
    if names is None:
        return list(values)
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else value for value in values]


def _classes(schema: pyarrow.Schema, column: str) -> list[str] | None:
    """The names of a column's classes, as the datasets library writes them into a parquet file."""
    try:
        feature = read_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):  # other metadata than the library's say nothing of classes
        return None


def class_names(path: Path, column: str) -> list[str] | None:
    """The names of a column's classes in their order, where a parquet file says them. Raises DataError."""
    return _classes(_schema(path), column)


def parquet_columns(path: Path) -> list[str]:
    """The columns of a parquet file. Raises DataError."""
    return _schema(path).names


def _schema(path: Path) -> pyarrow.Schema:
    check_path(path)
    try:
        return pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {one_line(error)}") from None


def _objects(path: Path, columns: Sequence[str]) -> list[tuple[str, tuple[Any, ...]]]:
    rows = read_objects(path, columns)
    for where, row in rows:
        positions(where, columns, row)
    return [(where, tuple(row[name] for name in columns)) for where, row in rows]


def read_objects(path: Path, columns: Collection[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """("file:line" or "file, row N", object) of a JSON file that holds a list of objects, or of JSON lines.

    The first character decides, not the name. Empty lines are passed over. Raises DataError, also for an object that has one of
    `columns` twice: which value is meant, no reader could know.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            values = read_json(text, _pairs)
        except ValueError as error:
            raise DataError(f"{path} is not a JSON file: {error}") from None
        rows = [(f"{path}, row {index}", value) for index, value in enumerate(values)]
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold the other line separators as they are
            if line.strip():
                try:
                    rows.append((f"{path}:{number}", read_json(line, _pairs)))
                except ValueError as error:
                    raise DataError(f"{path}:{number} is not JSON: {error}") from None
    for where, value in rows:
        if not isinstance(value, dict):
            raise DataError(f"{where} is not an object")
        twice = [column for column in columns if value.get(column) is _TWICE]
        if twice:
            raise DataError(f"{where} has {twice[0]!r} twice")
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


_TWICE: list[Any] = []  # this object in place of a value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        found |= {name: _TWICE for name, count in counted.items() if count > 1}
    return found
