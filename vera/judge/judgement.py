"""What answering and judging leave behind, in results_dir/answers and results_dir/judged. Verdicts and answers are JSON lines
beside their record, in the format of FastChat's model_answer files, so that either side can be exchanged."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from typing_extensions import NotRequired, TypedDict  # pydantic wants this one before Python 3.12

from vera.config import Name, Strict
from vera.errors import RecordError
from vera.io.files import os_error_as, write_atomic
from vera.records.record import Count, Finite, Run

SCHEMA = 1
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Questions(Strict):
    """Which questions: official says whether the file is the published one, byte for byte."""

    name: Name
    version: int
    sha256: str
    official: bool
    count: Count
    turns: Count


class Answers(Strict):
    """A finished set of answers.

    identity      SHA-256 of everything that decides them: run, trained weights, questions and settings.
    run           the training run; null for the backbone as it is.
    checkpoint    which epoch's weights, best or last; null for the backbone as it is. adapter_sha256: of these weights.
    backbone      of the backbone as it is: its settings that count (vera.config.hashed); null for a run, whose config has them.
    settings      chat template, stop strings, lengths and sampling, as configured.
    sha256        of the file of answers; as `backbone`, null in records from before they held it.
    cut           answers that ended because max_new_tokens was reached; shortened: questions whose earlier turns were dropped
                  from the left to fit the model.
    cost          seconds that writing took (without loading the model) and tokens written, over all calls; device and
                  precision, all of them where calls differ. provenance.started is of the first call. Null where an older
                  version began the answers.
    """

    schema_: Literal[1] = Field(alias="schema")
    status: Literal["done"]
    identity: Digest
    model: Name
    run: Run | None
    checkpoint: Literal["best", "last"] | None
    adapter_sha256: str | None
    backbone: dict[str, Any] | None = None
    questions: Questions
    settings: dict[str, Any]
    sha256: Digest | None = None
    cut: Count
    shortened: Count
    cost: dict[str, int | Finite | str | None]
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{answers_name(self.model, self.run)}--{self.questions.name}--{self.identity[:8]}"

    def check(self, path: Path, found: str) -> None:
        """Raises RecordError when the answers at `path`, of SHA-256 `found`, are not those that this record is about."""
        if self.sha256 not in (None, found):
            raise RecordError(
                f"{path} was changed after its record was written (SHA-256 {found[:8]}, not {self.sha256[:8]}); remove both "
                "and answer again"
            )

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


class Judge(TypedDict):
    """Who graded, as configured, and with which wording: prompts and the SHA-256 of their texts.

    counts_as   the judge whose place in a table these scores may take, by whoever configured it; null for its own alone.
    parse       how scores were read out of the verdicts (vera.judge.verdicts).
    """

    version: int
    model: str
    base_url: str
    temperature: float | None
    max_tokens: int | None
    orders: str
    counts_as: NotRequired[str | None]
    parse: NotRequired[str]
    prompts: str
    prompts_sha256: str


class Graded(TypedDict):
    """What was graded; run: of the training, where it is known (model, task, method, seed, cell_id)."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]{1,200}$")]
    sha256: str
    model: str | None
    checkpoint: str | None
    run: dict[Literal["model", "task", "method", "seed", "cell_id"], str | int] | None


class Score(TypedDict):
    mean: Finite
    n: Count
    by_turn: dict[str, Finite]
    by_category: dict[str, Finite]


class Judged(Strict):
    """Grades of one set of answers, or of two side by side, by one judge.

    identity    SHA-256 of judge, wording, questions and answers: another judge makes another record.
    answers     what was graded, with the SHA-256 of its file and the training run where it is known.
    scores      for each of `answers`, from 1 to 10: mean over the readable verdicts, n of them, by turn and by category; of a
                pair asked about in both orders, over the questions of which both could be read (`alone`: the others').
    unreadable  question/turn/order of verdicts that held no rating however often they were asked for; in no mean.
    failed      those of them for which there is no verdict at all, and what the endpoint said instead.
    """

    schema_: Literal[1] = Field(alias="schema")
    status: Literal["done"]
    identity: Digest
    judge: Judge
    questions: Questions
    answers: list[Graded] = Field(min_length=1, max_length=2)
    scores: list[Score]
    verdicts: Count
    unreadable: list[str]
    failed: dict[str, str] = {}
    cost: dict[str, int | None]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _one_score_each(self):
        if len(self.scores) != len(self.answers):
            raise ValueError("one entry in scores for each of answers")
        if any(answer["run"] is not None and len(answer["run"]) != 5 for answer in self.answers):
            raise ValueError("a run is named by model, task, method, seed and cell_id")
        return self

    @property
    def grading(self) -> str:
        """One answer at a time, or two side by side (vera.judge.questions.Grading)."""
        return "single" if len(self.answers) == 1 else "pairwise"

    @property
    def alone(self) -> int:
        """The readable verdicts whose question has an unreadable one in the other order."""
        if self.grading == "single" or self.judge["orders"] != "both":
            return 0
        return list(Counter(key.rpartition("/")[0] for key in self.unreadable).values()).count(1)

    @property
    def name(self) -> str:
        return judged_name([answer["name"] for answer in self.answers], self.judge["model"], self.identity)

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def answers_name(model: str, run: Run | None) -> str:
    """The name of a run, or <model>--bare for the backbone as it is."""
    return f"{model}--bare" if run is None else run.name


def judged_name(names: list[str], model: str, identity: str) -> str:
    """<answers>[--vs--<hash of the other answers' name>]--by-<judge>-<id8>."""
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in model)[:40]
    versus = "" if len(names) == 1 else f"--vs--{hashlib.sha256(names[1].encode()).hexdigest()[:8]}"
    return f"{names[0]}{versus}--by-{slug}-{identity[:8]}"


_Record = TypeVar("_Record", Answers, Judged)


def find(schema: type[_Record], path: Path) -> _Record | None:
    """A record, or None when the file is not there. Raises RecordError for an invalid one."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"{path}: {'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}") from None


def find_all(schema: type[_Record], folder: Path) -> list[_Record]:
    """Every record of a folder, sorted by file name."""
    return [find(schema, path) for path in sorted(folder.glob("*.json"))]


def write(path: Path, record: Answers | Judged) -> None:
    """Write a record, whole or not at all. Raises RecordError."""
    with os_error_as(RecordError, f"{path} cannot be written"):
        write_atomic(path, record.to_json())


def digest(value: Any) -> str:
    """SHA-256, in hex, of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
