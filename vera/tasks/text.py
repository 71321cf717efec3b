"""What every task on a text, or a pair of texts, with a class or a score shares: tokens, batches, one copy a sweep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from vera.errors import ConfigError, DataError
from vera.models.base import Backbone, positions
from vera.seeds import derive
from vera.tasks.base import Data, Made, Task, given, padded_length
from vera.tasks.metrics import undefined

WORDS = "the a cat dog house runs sleeps red blue small old under over and not"  # of the synthetic rows
PAIR = ("a cat", "the dog")  # that shows what a tokenizer puts between two texts

Row = tuple[tuple[str, ...], float]  # texts, class index or score
Splits = dict[str, list[Row]]  # train, validation, and test where there is one


class TextTask(Task):
    """max_length  longest input in tokens; longer ones are cut, counted in the record, and warned of.

    A subclass says how many `outputs` there are (1: a score) and what `source_rows` are: (rows of the splits "train",
    "validation" and, where there is one, "test", where they come from, the hub's commit).
    """

    modality: ClassVar[str] = "text"

    max_length: int = Field(ge=8)

    def load(self, backbone: Backbone, seed: int) -> Data:
        tokenizer = backbone.preprocess
        limit = min(tokenizer.model_max_length, positions(backbone.model) or self.max_length)
        if self.max_length > limit:
            raise ConfigError(f"task.max_length={self.max_length} is more than this model's {limit} positions")
        return self.once(backbone, lambda: self._prepare(backbone))

    def _prepare(self, backbone: Backbone) -> Data:
        tokenizer = backbone.preprocess
        rows, source, commit = self.read()
        for split, found in rows.items():
            if split != "train":
                self.check_labels([label for _, label in found], f"{source}: the {split} split")
        notes: dict[str, Any] = {}
        examples, made = {}, {}
        for split, found in rows.items():
            examples[split], cut = self._tokenise(tokenizer, found, notes)
            made[split] = Made([texts for texts, _ in found], cut)
        lengths = {split: [len(example["input_ids"]) for example in examples[split]] for split in rows if split != "train"}
        return Data(
            train=examples["train"],
            evaluation=examples["validation"],
            lengths=lengths["validation"],
            test=examples.get("test"),
            test_lengths=lengths.get("test"),
            collate=self._collate(tokenizer),
            source=source,
            commit=commit,
            fingerprint=fingerprint(rows, self.plain),
            notes=notes,
            made=made,
        )

    def reads(self, notes):
        ends = f"truncation=True, max_length={self.max_length})"
        if "pairs" in notes:
            alone = "a pair is one text: tokenizer(first + '\\n' + second), or where that is cut "
            return f"{alone}tokenizer(first, '\\n' + second, {ends}"
        return f"tokenizer(*texts, {ends}"

    def plain(self, label: float) -> float:
        """A label as its fingerprint is taken: scores to three decimals, since the hub keeps them in single precision."""
        return round(label, 3)

    def check_held_out(self, examples, where):
        self.check_labels([example["labels"] for example in examples], where)

    def check_labels(self, labels: Sequence[float], where: str) -> None:
        """Raises DataError for labels on which a metric is undefined whatever is predicted."""
        if not (metrics := undefined(self.scored, labels)):
            return
        kind = "score" if self.outputs == 1 else "label"
        said = "one row" if len(labels) == 1 else f"{len(labels)} rows with one and the same {kind}"
        raise DataError(f"{where} has {said}; {metrics[0]} is undefined there")

    def _tokenise(self, tokenizer, rows: list[Row], notes: dict[str, Any]) -> tuple[list[dict[str, Any]], list[bool]]:
        """Examples, and whether each was cut."""
        texts = [texts for texts, _ in rows]
        if len(columns_for(tokenizer, texts)) < len(texts[0]):
            notes["pairs"] = "joined with a line break: this tokenizer puts nothing between two texts"
        encoded, cut = encode(tokenizer, texts, self.max_length)
        keys = [key for key in encoded if key != "attention_mask"]
        examples = [dict(zip(keys, values, strict=True)) for values in zip(*(encoded[key] for key in keys), strict=True)]
        for example, (_, label) in zip(examples, rows, strict=True):
            example["labels"] = label
        return examples, cut

    def _collate(self, tokenizer):
        regression = self.outputs == 1

        def collate(examples: list[dict[str, Any]], multiple: int = 1) -> dict[str, torch.Tensor]:
            length = padded_length((len(example["input_ids"]) for example in examples), multiple, self.max_length)
            inputs = list(map(given, examples))
            batch = dict(tokenizer.pad(inputs, padding="max_length", max_length=length, return_tensors="pt", verbose=False))
            kind = torch.float32 if regression else torch.long
            batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=kind)
            return batch

        return collate


def columns_for(tokenizer, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """What a tokenizer is given of rows of one text or of a pair: the first texts, and the second. A pair is one text, joined
    with a line break, where the tokenizer would put nothing between the two, as GPT-2's."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    if len(columns) == 2:
        alone = [token for text in PAIR for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        both = tokenizer(*PAIR)["input_ids"]
        if alone and any(both[start : start + len(alone)] == alone for start in range(len(both))):
            return [["\n".join(pair) for pair in zip(*columns, strict=True)]]
    return columns


def encode(tokenizer, rows: Sequence[Sequence[str]], max_length: int) -> tuple[dict[str, list[Any]], list[bool]]:
    """What a tokenizer makes of rows of one text or of a pair, by its keys, and which rows were cut. A pair loses tokens of its
    longer text first, also where the two are joined."""
    columns = columns_for(tokenizer, rows)
    encoded = tokenizer(*columns, truncation=False, verbose=False)
    cut = [len(ids) > max_length for ids in encoded["input_ids"]]
    if any(cut):
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    if any(cut) and len(columns) < len(rows[0]):
        long = [row for row, is_cut in enumerate(cut) if is_cut]
        both = [rows[row][0] for row in long], [f"\n{rows[row][1]}" for row in long]
        for row, ids in zip(long, tokenizer(*both, truncation=True, max_length=max_length)["input_ids"], strict=True):
            for key in encoded:
                encoded[key][row] = ids if key == "input_ids" else encoded[key][row][: len(ids)]
    return dict(encoded), cut


def fingerprint(rows: Splits, plain: Callable[[float], float] = lambda label: round(label, 3)) -> str:
    """SHA-256, 16 digits, over texts and labels as `plain` gives them."""
    content = {split: [(texts, plain(label)) for texts, label in found] for split, found in rows.items()}
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def synthetic_rows(texts: int, classes: int | None) -> Splits:
    """Rows of one text or two, of a few words each: for rehearsals and tests, no meaning. The class goes round; a score (None)
    follows from shared words."""
    draws = np.random.default_rng(derive(0, "synthetic"))
    words = np.array(WORDS.split())

    def sentence() -> list[str]:
        return list(draws.choice(words, size=draws.integers(3, 12)))

    def row(index: int) -> Row:
        first = sentence()
        second = list(first) if index % 2 else sentence()
        found = (" ".join(first), " ".join(second))[:texts]
        if classes is None:
            return found, round(5.0 * len(set(first) & set(second)) / len(set(first) | set(second)), 1)
        return found, index % classes

    return {"train": [row(i) for i in range(24)], "validation": [row(i) for i in range(16)]}
