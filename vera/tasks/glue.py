"""Six GLUE tasks, from the hub or from the official TSV files, with GLUE's metrics (paper, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from vera.config import Source
from vera.errors import DataError
from vera.io import hub, tables
from vera.io.hub import HubData
from vera.io.rows import number_of
from vera.tasks.metrics import METRICS, compute
from vera.tasks.text import Row, Splits, TextTask, synthetic_rows
from vera.tasks.tsv import read_tsv

REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True)
class Subset:
    """One GLUE task: its folder, the columns of its TSV files (text columns, then the label) and its labels.

    labels   what the files print, in the order of the class indices; None for a score from 0 to 5.
    texts    the hub's names of the text columns; names: its names of the labels, where they are others.
    """

    folder: str
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    header: bool = True
    names: tuple[str, ...] | None = None


SUBSETS = {
    "sst2": Subset("SST-2", ("sentence", "label"), ("sentence",), ("0", "1"), names=("negative", "positive")),
    "mrpc": Subset(
        *("MRPC", ("#1 String", "#2 String", "Quality"), ("sentence1", "sentence2"), ("0", "1")),
        names=("not_equivalent", "equivalent"),
    ),
    "cola": Subset("CoLA", ("3", "1"), ("sentence",), ("0", "1"), header=False, names=("unacceptable", "acceptable")),
    "qnli": Subset("QNLI", ("question", "sentence", "label"), ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Subset("RTE", ("sentence1", "sentence2", "label"), ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "stsb": Subset("STS-B", ("sentence1", "sentence2", "score"), ("sentence1", "sentence2"), None),
}


class Glue(TextTask):
    """conf/task/{sst2,mrpc,cola,qnli,rte,stsb}.yaml.

    data_dir    a folder with train.tsv and dev.tsv, or GLUE's own folder that holds one for each task; None reads the hub.
    """

    subset: Literal[tuple(SUBSETS)]  # type: ignore[valid-type]
    data_dir: Annotated[str | None, Source] = None

    @field_validator("subset")
    @classmethod
    def _named_after_it(cls, subset: str, info: ValidationInfo) -> str:
        name = info.data.get("name")
        if name in SUBSETS and name != subset:
            raise PydanticCustomError(
                "named", "records of these rows would count as {name}'s: choose task={subset}", {"name": name, "subset": subset}
            )
        return subset

    @property
    def scored(self) -> tuple[str, ...]:
        return METRICS[self.subset]

    @property
    def outputs(self) -> int:
        labels = SUBSETS[self.subset].labels
        return 1 if labels is None else len(labels)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return SUBSETS[self.subset].labels

    def score(self, logits, labels):
        predictions = logits.squeeze(-1) if self.outputs == 1 else logits.argmax(-1)
        return compute(self.subset, predictions.numpy(), labels.numpy())

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*SUBSETS[self.subset].texts, "label")

    def hub_data(self):
        if self.synthetic or self.data_dir is not None:
            return None
        return HubData(REPOSITORY, "main", self.subset, ("train", "validation"), self._columns)

    def source_rows(self) -> tuple[Splits, str, str | None]:
        """Rows of the splits "train" and "validation", where they come from, and the hub's commit."""
        if self.synthetic:
            spec = SUBSETS[self.subset]
            return synthetic_rows(len(spec.texts), None if spec.labels is None else len(spec.labels)), "synthetic", None
        if self.data_dir is not None:
            return self._from_folder(Path(self.data_dir))
        found, commit = hub.load_rows(
            self.hub_data(), "give a folder with GLUE's official files with task.data_dir=/path/to/glue"
        )
        return {split: self._checked(rows) for split, rows in found.items()}, f"{REPOSITORY} {self.subset}", commit

    def _from_folder(self, folder: Path) -> tuple[Splits, str, str | None]:
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
                f"hub's files of {self.subset} (such as {self.subset}/{missing[0]}-00000-of-00001.parquet; that folder's name "
                f"is what tells them from another configuration's){tables.not_arrow(folder)}"
            )
        rows = {split: self._checked(tables.read_columns(found, self._columns)) for split, found in files.items()}
        return rows, f"{REPOSITORY} {self.subset}, local files", hub.commit_in(str(folder))

    def _from_tsv(self, folder: Path) -> Splits:
        subset = SUBSETS[self.subset]
        splits = {}
        for split, name in (("train", "train.tsv"), ("validation", "dev.tsv")):
            rows = read_tsv(folder / name, subset.columns, subset.header)
            splits[split] = [(tuple(texts), _label(where, label, subset.labels)) for where, (*texts, label) in rows]
        return splits

    def _checked(self, rows: hub.Rows) -> list[Row]:
        """Rows as the hub's files have them: texts, then a class (its name, or its index) or a score."""
        subset = SUBSETS[self.subset]
        named = {name: index for names in (subset.labels, subset.names) for index, name in enumerate(names or ())}
        found = []
        for where, (*texts, label) in rows:
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"{where}: {', '.join(subset.texts)} must be texts")
            if isinstance(label, str) and named and label not in named:
                raise DataError(f"{where}: unknown label {label!r}; allowed: {', '.join(named)}")
            found.append((tuple(texts), _checked_label(where, named.get(label, label), subset.labels)))
        return found


def _label(where: str, text: str, labels: tuple[str, ...] | None) -> float:
    if labels is None:
        score = number_of(text)
        if score is None:
            raise DataError(f"{where}: score {text!r} is not a number from 0 to 5")
        return _checked_label(where, score, None)
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
