"""What every task offers the loop."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import TypedDict

from vera.config import Component, Operational, Validation
from vera.errors import ConfigError
from vera.io.hub import HubData
from vera.models.base import Backbone, check_tokens
from vera.tasks.split import split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """What the examples of a split were made of, one each: content (texts, or what stands for an image's pixels), and whether
    `max_length` cut them (None where nothing does). dropped: how many rows became no example; None where each does."""

    content: Sequence[Hashable]
    cut: Sequence[bool] | None = None
    dropped: int | None = None

    def part(self, rows: Sequence[int], dropped: int | None = None) -> Made:
        """Some of the examples."""
        cut = None if self.cut is None else [self.cut[row] for row in rows]
        return Made([self.content[row] for row in rows], cut, dropped)


def repeated(content: Mapping[str, Sequence[Hashable]]) -> dict[str, int]:
    """By split beside train: how many of its rows have the content of a training row, where any has."""
    train = set(content["train"])
    counted = {split: sum(each in train for each in found) for split, found in content.items() if split != "train"}
    return {split: count for split, count in counted.items() if count}


def padded_length(lengths: Iterable[int], multiple: int, most: int | None) -> int:
    """The longest, rounded up to a multiple, but to no more than `most` unless it is longer itself."""
    longest = max(lengths)
    rounded = -(-longest // multiple) * multiple
    return rounded if most is None else max(longest, min(rounded, most))


def given(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is called with, of a batch or an example."""
    return {key: value for key, value in batch.items() if key != "labels"}


COUNTED = ("truncated", "dropped", "also_in_train")


def counts(made: Mapping[str, Made]) -> dict[str, dict[str, int]]:
    """A record's notes by split: rows that were cut ("truncated") or left out ("dropped"), and those beside train whose content
    is trained on ("also_in_train"), where there are any."""
    cut = {split: sum(each.cut) for split, each in made.items() if each.cut is not None}
    dropped = {split: each.dropped for split, each in made.items() if each.dropped is not None}
    also = repeated({split: each.content for split, each in made.items()})
    return {what: found for what, found in zip(COUNTED, (cut, dropped, also), strict=True) if found}


def twice(names: Iterable[str]) -> str | None:
    """One that stands there twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


@dataclass
class Data:
    """A task's examples, ready for one backbone.

    train, evaluation  sequences of examples; `collate` turns a list of them into the model's keyword arguments, padded to the
                       longest (`multiple=` rounds that up, for train.cuda_graphs), with `labels`. Each epoch is scored on
                       `evaluation`. on_device: what is left to do with the arguments where the model is (uint8 images become
                       the floats that it expects).
    test               examples that the best epoch's weights are scored on, once, after the last epoch; None: the scores on
                       `evaluation` are the ones reported.
    prompts, references  what a task that generates starts from after the last epoch (token ids), and the texts it is measured
                       against; empty for others.
    lengths            relative size of each evaluation example, so that similar ones are batched; None if all are equal.
    test_lengths       of each test example, likewise.
    source, commit     where the rows come from; fingerprint: SHA-256 (16 digits) of their content.
    notes              what a record should say about them (few-shot rows, truncated examples).
    made               by split, train first, what the examples were made of; the notes hold the `counts` of it.
    """

    train: Sequence[Any]
    evaluation: Sequence[Any]
    collate: Callable[..., dict[str, Tensor]]
    source: str
    commit: str | None
    fingerprint: str
    lengths: list[int] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    prompts: Sequence[list[int]] = ()
    references: Sequence[list[str]] = ()
    test: Sequence[Any] | None = None
    test_lengths: list[int] | None = None
    on_device: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    made: Mapping[str, Made] = field(default_factory=dict)

    def __post_init__(self):
        if self.made:
            self.notes = {key: value for key, value in self.notes.items() if key not in COUNTED} | counts(self.made)

    def arrived(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """A batch of `collate` on the device, ready for the model."""
        return self.on_device({key: value.to(device, non_blocking=True) for key, value in batch.items()})


@dataclass
class Final:
    """What a task adds once, after the last epoch.

    metrics  join those of the last epoch; files: texts that they were computed from, by file suffix, kept beside the record;
    notes    what the record should say about them.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Facts(TypedDict, total=False):
    """What is known of a task's full data without reading it: rows, and tokens of an example on average. lengths: those at
    vera.config.QUANTILES of the training examples. prompts, written: texts that are
    generated at the end, and tokens of one."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    train_rows: int
    eval_rows: int
    tokens: int | float
    lengths: list[int | float]
    prompts: int
    written: int | float


class Task(Component):
    """Common keys of conf/task.

    primary     the metric by which the best epoch is chosen; higher is better.
    validation  the rows on which it is chosen. dev: the task's own validation rows, which are the reported ones as well where
                the data have two splits (GLUE's protocol); a fraction of the training rows (vera.tasks.split): the task's own
                are then scored once, at the end.
    facts       for estimates.
    """

    modality: ClassVar[str]
    searched: ClassVar[tuple[str, ...]] = ()  # what the trials of a search have instead of what is computed on test rows

    primary: str
    validation: Validation = "dev"
    synthetic: bool = False
    facts: Annotated[Facts, Operational] = {}

    @property
    def outputs(self) -> int:
        """Size of the head: the number of classes, 1 for regression, 0 where the language model's own head serves."""
        raise NotImplementedError

    @property
    def scored(self) -> tuple[str, ...]:
        """The names of the metrics that a run has at its end, as far as they are known without the data."""
        return ()

    def check_primary(self) -> None:
        """Raises ConfigError where `primary` is none of them: no epoch would be the best one."""
        if self.scored and self.primary not in self.scored:
            raise ConfigError(f"task.primary={self.primary}: {self.name} is scored by {', '.join(self.scored)}")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of the outputs, where they are known without the data."""
        return None

    def reads(self, notes: Mapping[str, Any]) -> str | None:
        """How a row becomes a model's input, for whoever uses the trained weights elsewhere: what no file of theirs says. Of a
        record with these notes; None where the processor that goes with the weights does all of it."""
        return None

    def hub_data(self) -> HubData | None:
        """What `load` reads from the hub; None where it reads nothing from there."""
        return None

    def source_rows(self) -> Any:
        """What `load` starts from, as it is read, without a backbone. Raises DataError naming file and row."""
        return None

    def read(self) -> Any:
        """`source_rows`, read once for all seeds and methods of a sweep that follow one another."""
        return _rows(type(self), self.model_dump_json())

    def inspect(self) -> None:
        """Read what `load` would read, before the time for a backbone is spent; large files only as far as that is quick.
        Raises DataError."""
        self.read()

    def load(self, backbone: Backbone, seed: int) -> Data:
        """Read, check and prepare the data. Raises DataError naming file and row."""
        raise NotImplementedError

    def once(self, backbone: Backbone, prepare: Callable[[], Data]) -> Data:
        """What `prepare` gives, made once for the runs of a sweep with this task and backbone that follow one another, whatever
        their seeds and methods."""
        key = (type(self), self.model_dump_json(), backbone.source, backbone.fingerprint, backbone.preprocessing)
        if key not in _PREPARED:
            _PREPARED.clear()
            data = prepare()
            prompts = [{"input_ids": prompt} for prompt in data.prompts]
            check_tokens(backbone, [*data.train, *data.evaluation, *(data.test or ()), *prompts])
            self._warn(split(self, data))
            _PREPARED[key] = data
        return _PREPARED[key]

    def _warn(self, data: Data) -> None:
        """What a reader of the scores has to know of `counts`, a line each."""
        cut, dropped = data.notes.get("truncated", {}), data.notes.get("dropped", {})
        kept = {
            **{"train": data.train, "validation": data.evaluation, "evaluation": data.evaluation},
            "test": data.prompts if data.test is None else data.test,
        }

        def counted(found: dict[str, int]) -> str:
            said = [f"{n} of {len(kept[name] or ()) + dropped.get(name, 0)} {name}" for name, n in found.items() if n]
            return f"{' and '.join(said)} rows" if said else ""

        if (also := counted(data.notes.get("also_in_train", {}))) and not self.synthetic:
            what = "pixels" if self.modality == "image" else "texts"
            log.warning("task=%s: %s have the %s of a training row", self.name, also, what)
        said = [f"{counted(cut)} are cut"] if counted(cut) else []
        if counted(dropped):
            said.append(f"{counted(dropped)} are left out, as nothing of their response fits or is there")
        if any(dropped.get(name) for name in kept if name != "train"):
            said.append("the scores are over the others")
        if said:
            log.warning("task=%s, task.max_length=%s: %s", self.name, getattr(self, "max_length", None), "; ".join(said))

    def kept(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What `score` needs of an evaluated batch, one row an example: by default the logits [N, outputs] and labels [N]."""
        return logits.float(), batch["labels"]

    def score(self, logits: Tensor, labels: Tensor) -> dict[str, float | None]:
        """Metrics over the evaluation set from all that was `kept`, in the order of the examples. None where undefined."""
        raise NotImplementedError

    def finish(self, backbone: Backbone, data: Data, batch_size: int) -> Final:
        """Called once, after the last epoch was scored, with the adapter merged and the model in evaluation mode on its
        device: the place for what is too slow for every epoch, such as generating text."""
        return Final()

    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss of a batch: cross-entropy, or squared error when there is one output (STS-B)."""
        labels = batch["labels"]
        if self.outputs == 1:
            return F.mse_loss(logits.float().squeeze(-1), labels.float())
        return F.cross_entropy(logits.float(), labels)

    def weight(self, batch: dict[str, Tensor]) -> int:
        """Over how many terms `loss` is the mean; micro-batches are weighted by it."""
        return len(batch["labels"])

    def total_weight(self, examples: Sequence[Any], rows: Sequence[int]) -> int:
        """`weight` of the batch of these rows, which is not collated: other processes compute parts of it."""
        return len(rows)

    def length(self, example: Any) -> int:
        """Tokens of one training example, by which a batch is split into similar ones; 1 where all are equal."""
        return len(example["input_ids"]) if isinstance(example, dict) and "input_ids" in example else 1

    def strata(self, examples: Sequence[Any]) -> list[int] | None:
        """The class of each training example, whose shares a part of the training rows keeps; None where there are none."""
        if self.outputs < 2:
            return None
        return [int(example["labels"] if isinstance(example, dict) else example[1]) for example in examples]

    def check_held_out(self, examples: Sequence[Any], where: str) -> None:
        """Raises DataError for a part of the training rows on which a metric is undefined (accuracy never is)."""

    def tokens(self, batch: dict[str, Tensor]) -> int:
        """Tokens that a batch makes the model process, padding included; 0 for images."""
        return batch["input_ids"].numel() if "input_ids" in batch else 0


_PREPARED: dict[tuple[Any, ...], Data] = {}


@lru_cache(maxsize=1)
def _rows(task: type[Task], settings: str) -> Any:
    return task.model_validate_json(settings).source_rows()
