"""The embedded default: a small ViT pretrained here on the UCI digits 0-4, from its own seed, once."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from vera.io.cache import make_folder
from vera.models.base import Architecture
from vera.models.image import ImageClassifier
from vera.models.tiny import Pretraining, check_keys, image_processor
from vera.records import screen
from vera.seeds import forked, generator, threads

log = logging.getLogger(__name__)

PRETRAIN_CLASSES = 5
HERE = f"pretrained on UCI digits 0-{PRETRAIN_CLASSES - 1}"  # a record's word for the source
RECIPE = 2  # raised when the pretraining below changes
THREADS = 2  # inside the pretraining, on every machine: those that made the backbone of the tracked records


class DigitsVit(ImageClassifier):
    """ViT for 8 x 8 grey images. `pretrain` and `architecture` decide its weights; a finished one is cached in a folder."""

    architecture: Architecture
    pretrain: Pretraining

    def source(self, cache_dir: Path) -> str:
        if self.size == "tiny" or self.path is not None:
            return super().source(cache_dir)
        check_keys("vit", self.architecture, "model.architecture")
        key = json.dumps([self.architecture, self.pretrain, RECIPE], sort_keys=True)

        def make(folder: Path) -> None:
            log.info("pretraining the digits backbone (once; about half a minute on two cores)")
            with forked(self.pretrain["seed"], "pretrain"):
                accuracy = pretrain(self.architecture, self.pretrain, folder)
            log.info("pretrained: %.1f%% on held-out digits 0-4", 100 * accuracy)

        name = hashlib.sha256(key.encode()).hexdigest()[:8]
        return str(make_folder(Path(cache_dir) / "digits_vit" / name, "config.json", make))

    def _public(self, source: str) -> str:
        return super()._public(source) if self.size == "tiny" or self.path else HERE


@threads(THREADS)
def pretrain(architecture: dict[str, Any], settings: dict[str, Any], folder: Path) -> float:
    """Train on nine tenths of the digits 0-4 with shifts of one pixel; save to `folder`; return held-out accuracy (0 to 1)."""
    digits = load_digits()
    chosen = digits.target < PRETRAIN_CLASSES
    pixels = torch.tensor(digits.images[chosen], dtype=torch.float32).unsqueeze(1) / 8.0 - 1.0
    labels = torch.tensor(digits.target[chosen])
    order = torch.randperm(len(labels), generator=generator(settings["seed"], "pretrain"))
    held_out, train = order[: len(order) // 10], order[len(order) // 10 :]

    config = ViTConfig(image_size=8, num_channels=1, num_labels=PRETRAIN_CLASSES, **architecture)
    model = ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    steps = settings["epochs"] * -(-len(train) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], total_steps=steps, pct_start=0.1)
    for epoch in range(settings["epochs"]):
        screen.doing("pretraining", epoch, settings["epochs"])
        draws = generator(settings["seed"], "pretrain", 1 + epoch)
        for batch in train[torch.randperm(len(train), generator=draws)].split(settings["batch_size"]):
            dy, dx = (int(shift) for shift in torch.randint(-1, 2, (2,), generator=draws))
            images = torch.roll(F.pad(pixels[batch], (1, 1, 1, 1), value=-1.0), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
            loss = F.cross_entropy(model(pixel_values=images).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(pixel_values=pixels[held_out]).logits.argmax(-1) == labels[held_out]).float().mean().item()
    model.base_model.save_pretrained(folder)
    image_processor(config).save_pretrained(folder)
    return accuracy
