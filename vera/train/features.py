"""The frozen backbone computed once an example, where nothing but the head is trained (train.keep_features)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_outputs import SequenceClassifierOutput

from vera.errors import ConfigError
from vera.methods.base import Method
from vera.models.base import Backbone
from vera.nn.names import inside
from vera.records import interrupt, screen
from vera.tasks.base import Data, given
from vera.train.evaluate import to_training
from vera.train.feed import fed
from vera.train.state import generators

Autocast = Callable[[], AbstractContextManager[Any]]
REMEDY = "leave train.keep_features=false"


class OnFeatures(nn.Module):
    """The head alone: features [N, d] to the model's output."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.head(features))


def kept(backbone: Backbone, method: Method, data: Data, batch_size: int, autocast: Autocast) -> tuple[Backbone, Data]:
    """A backbone that is the head alone, and the data as the features that enter it, [d] an example, on the CPU.

    Their last bits depend on `batch_size`, in which the backbone computes them. Raises ConfigError where the head would not see
    the same in every step: an adapter or a dropout before it, statistics of the batch.
    """
    if method.parameter_groups(backbone)["adapter"]:
        raise ConfigError(f"train.keep_features=true is for a head trained alone; {method.name} trains before it: {REMEDY}")
    if len(backbone.head) != 1:
        raise ConfigError(f"train.keep_features=true needs a head of one module; {REMEDY}")
    norms = [(name, module) for name, module in backbone.model.named_modules() if isinstance(module, _BatchNorm)]
    of_batches = [name for name, norm in norms if norm.running_mean is None and not inside(name, backbone.head)]
    if of_batches:
        raise ConfigError(f"{of_batches[0]} normalises by the batch, so that features are no example's own; {REMEDY}")
    head = backbone.model.get_submodule(backbone.head[0])
    reader = _Reader(backbone.model, head, data, autocast)
    with torch.no_grad(), interrupt.immediate():
        reader.check(data.train)
        backbone.model.eval()
        splits = {"train": data.train, "evaluation": data.evaluation, "test": data.test}
        made = {split: reader.read(rows, batch_size) for split, rows in splits.items() if rows is not None}
    alone = OnFeatures(head)
    for model in (backbone.model, alone):
        to_training(model)
    return replace(backbone, model=alone), replace(
        data, **made, collate=collate, on_device=dict, lengths=None, test_lengths=None
    )


class _Reader:
    """Runs the model and looks at what enters its head."""

    def __init__(self, model: nn.Module, head: nn.Module, data: Data, autocast: Autocast):
        self.model, self.head, self.data, self.autocast = model, head, data, autocast
        self.device = next(model.parameters()).device

    def features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, bool]:
        """What enters the head, the model's logits, and whether anything was drawn at random before the head."""
        seen: list[tuple[Any, ...]] = []
        drawn: list[dict[str, Tensor]] = []

        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs)
            drawn.append(generators())

        before = generators()
        handle = self.head.register_forward_pre_hook(look)
        try:
            batch = self.data.arrived(batch, self.device)
            with self.autocast():
                logits = self.model(**given(batch)).logits
        finally:
            handle.remove()
        if len(seen) != 1 or len(seen[0]) != 1 or not isinstance(seen[0][0], Tensor) or seen[0][0].ndim != 2:
            raise ConfigError(f"the head of this model takes more than one vector an example; {REMEDY}")
        return seen[0][0], logits, any(not torch.equal(before[key], drawn[0][key]) for key in before)

    def check(self, examples: Sequence[Any]) -> None:
        """Raises ConfigError unless the logits are the head's, of features that training mode draws nothing for."""
        batch = self.data.collate([examples[row] for row in range(min(2, len(examples)))])
        to_training(self.model)
        *_, drawn = self.features(batch)
        if drawn:
            raise ConfigError(f"this backbone has dropout, so that its features differ in every step; {REMEDY}")
        self.model.eval()
        features, logits, _ = self.features(batch)
        with self.autocast():
            if not torch.equal(self.head(features), logits):
                raise ConfigError(f"this model does more than its head with the features; {REMEDY}")

    def read(self, examples: Sequence[Any], batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """(features, label) of each example."""
        steps = [range(start, min(start + batch_size, len(examples))) for start in range(0, len(examples), batch_size)]
        made: list[tuple[Tensor, Tensor]] = []
        for batch in fed((self.data.collate([examples[row] for row in rows]) for rows in steps), self.device):
            screen.doing("computing the features", len(made), len(examples))
            features, *_ = self.features(batch)
            made += zip(features.cpu().unbind(), batch["labels"].unbind(), strict=True)
        return made


def collate(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """features [N, d] and labels [N]."""
    features, labels = zip(*examples, strict=True)
    return {"features": torch.stack(features), "labels": torch.stack(labels)}
