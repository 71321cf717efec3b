"""Predictions over the evaluation set at the bare backbone's speed."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from vera.methods.base import Method
from vera.models.base import Backbone
from vera.tasks.base import Data


@torch.inference_mode()
def _logits(accelerator: Accelerator, backbone: Backbone, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
    order = sorted(range(len(data.evaluation)), key=lambda i: data.lengths[i]) if data.lengths else range(len(data.evaluation))
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    found: list[tuple[int, Tensor, Tensor]] = []
    for rows in batches:
        batch = data.collate([data.evaluation[row] for row in rows])
        labels = batch.pop("labels")
        inputs = {key: value.to(accelerator.device) for key, value in batch.items()}
        with accelerator.autocast():
            logits = backbone.model(**inputs).logits
        found.extend(zip(rows, logits.float().cpu(), labels, strict=True))
    found.sort(key=lambda item: item[0])
    return torch.stack([logits for _, logits, _ in found]), torch.stack([label for _, _, label in found])


def predict(accelerator: Accelerator, backbone: Backbone, method: Method, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
    """Logits [N, outputs] and labels [N] in the order of `data.evaluation`, with the adapter merged into the weights.

    The model is left in training mode with its weights bit for bit as they were.
    """
    backbone.model.eval()
    try:
        with method.merged(backbone):
            return _logits(accelerator, backbone, data, batch_size)
    finally:
        backbone.model.train()
