"""Few-shot image classification (paper, section 4.4 and Table 5): ten images a class to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from vera.config import HubId, Operational, Place, Source
from vera.errors import ConfigError, DataError
from vera.io import tables
from vera.io.files import files_below
from vera.io.hub import HubData
from vera.models.base import Backbone
from vera.records.sources import CLASSES, DRAWN
from vera.seeds import derive
from vera.tasks import image_cache, image_rows
from vera.tasks.base import Data, Made, Task, twice
from vera.tasks.image_rows import Rows
from vera.tasks.metrics import METRICS, compute
from vera.tasks.split import split


class FewShot(Task):
    """Images with a few training examples a class, scored by accuracy. The choice depends on the seed alone."""

    modality: ClassVar[str] = "image"

    train_per_class: int = Field(ge=1)

    @property
    def scored(self) -> tuple[str, ...]:
        return METRICS["accuracy"]

    def check_left(self, images: int) -> None:
        """Raises DataError where all of these images of the classes are drawn to train on."""
        if images == self.outputs * (self.train_per_class or 0):
            raise DataError(
                f"task.train_per_class={self.train_per_class} draws all {images} images, which leaves none to score on; draw "
                + ("fewer, or name eval_splits" if hasattr(self, "eval_splits") else "fewer")
            )

    def score(self, logits, labels):
        return compute("accuracy", logits.argmax(-1).numpy(), labels.numpy())


class Images(FewShot):
    """conf/task/{cifar100,food101,flowers102,resisc45}.yaml.

    repository     id on the hub; null for images that are in data_dir alone.
    data_dir       a local copy instead: parquet files, or class-named folders of images (image_rows.from_folder says how).
    train_per_class  images a class to train on; null: all of train_splits, which then need eval_splits beside them.
    image_column, label_column    names in the hub's or the parquet files' tables.
    train_splits   training images are drawn from these; a few-shot row number counts through them in this order.
    eval_splits    evaluated in full; empty: all images of train_splits that were not drawn.
    cache_dir      decoded images are kept below it: the drawn ones of each seed, and the evaluated ones once.
    workers        processes that decode; null: one a CPU core, eight at most.
    """

    train_per_class: int | None = Field(ge=1)  # type: ignore[assignment]
    repository: HubId | None
    data_dir: Annotated[str | None, Source] = None
    image_column: str
    label_column: str
    train_splits: list[str] = Field(min_length=1)
    eval_splits: list[str]
    classes: int = Field(ge=2)
    cache_dir: Annotated[str, Place]
    workers: Annotated[int | None, Operational] = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _each_split_once(self):
        if again := twice(map(normpath, [*self.train_splits, *self.eval_splits])):
            said = "{split} is named twice in train_splits and eval_splits, and no image may be trained on and scored"
            raise PydanticCustomError("twice", said, {"split": again})
        return self

    @property
    def outputs(self) -> int:
        return self.classes

    def load(self, backbone: Backbone, seed: int) -> Data:
        pool, evaluation, source, commit = _read(self.model_dump_json())
        notes: dict[str, Any] = {}
        chosen = None
        names = image_rows.class_names(rows for rows in (pool, evaluation) if rows is not None)
        if names is not None:
            notes[CLASSES] = list(names)
        if self.train_per_class is not None:
            chosen = few_shot(pool.labels, range(self.classes), self.train_per_class, seed, pool.class_name)
            notes["few_shot_rows"] = chosen.tolist()
        if evaluation is None:  # everything that was not drawn, from one array of all images
            rest = np.setdiff1d(np.arange(len(pool)), chosen)
            everything = self._prepare(backbone, pool, None)
            prepared, prints = [everything], (everything.prints[chosen], everything.prints[rest])
            train = Examples(everything.pixels, pool.labels, chosen)
            evaluated = Examples(everything.pixels, pool.labels, rest)
            fingerprints = [everything.fingerprint]
        else:
            few = self._prepare(backbone, pool, chosen)
            everything = self._prepare(backbone, evaluation, None)
            prepared, prints = [few, everything], (few.prints, everything.prints)
            labels = pool.labels if chosen is None else pool.labels[chosen]
            train = Examples(few.pixels, labels, np.arange(len(labels)))
            evaluated = Examples(everything.pixels, evaluation.labels, np.arange(len(evaluation)))
            fingerprints = [everything.fingerprint, _fingerprint(evaluation.labels)]
            if chosen is None:
                fingerprints.append(few.fingerprint)
            else:  # differs by seed
                notes[DRAWN] = few.fingerprint
        data = Data(
            train=train,
            evaluation=evaluated,
            collate=collate_images,
            on_device=_normalised(backbone.preprocess.normalise),
            source=source,
            commit=commit,
            fingerprint=hashlib.sha256(" ".join([*fingerprints, _fingerprint(pool.labels)]).encode()).hexdigest()[:16],
            notes={**notes, **_passed_over([pool, evaluation], prepared)},
            made={"train": Made(prints[0].tolist()), "evaluation": Made(prints[1].tolist())},
        )
        self._warn(split(self, data))
        return data

    def strata(self, examples):
        return examples.labels[examples.rows].tolist()  # without reading an image

    def _prepare(self, backbone: Backbone, rows: Rows, chosen: np.ndarray | None) -> image_cache.Prepared:
        return image_cache.prepare(rows, chosen, backbone.preprocess, Path(self.cache_dir), self.workers)

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys([*self.train_splits, *self.eval_splits]))

    def hub_data(self):
        if self.synthetic or self.data_dir is not None or self.repository is None:
            return None
        return HubData(self.repository, "main", None, tuple(self.splits), (self.image_column, self.label_column))

    def inspect(self):
        """Folders are listed; of parquet files the column names are read."""
        folder = Path(self.data_dir or "")
        if self.synthetic or self.data_dir is None or not any(files_below(folder, ".parquet")):
            _read(self.model_dump_json())
            return
        for name in self.splits:
            for path in image_rows.of_split(folder, name):
                names = tables.parquet_columns(path)
                image_rows.check_columns(f"{path} ({name})", names, self.image_column, self.label_column)

    def source_rows(self) -> tuple[dict[str, Rows], str, str | None]:
        """Rows of every split that the yaml names, where they come from, and the hub's commit. Raises DataError."""
        splits = self.splits
        if self.synthetic:
            spare = 0 if self.eval_splits else 1
            sizes = dict.fromkeys(splits, 1) | {self.train_splits[0]: (self.train_per_class or 1) + spare}
            return {split: image_rows.synthetic(self.classes, n, split) for split, n in sizes.items()}, "synthetic", None
        columns = (self.image_column, self.label_column, self.classes)
        if self.data_dir is None and self.repository is None:
            raise ConfigError(f"task={self.name} reads a folder of images; give it with task.data_dir=")
        if self.data_dir is None:
            found, commit = image_rows.from_hub(self.repository, splits, *columns, Path(self.cache_dir))
            return found, str(self.repository), commit
        return image_rows.from_folder(Path(self.data_dir), splits, *columns, Path(self.cache_dir)), "local folder", None


