"""Six GLUE tasks, from the hub or from the official TSV files, with GLUE's metrics (paper, section 4.1)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from vera.config import Source
from vera.errors import ConfigError, DataError
from vera.io import hub, tables
from vera.io.hub import HubData
from vera.models.base import Backbone
from vera.seeds import derive
from vera.tasks.base import Data, Task
from vera.tasks.metrics import compute
from vera.tasks.tsv import read_tsv

REPOSITORY = "nyu-mll/glue"
WORDS = "the a cat dog house runs sleeps red blue small old under over and not"  # of the synthetic rows


@dataclass(frozen=True)
class Subset:
    """One GLUE task: its folder, the columns of its TSV files (text columns, then the label) and its labels.

    labels   what the files print, in the order of the class indices; None for a score from 0 to 5.
    texts    the hub's names of the text columns.
    """

    folder: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    header: bool = True


SUBSETS = {
    "sst2": Subset("SST-2", ("sentence", "label"), ("sentence",), ("0", "1")),
    "mrpc": Subset("MRPC", ("#1 String", "#2 String", "Quality"), ("sentence1", "sentence2"), ("0", "1")),
    "cola": Subset("CoLA", ("3", "1"), ("sentence",), ("0", "1"), header=False),
    "qnli": Subset("QNLI", ("question", "sentence", "label"), ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Subset("RTE", ("sentence1", "sentence2", "label"), ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "stsb": Subset("STS-B", ("sentence1", "sentence2", "score"), ("sentence1", "sentence2"), None),
}

Row = tuple[tuple[str, ...], float]  # texts, class index or score


class Glue(Task):
    """conf/task/{sst2,mrpc,cola,qnli,rte,stsb}.yaml.

    data_dir    a folder with train.tsv and dev.tsv, or GLUE's own folder that holds one for each task; None reads the hub.
    max_length  longest input in tokens; longer ones are cut, and counted in the record.
    """

    modality: ClassVar[str] = "text"

    subset: Literal["sst2", "mrpc", "cola", "qnli", "rte", "stsb"]
    data_dir: Annotated[str | None, Source] = None
    max_length: int = Field(ge=8)

    @property
    def outputs(self) -> int:
        labels = SUBSETS[self.subset].labels
        return 1 if labels is None else len(labels)

    @property
    def labels(self) -> tuple[str, ...] | None:
        return SUBSETS[self.subset].labels

    def score(self, logits, labels):
        predictions = logits.squeeze(-1) if self.outputs == 1 else logits.argmax(-1)
        return compute(self.subset, predictions.numpy(), labels.numpy())

    def load(self, backbone: Backbone, seed: int) -> Data:
        return self.once(backbone, lambda: self._prepare(backbone))

    def _prepare(self, backbone: Backbone) -> Data:
        tokenizer = backbone.preprocess
        limit = min(tokenizer.model_max_length, getattr(backbone.model.config, "max_position_embeddings", self.max_length))
        if self.max_length > limit:
            raise ConfigError(f"task.max_length={self.max_length} is more than this model's {limit} positions")
        rows, source, commit = self.read()
        if SUBSETS[self.subset].labels is None and len({score for _, score in rows["validation"]}) < 2:
            found = "one row" if len(rows["validation"]) == 1 else f"{len(rows['validation'])} rows with one and the same score"
            raise DataError(f"{source}: the validation split (dev.tsv) has {found}; a correlation with it is undefined")
        notes: dict[str, Any] = {"truncated": {}}
        examples = {split: self._tokenise(tokenizer, rows[split], split, notes) for split in rows}
        return Data(
            train=examples["train"],
            evaluation=examples["validation"],
            lengths=[len(example["input_ids"]) for example in examples["validation"]],
            collate=self._collate(tokenizer),
            source=source,
            commit=commit,
            fingerprint=fingerprint(rows),
            notes=notes,
        )

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*SUBSETS[self.subset].texts, "label")

    def hub_data(self):
        if self.synthetic or self.data_dir is not None:
            return None
        return HubData(REPOSITORY, "main", self.subset, ("train", "validation"), self._columns)

    def source_rows(self) -> tuple[dict[str, list[Row]], str, str | None]:
        """Rows of the splits "train" and "validation", where they come from, and the hub's commit."""
        if self.synthetic:
            return synthetic_rows(self.subset), "synthetic", None
        if self.data_dir is not None:
            return self._from_folder(Path(self.data_dir))
        found, commit = hub.load_rows(
            self.hub_data(), "give a folder with GLUE's official files with task.data_dir=/path/to/glue"
        )
        return {split: self._checked(rows) for split, rows in found.items()}, f"{REPOSITORY} {self.subset}", commit

    def _from_folder(self, folder: Path) -> tuple[dict[str, list[Row]], str, str | None]:
        subset = SUBSETS[self.subset]
        inside = folder / subset.folder
        official = next((place for place in (folder, inside) if (place / "train.tsv").exists()), None)
        if official is not None:
            return self._from_tsv(official), "official TSV files", None
        files = {split: tables.split_files(folder, split, self.subset) for split in ("train", "validation")}
        missing = [split for split, found in files.items() if not found]
        if missing:
            raise DataError(
                f"task.data_dir={folder} holds neither train.tsv and dev.tsv, nor a folder {subset.folder} with them, nor the "
                f"hub's files of {self.subset} (such as {self.subset}/{missing[0]}-00000-of-00001.parquet)"
            )
        rows = {split: self._checked(tables.read_columns(found, self._columns)) for split, found in files.items()}
        return rows, f"{REPOSITORY} {self.subset}, local files", hub.commit_in(str(folder))

    def _from_tsv(self, folder: Path) -> dict[str, list[Row]]:
        subset = SUBSETS[self.subset]
        splits = {}
        for split, name in (("train", "train.tsv"), ("validation", "dev.tsv")):
            rows = read_tsv(folder / name, subset.columns, subset.header)
            splits[split] = [(tuple(texts), _label(where, label, subset.labels)) for where, (*texts, label) in rows]
        return splits

    def _checked(self, rows: hub.Rows) -> list[Row]:
        """Rows as the hub's files have them: texts, then a class index or a score."""
        found = []
        for where, (*texts, label) in rows:
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"{where}: {', '.join(SUBSETS[self.subset].texts)} must be texts")
            found.append((tuple(texts), _checked_label(where, label, SUBSETS[self.subset].labels)))
        return found

    def _tokenise(self, tokenizer, rows: list[Row], split: str, notes: dict[str, Any]) -> list[dict[str, Any]]:
        columns = [list(column) for column in zip(*(texts for texts, _ in rows), strict=True)]
        encoded = tokenizer(*columns, truncation=False, verbose=False)
        notes["truncated"][split] = sum(len(ids) > self.max_length for ids in encoded["input_ids"])
        if notes["truncated"][split]:
            encoded = tokenizer(*columns, truncation=True, max_length=self.max_length)
        keys = [key for key in encoded if key != "attention_mask"]
        examples = [dict(zip(keys, values, strict=True)) for values in zip(*(encoded[key] for key in keys), strict=True)]
        for example, (_, label) in zip(examples, rows, strict=True):
            example["labels"] = label
        return examples

    def _collate(self, tokenizer):
        regression = self.outputs == 1

        def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            inputs = [{key: value for key, value in example.items() if key != "labels"} for example in examples]
            batch = dict(tokenizer.pad(inputs, padding="longest", return_tensors="pt", verbose=False))
            kind = torch.float32 if regression else torch.long
            batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=kind)
            return batch

        return collate


