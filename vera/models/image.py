"""Image encoders with a linear head: ViT and its kin."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import PIL
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vera.errors import ModelError
from vera.models.base import Model
from vera.models.layout import Layout


class ImageClassifier(Model):
    """A model of transformers' image-classification family with its PIL image processor."""

    modality: ClassVar[str] = "image"
    kind: ClassVar[Any] = AutoModelForImageClassification
    known_layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(blocks="layers", attention="attention.o_proj", feedforward="mlp.fc2", output="", contraction="mlp.fc2"),
    )

    def _load(self, source, outputs, where):
        processor = AutoImageProcessor.from_pretrained(source, **where, backend="pil")
        head = {"num_labels": outputs, "ignore_mismatched_sizes": True}
        model, info = self._pretrained(source, where, **head)
        config = getattr(model.config, "vision_config", model.config)  # CLIP's
        return model, Pixels(processor, config.num_channels), info


class Pixels:
    """PIL images of any mode and size to a model's input, by the backbone's own image processor.

    Called, it does everything at once. `resize` and `normalise` are its two halves: 8-bit pixels of the model's size, which
    are worth keeping on disk, and the cheap affine map from them to floats.
    """

    def __init__(self, processor, channels: int):
        self.processor = processor
        self.mode = "L" if channels == 1 else "RGB"
        black, white = (self._processed(Image.new(self.mode, (2, 2), color)) for color in ("black", "white"))
        self.offset = black  # [channels, 1, 1]
        self.factor = (white - black) / 255
        if not self.factor.all():
            raise ModelError(
                "the image processor makes the same of black and white images, so that a model sees nothing in them"
            )

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """Pixel values [N, channels, H, W], float32."""
        return self.processor([self._converted(image) for image in images], return_tensors="pt")["pixel_values"]

    def resize(self, image: Image.Image) -> np.ndarray:
        """8-bit pixels [channels, H, W] of the model's size, scaled and cropped but not normalised."""
        done = self.processor(self._converted(image), return_tensors="np", do_rescale=False, do_normalize=False)
        return done["pixel_values"][0]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [N, channels, H, W] of `resize` to the pixel values [N, channels, H, W] that the model expects, float32."""
        if self.offset.device != pixels.device:
            self.offset, self.factor = self.offset.to(pixels.device), self.factor.to(pixels.device)
        return torch.addcmul(self.offset, pixels.float(), self.factor)

    @property
    def key(self) -> str:
        """What decides the bytes that `resize` gives."""
        return json.dumps([self.mode, PIL.__version__, self.processor.to_dict()], sort_keys=True, default=str)

    def _converted(self, image: Image.Image) -> Image.Image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            # 16 bits a pixel, which `convert` would cut off at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"32 bits of grey (mode {image.mode}) have no stated range; save it with 8 or 16")
        return image.convert(self.mode)

    def _processed(self, image: Image.Image) -> torch.Tensor:
        pixels = self([image])[0]
        row, column = (size // 2 for size in pixels.shape[1:])  # the middle: a crop larger than the image has a rim of its own
        return pixels[:, row : row + 1, column : column + 1]