@lru_cache(maxsize=1)  # a sweep runs all seeds of a task in a row
def _read(task: str) -> tuple[Rows, Rows | None, str, str | None]:
    """Training pool, evaluation set (None: what is left of the pool), source and commit of a task given as JSON."""
    settings = Images.model_validate_json(task)
    if settings.train_per_class is None and not settings.eval_splits:
        raise ConfigError("task.train_per_class=null trains on all of train_splits; name eval_splits to score on")
    found, source, commit = settings.source_rows()
    missing = [split for split in settings.eval_splits if split not in found]
    if missing:
        raise DataError(f"task.data_dir={settings.data_dir} holds no folder {missing[0]!r} to evaluate on")
    image_rows.check_classes(list(found.values()))
    pool = image_rows.joined([found[split] for split in settings.train_splits if split in found])
    if not settings.eval_splits:
        settings.check_left(len(pool))
        return pool, None, source, commit
    return pool, image_rows.joined([found[split] for split in settings.eval_splits]), source, commit


def _passed_over(rows: list[Rows | None], prepared: list[image_cache.Prepared]) -> dict[str, int]:
    """What was passed over, for the record: files that are no images, and EXIF blocks that cannot be read."""
    counted = {
        "stray_files": sum(part.stray for part in rows if part is not None),
        "broken_exif": sum(part.broken_exif for part in prepared),
    }
    return {what: count for what, count in counted.items() if count}


class Examples(Sequence):
    """Examples (uint8 tensor [channels, H, W], class index): some rows of an array that stays on disk."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray):
        self.pixels, self.labels, self.rows = pixels, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        return torch.from_numpy(np.array(self.pixels[row])), int(self.labels[row])


def few_shot(
    labels: np.ndarray, classes: Sequence[int], per_class: int, seed: int, name: Callable[[int], str] = str
) -> np.ndarray:
    """Row numbers of `per_class` examples of each class, class by class, from the seed's few-shot stream.

    Raises DataError for a class with fewer examples.
    """
    draws = np.random.default_rng(derive(seed, "few_shot"))
    chosen = []
    for label in classes:
        rows = np.flatnonzero(labels == label)
        if len(rows) < per_class:
            raise DataError(f"class {name(label)} has {len(rows)} examples, task.train_per_class={per_class} needs more")
        chosen.append(draws.choice(rows, per_class, replace=False))
    return np.concatenate(chosen)


def collate_images(examples: list[tuple[torch.Tensor, int]]) -> dict[str, Any]:
    """pixel_values [N, C, H, W] and labels [N]."""
    pixels, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}


def _normalised(normalise: Callable[[torch.Tensor], torch.Tensor]):
    """Images travel as 8-bit pixels, a quarter of the bytes."""

    def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**batch, "pixel_values": normalise(batch["pixel_values"])}

    return on_device


def _fingerprint(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest()