def fingerprint(rows: dict[str, list[Row]]) -> str:
    """SHA-256, 16 digits, over texts and labels; scores to three decimals, since the hub keeps them in single precision."""
    plain = {split: [(texts, round(label, 3)) for texts, label in found] for split, found in rows.items()}
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()[:16]


def _label(where: str, text: str, labels: tuple[str, ...] | None) -> float:
    if labels is None:
        try:
            return _checked_label(where, float(text), None)
        except ValueError:
            raise DataError(f"{where}: score {text!r} is not a number from 0 to 5") from None
    if text not in labels:
        raise DataError(f"{where}: unknown label {text!r}; allowed: {', '.join(labels)}")
    return labels.index(text)


def _checked_label(where: str, value: float, labels: tuple[str, ...] | None) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: label {value!r} is not a number")
    if labels is None:
        if not 0.0 <= value <= 5.0:
            raise DataError(f"{where}: score {value} is not a number from 0 to 5")
    elif value not in range(len(labels)):
        raise DataError(f"{where}: unknown label {value}; allowed: 0 to {len(labels) - 1}")
    return value


def synthetic_rows(subset: str, train: int = 24, validation: int = 16) -> dict[str, list[Row]]:
    """Sentences of a few words whose label follows from shared words: for rehearsals and tests, no meaning."""
    spec = SUBSETS[subset]
    draws = np.random.default_rng(derive(0, "synthetic"))
    words = np.array(WORDS.split())

    def sentence() -> list[str]:
        return list(draws.choice(words, size=draws.integers(3, 12)))

    def row(index: int) -> Row:
        first = sentence()
        second = list(first) if index % 2 else sentence()
        texts = (" ".join(first), " ".join(second))[: len(spec.texts)]
        if spec.labels is None:
            return texts, round(5.0 * len(set(first) & set(second)) / len(set(first) | set(second)), 1)
        return texts, index % 2

    return {"train": [row(i) for i in range(train)], "validation": [row(i) for i in range(validation)]}
