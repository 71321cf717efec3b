"""UCI digits in the protocol of the paper's Table 5: ten images a class to train on, all others to evaluate on."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from sklearn.datasets import load_digits

from vera.errors import ConfigError
from vera.models.base import Backbone
from vera.models.digits import HERE, PRETRAIN_CLASSES
from vera.models.image import Pixels
from vera.tasks.base import Data, twice
from vera.tasks.images import FewShot, collate_images, few_shot


class Digits(FewShot):
    """The few-shot choice is kept in the record as row numbers of scikit-learn's data set."""

    classes: list[int] = Field(min_length=2)

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[int]) -> list[int]:
        if again := twice(map(str, classes)):
            raise PydanticCustomError("twice", "{digit} is named twice, and a class is one output", {"digit": again})
        return classes

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(str(label) for label in self.classes)

    def load(self, backbone: Backbone, seed: int) -> Data:
        known = [label for label in self.classes if label < PRETRAIN_CLASSES]
        if known and backbone.source == HERE:
            raise ConfigError(
                f"task.classes={self.classes}: the backbone is pretrained on images of {known[0]} with their labels, and these "
                f"would be scored; choose among {PRETRAIN_CLASSES} to 9, or another model"
            )
        digits = _digits()
        chosen = few_shot(digits.target, self.classes, self.train_per_class, seed)
        rest = np.flatnonzero(np.isin(digits.target, self.classes))
        self.check_left(len(rest))
        rest = np.setdiff1d(rest, chosen)
        if self.synthetic:
            rest = rest[:: max(1, len(rest) // 16)]
        pixels = _processed(backbone.preprocess)
        index_of = {label: index for index, label in enumerate(self.classes)}

        def examples(rows: np.ndarray) -> list[tuple[torch.Tensor, int]]:
            return [(pixels[row], index_of[digits.target[row]]) for row in rows]

        return Data(
            train=examples(chosen),
            evaluation=examples(rest),
            collate=collate_images,
            source="scikit-learn load_digits",
            commit=None,
            fingerprint=hashlib.sha256(digits.data.tobytes() + digits.target.tobytes()).hexdigest()[:16],
            notes={"few_shot_rows": chosen.tolist()},
        )


def _processed(preprocess: Pixels) -> torch.Tensor:
    """All digits as a model expects them, [N, channels, H, W]: made once for the runs with the same image processor."""
    if preprocess.key not in _PIXELS:
        _PIXELS.clear()
        images = [Image.fromarray((image * 255.0 / 16.0).round().astype(np.uint8)) for image in _digits().images]
        _PIXELS[preprocess.key] = preprocess(images)
    return _PIXELS[preprocess.key]


_PIXELS: dict[str, torch.Tensor] = {}
_digits = lru_cache(load_digits)  # which reads a text file each time
