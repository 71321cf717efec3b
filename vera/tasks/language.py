"""What every task on a language model shares: a loss on the target's tokens alone, and left-over prompts to write from."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vera.errors import ConfigError
from vera.models.base import Backbone, positions
from vera.tasks.base import Data, Task, padded_length

IGNORED = -100


class LanguageTask(Task):
    """An example is a prompt and a target; the model is trained on the target given the prompt.

    max_length       longest example in tokens, prompt and target together; longer ones are cut, as
                     the record and a warning say.
    label_smoothing  e of (1 - e) * negative log-likelihood + e * mean negative log-probability over the vocabulary.

    Each epoch is scored by `log_likelihood`, the mean log-probability of a target token of the evaluation set, without
    smoothing (higher is better, like every metric of a record).
    """

    modality: ClassVar[str] = "generation"

    max_length: int = Field(ge=8)
    label_smoothing: float = Field(ge=0, lt=1)

    @property
    def outputs(self) -> int:
        return 0

    @property
    def scored(self) -> tuple[str, ...]:
        return ("log_likelihood",)

    def loss(self, logits, batch):
        labels = batch["labels"][:, 1:]
        targets = labels != IGNORED
        found, wanted = logits[:, :-1][targets].float(), labels[targets]
        total = F.cross_entropy(found, wanted, label_smoothing=self.label_smoothing, reduction="sum")
        return total / max(1, len(wanted))  # nothing to learn where a long prompt has pushed every target token out

    def weight(self, batch):
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def total_weight(self, examples, rows):
        return sum(sum(label != IGNORED for label in examples[row]["labels"][1:]) for row in rows)

    def kept(self, logits, batch):
        """Summed log-probability [N] and number [N] of each example's target tokens."""
        labels = batch["labels"][:, 1:]
        targets = labels != IGNORED
        lost = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
        lost[targets] = F.cross_entropy(logits[:, :-1][targets].float(), labels[targets], reduction="none")
        return -lost.sum(1), targets.sum(1)

    def score(self, logits, labels):
        return {"log_likelihood": float(logits.double().sum() / labels.sum())}

    def load(self, backbone: Backbone, seed: int) -> Data:
        limit = positions(backbone.model)
        if limit is not None and self.max_length > limit:
            raise ConfigError(f"task.max_length={self.max_length} is more than this model's {limit} positions")
        return self.once(backbone, lambda: self._prepare(backbone))

    def _prepare(self, backbone: Backbone) -> Data:
        raise NotImplementedError

    def example(self, prompt: list[int], target: list[int]) -> tuple[dict[str, list[int]], bool]:
        """input_ids and labels of one example, cut at max_length, and whether it was cut."""
        ids = prompt + target
        labels = [IGNORED] * len(prompt) + target
        return {"input_ids": ids[: self.max_length], "labels": labels[: self.max_length]}, len(ids) > self.max_length


def collate(examples: list[dict[str, Any]], pad: int, most: int | None = None, multiple: int = 1) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels [N, T], padded on the right: positions start at 0 in every row."""
    longest = padded_length((len(example["input_ids"]) for example in examples), multiple, most)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": padded(ids, pad),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([example["labels"] for example in examples], IGNORED),
    }
