"""Encoded images with their labels: from the hub, from parquet files, from folders named after their classes. No decoding."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from vera.errors import DataError, one_line
from vera.io import hub, tables
from vera.io.files import files_below
from vera.io.rows import check_path, spelt
from vera.seeds import derive

IMAGE, LABEL = "image", "label"
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}  # as far as no class folder says it
STRAY = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}  # names in lower case


@dataclass(frozen=True)
class Rows:
    """Images as they are stored, in a fixed order.

    data      a data set whose column "image" holds {"bytes", "path"}.
    labels    class indices [N].
    names     names of the classes, where the source has them.
    where     how an error calls them.
    identity  changes when the images or their order may have changed; finding it reads no image.
    stray     files of the folders that were passed over, such as Thumbs.db.
    """

    data: datasets.Dataset
    labels: np.ndarray
    names: Sequence[str] | None
    where: str
    identity: str
    stray: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, row: int) -> bytes:
        """The bytes of one image file. Raises OSError, or ValueError for an empty cell."""
        value = self.data[row][IMAGE]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise ValueError("the cell is empty")
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    def name(self, row: int) -> str:
        path = (self.data[row][IMAGE] or {}).get("path")
        return f"{self.where} row {row}" + (f" ({path})" if path else "")

    def class_name(self, label: int) -> str:
        return str(label) if self.names is None else f"{label} ({self.names[label]})"


def check_classes(splits: list[Rows]) -> None:
    """Raises DataError where two splits that name their classes do not give one index one name."""
    named = [(rows.where, rows.names) for rows in splits if rows.names is not None]
    for where, names in named:
        check_names(*named[0], where, names)


def check_names(first: str, names: Sequence[str], other: str, others: Sequence[str]) -> None:
    """Raises DataError where two places do not name the same classes in the same order."""
    if list(names) != list(others):
        odd = sorted(set(names) ^ set(others))
        if not odd:
            raise DataError(f"{first} and {other} name the same classes in another order; give them in one order")
        there = {spelt(name): name for name in others if name in odd}
        alike = next(((name, there[spelt(name)]) for name in names if name in odd and spelt(name) in there), None)
        differs = f"{odd[0]!r} differs" if alike is None else f"{' and '.join(map(ascii, alike))} are two spellings"
        raise DataError(
            f"{first} and {other} do not name the same classes: {differs}; give all the same classes in the same order"
        )


def class_names(parts: Iterable[Rows]) -> Sequence[str] | None:
    """The names of the classes of several splits, whose classes agree, where one of them has some."""
    return next((part.names for part in parts if part.names is not None), None)


def joined(parts: list[Rows]) -> Rows:
    """Several splits, whose classes agree, as one, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        data=datasets.concatenate_datasets([part.data for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        names=class_names(parts),
        where="+".join(part.where for part in parts),
        identity=json.dumps([part.identity for part in parts]),
        stray=sum(part.stray for part in parts),
    )


def from_hub(
    repository: str, splits: Sequence[str], image: str, label: str, classes: int, cache_dir: Path
) -> tuple[dict[str, Rows], str | None]:
    """Rows by split and the hub's commit; without a network from the hub's cache. Raises DataError."""
    if not hub.commit(repository, "main", "dataset")[1]:
        folder = hub.snapshot(repository)
        if folder is not None and all(parquet_files(folder, split) for split in splits):
            return from_folder(folder, splits, image, label, classes, cache_dir), hub.commit_in(str(folder))
    loaded, commit = hub.load_dataset(
        repository, None, "give a folder of parquet files or of class-named image folders with task.data_dir=/path"
    )
    found = {}
    for split in splits:
        if split not in loaded:
            raise DataError(f"data set {repository} has no split {split!r}; it has {', '.join(loaded)}")
        identity = f"{repository}@{commit or loaded[split]._fingerprint}:{split}"
        found[split] = _from_table(loaded[split], image, label, classes, f"{repository} {split}", identity)
    return found, commit


def from_folder(folder: Path, splits: Sequence[str], image: str, label: str, classes: int, cache_dir: Path) -> dict[str, Rows]:
    """Rows by split from a local copy: parquet files (<split>*.parquet, or a folder of them for each split), or a folder for
    each split with a folder of images for each class. Without split folders, the class folders count as the first split, and
    the others are empty. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"task.data_dir={folder} is not a folder")
    if any(files_below(folder, ".parquet")):
        return {split: _from_parquet(folder, split, image, label, classes, cache_dir) for split in splits}
    present = [split for split in splits if (folder / split).is_dir()]
    if len(present) == len(splits):
        return {split: _from_class_folders(folder / split, classes, split) for split in splits}
    if present or not _folders(folder):
        missing = next(split for split in splits if split not in present)
        raise DataError(
            f"task.data_dir={folder} holds neither parquet files nor a folder {missing!r} with one folder of images a class"
            + tables.not_arrow(folder)
        )
    return {splits[0]: _from_class_folders(folder, classes, folder.name)}


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of one split; none where there are none."""
    return tables.split_files(folder, split, formats=(".parquet",))


def of_split(folder: Path, split: str) -> list[Path]:
    """The parquet files of one split. Raises DataError when there is none."""
    files = parquet_files(folder, split)
    if not files:
        raise DataError(f"task.data_dir={folder} holds no parquet file of the split {split!r} (such as {split}.parquet)")
    return files


def check_columns(where: str, names: Sequence[str], image: str, label: str) -> None:
    """Raises DataError for a table that lacks one of the columns."""
    for key, column in (("task.image_column", image), ("task.label_column", label)):
        if column not in names:
            raise DataError(f"{where} has no column {column!r}; it has {', '.join(names)}: choose one with {key}=")


def _from_parquet(folder, split, image, label, classes, cache_dir) -> Rows:
    files = of_split(folder, split)
    named = [(path.name, names) for path in files if (names := tables.class_names(path, label)) is not None]
    for name, names in named:  # the library takes those of the first for all
        check_names(*named[0], name, names)
    identity = _identity(folder, files)
    tables_dir = cache_dir / "datasets" / hashlib.sha256(identity.encode()).hexdigest()[:16]  # the library compares times alone
    try:
        datasets.disable_progress_bars()
        table = datasets.load_dataset(
            "parquet", data_files={split: [str(path) for path in files]}, split=split, cache_dir=str(tables_dir)
        )
    except Exception as error:  # of pyarrow and datasets, without a base in common
        raise DataError(
            f"{files[0].parent} ({split}) cannot be read as parquet: {one_line(error.__cause__ or error)}"
        ) from None
    return _from_table(table, image, label, classes, split, identity)


def _from_table(table: datasets.Dataset, image: str, label: str, classes: int, where: str, identity: str) -> Rows:
    check_columns(where, table.column_names, image, label)
    names = getattr(table.features[label], "names", None)
    if names is not None and len(names) != classes:
        raise DataError(f"{where}: {label} has {len(names)} named classes, expected {classes} (task.classes)")
    labels = table[label][:]
    for row, value in enumerate(labels):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < classes:
            raise DataError(f"{where} row {row}: {label} is {value!r}, not a class from 0 to {classes - 1} (task.classes)")
    try:
        data = table.select_columns([image]).rename_columns({image: IMAGE}).cast_column(IMAGE, datasets.Image(decode=False))
    except Exception as error:  # of pyarrow and datasets, without a base in common
        raise DataError(f"{where}: column {image!r} holds no images ({one_line(error)})") from None
    return Rows(data, np.array(labels, dtype=np.int64), names, where, f"{identity}:{image}:{label}")


def _from_class_folders(folder: Path, classes: int, where: str) -> Rows:
    names = _folders(folder)
    if len(names) != classes:
        raise DataError(f"{folder} has {len(names)} class folders, expected {classes} (task.classes)")
    files = class_files(folder)
    flat = [path for found in files.values() for path in found]
    return Rows(
        data=_dataset([{"bytes": None, "path": str(path)} for path in flat]),
        labels=np.repeat(np.arange(classes), list(map(len, files.values()))),
        names=names,
        where=where,
        identity=_identity(folder, flat),
        stray=sum(path.is_file() for name in names for path in (folder / name).iterdir()) - len(flat),
    )


def class_files(folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder, by its name; what _stray says is passed over. Raises DataError for a class without
    images, for links to nothing, for names that are not UTF-8, and for images that lie elsewhere: deeper in a class folder, or
    beside the class folders."""
    found = {}
    for name in _folders(folder):
        inside = [path for path in sorted((folder / name).iterdir()) if not _stray(path)]
        for path in inside:
            check_path(path)
        deeper = [path for below in inside if below.is_dir() for path in files_below(below) if not _stray(path)]
        if deeper:
            raise DataError(f"{deeper[0]} lies in a folder inside the class folder {folder / name}; move its images up into it")
        found[name] = [path for path in inside if path.is_file()]
        if len(found[name]) < len(inside) and (gone := [path for path in inside if not path.exists()]):
            raise DataError(f"{len(gone)} of the files in {folder / name} are links to nothing, such as {gone[0]}")
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"{folder} has no images of {', '.join(map(repr, empty[:5]))}: put some in, or remove the folder")
    beside = [
        path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGES and not _stray(path) and path.is_file()
    ]
    if found and beside:
        raise DataError(f"{beside[0]} lies beside the class folders of {folder}; move it into one of them, or elsewhere")
    return found


def _stray(path: Path) -> bool:
    """What file managers and archivers leave in folders: no image, no class."""
    return path.name.startswith(".") or path.name.lower() in STRAY


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _stray(path))


def _identity(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        about = path.stat()
        times = f"{about.st_mtime_ns}\0{about.st_ctime_ns}"  # a copy may be given the time of what it replaces
        digest.update(f"{path.relative_to(folder)}\0{about.st_size}\0{times}\n".encode())
    return f"{folder.resolve()}:{digest.hexdigest()}"


def _dataset(images: list[dict]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({IMAGE: images}, features=datasets.Features({IMAGE: datasets.Image(decode=False)}))


def synthetic(classes: int, per_class: int, where: str) -> Rows:
    """Small noisy images whose mean colour follows from the class: for rehearsals and tests, no meaning."""
    draws = np.random.default_rng(derive(0, "synthetic"))
    labels: np.ndarray = np.repeat(np.arange(classes), per_class)
    images = []
    for label in labels:
        color = np.array([label * 37 % 200, label * 91 % 200, label * 53 % 200])
        buffer = io.BytesIO()
        Image.fromarray((color + draws.integers(0, 56, (10, 12, 3))).astype(np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    return Rows(_dataset(images), labels, None, where, f"synthetic:{classes}:{per_class}")
