"""Question sets: MT-Bench and Vicuna Eval, or any file of the same format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vera import config  # composing, which brings Hydra, for those who ask for it
from vera.config import Name, Strict
from vera.errors import DataError
from vera.judge.judgement import Questions
from vera.judge.sources import Found, PinnedFile, fetch, in_folder, json_lines

Id = int | str


Grading = Literal["single", "pairwise"]


class QuestionFiles(Strict):
    """The official files; prompts: the judge's wording by way of grading, where there is one."""

    questions: PinnedFile
    references: PinnedFile | None
    prompts: dict[Grading, PinnedFile]


class QuestionSource(Strict):
    """conf/questions/*.yaml.

    count                 how many questions the official file has, for plans.
    turns                 how many questions a conversation has.
    grading               single: one answer at a time, 1 to 10; pairwise: two answers side by side, 1 to 10 each.
    reference_categories  categories whose judge sees the reference answer.
    data_dir              a folder with the official files (or others of their format); None fetches them.
    synthetic             a few made-up questions, for rehearsals.
    """

    name: Name
    version: int = Field(ge=1)
    count: int = Field(ge=1)
    turns: int = Field(ge=1, le=2)
    grading: Grading
    reference_categories: list[str]
    files: QuestionFiles
    data_dir: str | None = None
    synthetic: bool = False


def own_grading(name: str) -> Grading | None:
    """How conf/questions has a question set graded; None for a set that is not there."""
    if name not in config.choices("questions"):
        return None
    return config.resolve("judge", [f"questions={name}"])["questions"]["grading"]


@dataclass(frozen=True)
class Question:
    id: Id
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class QuestionSet:
    """Questions in the order of their file, and reference answers by question id."""

    name: str
    questions: tuple[Question, ...]
    sha256: str
    official: bool
    references: dict[Id, tuple[str, ...]] = field(default_factory=dict)


def load_questions(source: QuestionSource, cache_dir: str | Path) -> QuestionSet:
    """Read and check a question set. Raises DataError naming file and line."""
    if source.synthetic:
        return synthetic(source)
    found = _required(source, source.files.questions, cache_dir)
    questions = parse_questions(found, source.turns)
    references: dict[Id, tuple[str, ...]] = {}
    wanted = {question.id for question in questions if question.category in source.reference_categories}
    if source.files.references is not None and wanted:
        references = parse_turns(_required(source, source.files.references, cache_dir), source.turns)
        references = {key: turns for key, turns in references.items() if key in wanted}
        if wanted - references.keys():
            raise DataError(f"{source.name}: no reference answer to question {min(map(str, wanted - references.keys()))}")
    return QuestionSet(source.name, questions, found.sha256, found.official, references)


def _required(source: QuestionSource, file: PinnedFile, cache_dir: str | Path) -> Found:
    if source.data_dir is not None:
        found = in_folder(file, source.data_dir)
        if found is None:
            raise DataError(f"questions.data_dir={source.data_dir} holds no {' or '.join(file.names)}")
        return found
    try:
        return fetch(file, cache_dir)
    except DataError as error:
        raise DataError(f"{error}; give a folder that holds {file.names[0]} with questions.data_dir") from None


def parse_questions(found: Found, turns: int) -> tuple[Question, ...]:
    """Questions of a JSONL file with question_id, category and turns. Raises DataError."""
    questions, seen = [], set[str]()
    for place, row in json_lines(found.data, found.where):
        key = _id(place, row, seen)
        category = row.get("category")
        if not isinstance(category, str) or not category:
            raise DataError(f"{place}: question {key} has no category")
        questions.append(Question(key, category, _texts(place, key, row.get("turns"), turns, empty=False)))
    if not questions:
        raise DataError(f"{found.where}: no questions")
    return tuple(questions)


def parse_turns(found: Found, turns: int) -> dict[Id, tuple[str, ...]]:
    """Answers by question id from a JSONL file with question_id and choices[0].turns. Raises DataError."""
    answers: dict[Id, tuple[str, ...]] = {}
    seen = set[str]()
    for place, row in json_lines(found.data, found.where):
        key = _id(place, row, seen)
        try:
            given = row["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{place}: question {key} has no choices[0].turns") from None
        answers[key] = _texts(place, key, given, turns, empty=True)
    return answers


def _id(place: str, row: dict[str, Any], seen: set[str]) -> Id:
    """A row's question_id, which joins those `seen` as verdicts are kept under it: 1 and "1" are one. Raises DataError."""
    key = row.get("question_id")
    if isinstance(key, bool) or not isinstance(key, (int, str)) or key == "":
        raise DataError(f"{place}: question_id must be a number or a word, got {key!r}")
    if str(key) in seen:
        raise DataError(f'{place}: question_id {key} occurs twice (1 and "1" are one)')
    seen.add(str(key))
    return key


def _texts(place: str, key: Id, given: Any, turns: int, empty: bool) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise DataError(f"{place}: turns of question {key} must be a list of texts")
    if len(given) != turns:
        raise DataError(f"{place}: question {key} has {len(given)} turns, not {turns}")
    if not empty and not all(text.strip() for text in given):
        raise DataError(f"{place}: question {key} has an empty turn")
    return tuple(given)


def synthetic(source: QuestionSource) -> QuestionSet:
    """Three made-up questions, the last in a category with reference answers."""
    categories = ["writing", "stem", (source.reference_categories or ["general"])[0]]
    texts = [("Name three colours.", "Name another."), ("What is rain?", "And snow?"), ("What is 2 + 3?", "Double it.")]
    questions = tuple(
        Question(index, category, turns[: source.turns])
        for index, (category, turns) in enumerate(zip(categories, texts, strict=True), start=1)
    )
    references = {3: ("5", "10")[: source.turns]} if source.reference_categories else {}
    return QuestionSet(source.name, questions, "synthetic", False, references)


def described(source: QuestionSource, questions: QuestionSet) -> Questions:
    """What a record of answers or of verdicts says about its questions."""
    return Questions(
        name=source.name,
        version=source.version,
        sha256=questions.sha256,
        official=questions.official,
        count=len(questions.questions),
        turns=source.turns,
    )
