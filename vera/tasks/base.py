"""What every task offers the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from vera.config import Component
from vera.models.base import Backbone


@dataclass
class Data:
    """A task's examples, ready for one backbone.

    train, evaluation  sequences of examples; `collate` turns a list of them into the model's keyword arguments, padded to the
                       longest, with `labels`.
    lengths            relative size of each evaluation example, so that similar ones are batched; None if all are equal.
    source, commit     where the rows come from; fingerprint: SHA-256 (16 digits) of their content.
    notes              what a record should say about them (few-shot rows, truncated examples).
    """

    train: Sequence[Any]
    evaluation: Sequence[Any]
    collate: Callable[[list[Any]], dict[str, Tensor]]
    source: str
    commit: str | None
    fingerprint: str
    lengths: list[int] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Task(Component):
    """Common keys of conf/task. `primary` is the metric by which the best epoch is chosen; higher is better."""

    modality: ClassVar[str]

    primary: str
    synthetic: bool = False

    @property
    def outputs(self) -> int:
        """Size of the head: the number of classes, or 1 for regression."""
        raise NotImplementedError

    def load(self, backbone: Backbone, seed: int) -> Data:
        """Read, check and prepare the data. Raises DataError naming file and row."""
        raise NotImplementedError

    def score(self, logits: Tensor, labels: Tensor) -> dict[str, float | None]:
        """Metrics over the evaluation set: logits [N, outputs] float32, labels [N]. None where a metric is undefined."""
        raise NotImplementedError

    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a batch: cross-entropy, or squared error when there is one output (STS-B)."""
        labels = batch["labels"]
        if self.outputs == 1:
            return F.mse_loss(logits.float().squeeze(-1), labels.float())
        return F.cross_entropy(logits.float(), labels)

    def weight(self, batch: dict[str, Tensor]) -> int:
        """Over how many terms `loss` is the mean; micro-batches are weighted by it."""
        return len(batch["labels"])

    def length(self, example: Any) -> int:
        """Tokens of one training example, by which a batch is split into similar ones; 1 where all are equal."""
        return len(example["input_ids"]) if isinstance(example, dict) and "input_ids" in example else 1

    def tokens(self, batch: dict[str, Tensor]) -> int:
        """Tokens that a batch makes the model process, padding included; 0 for images."""
        return batch["input_ids"].numel() if "input_ids" in batch else 0
