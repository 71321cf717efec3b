"""Image encoders with a linear head: ViT and its kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vera.models.base import Layout, Model


class ImageClassifier(Model):
    """A model of transformers' image-classification family with its PIL image processor."""

    modality: ClassVar[str] = "image"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("layers", attention="attention.o_proj", feedforward="mlp.fc2", output="", contraction="mlp.fc2"),
    )

    def _load(self, source, outputs, where):
        processor = AutoImageProcessor.from_pretrained(source, **where, backend="pil")
        model, info = AutoModelForImageClassification.from_pretrained(
            source,
            **where,
            num_labels=outputs,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        return model, to_pixels(processor, model.config.num_channels), info

    def _from_config(self, config, outputs):
        config.num_labels = outputs
        return AutoModelForImageClassification.from_config(config)


def to_pixels(processor, channels: int) -> Callable[[list[Image.Image]], torch.Tensor]:
    """A function from PIL images of any mode to pixel values [N, channels, H, W]."""
    mode = "L" if channels == 1 else "RGB"

    def convert(images: list[Image.Image]) -> torch.Tensor:
        converted = [image.convert(mode) for image in images]
        return processor(converted, return_tensors="pt")["pixel_values"]

    return convert
