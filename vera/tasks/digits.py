"""UCI digits 5-9 in the protocol of the paper's Table 5: ten images a class to train on, all others to evaluate on."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from sklearn.datasets import load_digits

from vera.errors import DataError
from vera.models.base import Backbone
from vera.seeds import derive
from vera.tasks.base import Data, Task
from vera.tasks.metrics import compute


class Digits(Task):
    """The few-shot choice depends on the seed alone and is kept in the record as row numbers of scikit-learn's data set."""

    modality: ClassVar[str] = "image"

    classes: list[int] = Field(min_length=2)
    train_per_class: int = Field(ge=1)

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def score(self, logits, labels):
        return compute("accuracy", logits.argmax(-1).numpy(), labels.numpy())

    def load(self, backbone: Backbone, seed: int) -> Data:
        digits = load_digits()
        chosen = few_shot(digits.target, self.classes, self.train_per_class, seed)
        rest = np.flatnonzero(np.isin(digits.target, self.classes))
        rest = np.setdiff1d(rest, chosen)
        if self.synthetic:
            rest = rest[:: len(rest) // 16]
        images = [Image.fromarray((image * 255.0 / 16.0).round().astype(np.uint8)) for image in digits.images]
        index_of = {label: index for index, label in enumerate(self.classes)}

        def examples(rows: np.ndarray) -> list[tuple[torch.Tensor, int]]:
            pixels = backbone.preprocess([images[row] for row in rows])
            return [(pixel, index_of[digits.target[row]]) for pixel, row in zip(pixels, rows, strict=True)]

        return Data(
            train=examples(chosen),
            evaluation=examples(rest),
            collate=collate_images,
            source="scikit-learn load_digits",
            commit=None,
            fingerprint=hashlib.sha256(digits.data.tobytes() + digits.target.tobytes()).hexdigest()[:16],
            notes={"few_shot_rows": chosen.tolist()},
        )


def few_shot(labels: np.ndarray, classes: list[int], per_class: int, seed: int) -> np.ndarray:
    """Row numbers of `per_class` examples of each class, class by class, from the seed's few-shot stream.

    Raises DataError for a class with fewer examples.
    """
    draws = np.random.default_rng(derive(seed, "few_shot"))
    chosen = []
    for label in classes:
        rows = np.flatnonzero(labels == label)
        if len(rows) < per_class:
            raise DataError(f"class {label} has {len(rows)} examples, task.train_per_class={per_class} needs more")
        chosen.append(draws.choice(rows, per_class, replace=False))
    return np.concatenate(chosen)


def collate_images(examples: list[tuple[torch.Tensor, int]]) -> dict[str, Any]:
    """pixel_values [N, C, H, W] and labels [N]."""
    pixels, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}
