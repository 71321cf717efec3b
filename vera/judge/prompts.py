"""What the judge is told, and how its verdict is read. The official prompts are read from their files; ours are below.

A verdict that does not hold exactly one rating from 1 to 10 (or one pair of them) is unreadable; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from vera.errors import DataError
from vera.judge.questions import Grading
from vera.judge.sources import Found, json_lines

FIELDS = {
    "single": ("question", "answer", "ref_answer_1"),
    "multi": ("question_1", "question_2", "answer_1", "answer_2", "ref_answer_1", "ref_answer_2"),
    "pairwise": ("question", "answer_1", "answer_2"),
}
PAIR_CATEGORIES = ("general", "coding", "math")


@dataclass(frozen=True)
class Prompt:
    """One wording: the system message and a template of the user message with {fields} as in FIELDS."""

    name: str
    system: str
    template: str

    def messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Chat messages; an empty system message is left out."""
        user = {"role": "user", "content": self.template.format(**values)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


@dataclass(frozen=True)
class Prompts:
    """A set of wordings by name. source: official, own (below) or other (a file that is not the official one)."""

    source: Literal["official", "own", "other"]
    sha256: str
    by_name: dict[str, Prompt]

    def choose(self, grading: Grading, category: str, turn: int, reference: bool) -> Prompt:
        """The wording for one question. turn: 1 or 2; reference: whether there is a reference answer (single grading only)."""
        if grading == "single":
            return self.by_name["single" + "-math" * reference + "-v1" + "-multi-turn" * (turn == 2)]
        if self.source == "own":
            return self.by_name["pair"]
        return self.by_name[category if category in PAIR_CATEGORIES else "general"]


_GRADE = (
    "Judge whether it is correct, useful, to the point, complete and clear, and whether it does what was asked. "
    "Length earns nothing by itself."
)
_WITH_REFERENCE = "A reference answer is given; compare with it first and name what is wrong. Correctness counts most."
_RATING = (
    "Give your reasons in a few sentences. Then end with one line\nRating: [[n]]\nwhere n is a number from 1 (useless) to 10 "
    "(could not be better)."
)
_TALK = (
    "<user>\n{question_1}\n</user>\n<assistant>\n{answer_1}\n</assistant>\n"
    "<user>\n{question_2}\n</user>\n<assistant>\n{answer_2}\n</assistant>"
)
_REFERENCE_TALK = "<reference>\n{ref_answer_1}\n</reference>\n<reference>\n{ref_answer_2}\n</reference>\n\n"
_SYSTEM = "You grade what an AI assistant answered, strictly and without favour."
_PAIR = (
    "Two assistants, A and B, answered the same question. Grade each answer. Judge whether it is correct, useful, to the "
    "point, complete and clear, and whether it does what was asked. Neither length nor order earns anything. Give your reasons "
    "in a few sentences. Then end with one line\nScores: [[a, b]]\nwhere a and b are the grades of A and B, each a number from "
    "1 (useless) to 10 (could not be better).\n\n<question>\n{question}\n</question>\n\n"
    "<answer of A>\n{answer_1}\n</answer of A>\n\n<answer of B>\n{answer_2}\n</answer of B>"
)
OWN = (
    Prompt(
        "single-v1",
        _SYSTEM,
        f"Grade the answer to this question. {_GRADE} {_RATING}\n\n<question>\n{{question}}\n</question>\n\n"
        "<answer>\n{answer}\n</answer>",
    ),
    Prompt(
        "single-math-v1",
        _SYSTEM,
        f"Grade the answer to this question. {_WITH_REFERENCE} {_RATING}\n\n<question>\n{{question}}\n</question>\n\n"
        "<reference>\n{ref_answer_1}\n</reference>\n\n<answer>\n{answer}\n</answer>",
    ),
    Prompt(
        "single-v1-multi-turn",
        _SYSTEM,
        f"Grade the assistant's second answer in this conversation, as an answer to the second question. {_GRADE} {_RATING}\n\n"
        + _TALK,
    ),
    Prompt(
        "single-math-v1-multi-turn",
        _SYSTEM,
        "Grade the assistant's second answer in this conversation, as an answer to the second question. The references answer "
        f"the two questions in order. {_WITH_REFERENCE} {_RATING}\n\n" + _REFERENCE_TALK + _TALK,
    ),
    Prompt("pair", _SYSTEM, _PAIR),
)


def own_prompts() -> Prompts:
    """The wording of this project."""
    text = json.dumps([[prompt.name, prompt.system, prompt.template] for prompt in OWN])
    return Prompts("own", hashlib.sha256(text.encode()).hexdigest(), {prompt.name: prompt for prompt in OWN})


def read_prompts(found: Found, grading: Grading) -> Prompts:
    """FastChat's judge_prompts.jsonl (single) or the older prompt.jsonl (pairwise scores). Raises DataError."""
    prompts: dict[str, Prompt] = {}
    for place, row in json_lines(found.data, found.where):
        key = "name" if grading == "single" else "category"
        if not all(isinstance(row.get(part), str) for part in (key, "system_prompt", "prompt_template")):
            raise DataError(f"{place}: a judge prompt needs {key}, system_prompt and prompt_template")
        template = row["prompt_template"]
        defaults = row.get("defaults") or {}
        if not isinstance(defaults, dict):
            raise DataError(f"{place}: defaults of a judge prompt must be a mapping")
        for name, text in defaults.items():
            template = template.replace("{" + name + "}", str(text).replace("{", "{{").replace("}", "}}"))
        prompts[row[key]] = Prompt(row[key], row["system_prompt"], template)
    needed = [prompt.name for prompt in OWN[:4]] if grading == "single" else PAIR_CATEGORIES
    for name in needed:
        if name not in prompts:
            raise DataError(f"{found.where}: no judge prompt for {name}")
        fields = FIELDS["pairwise" if grading == "pairwise" else "multi" if name.endswith("multi-turn") else "single"]
        _check_fields(f"{found.where}: judge prompt {name}", prompts[name].template, fields)
    return Prompts("official" if found.official else "other", found.sha256, {name: prompts[name] for name in needed})


def _check_fields(where: str, template: str, known: tuple[str, ...]) -> None:
    """A template holds plain {fields} alone: str.format would also follow attributes and pad to any width. Raises DataError."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"{where} is not a template: {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (name not in known or spec or conversion):
            raise DataError(f"{where} has a field that is not known: {name!r}; allowed: {', '.join(known)}")


_NUMBER = r"(\d+(?:\.\d+)?)"
_RATING_PATTERN = re.compile(rf"\[\[\s*{_NUMBER}\s*\]\]")
_PAIR_PATTERNS = (
    re.compile(rf"\[\[\s*{_NUMBER}\s*[,;/ ]\s*{_NUMBER}\s*\]\]"),  # ours
    re.compile(rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"),  # the tuple that the official prompt for mathematics asks for
)
_FIRST_LINE = re.compile(rf"\(?\s*{_NUMBER}\s*[, ]\s*{_NUMBER}\s*\)?")


def parse_rating(verdict: str) -> tuple[float] | None:
    """The one [[rating]] from 1 to 10 of a verdict; None when there is none, or two that differ."""
    found = {float(value) for value in _RATING_PATTERN.findall(verdict)}
    return _in_range(tuple(found)) if len(found) == 1 else None


def parse_pair(verdict: str) -> tuple[float, float] | None:
    """The two scores of a verdict: a first line that holds nothing else, or the one [[a, b]] or (a, b); None otherwise."""
    first = next((line.strip() for line in verdict.splitlines() if line.strip()), "")
    alone = _FIRST_LINE.fullmatch(first)
    if alone:
        return _in_range(tuple(float(value) for value in alone.groups()))
    for pattern in _PAIR_PATTERNS:
        found = {tuple(float(value) for value in pair) for pair in pattern.findall(verdict)}
        if found:
            return _in_range(found.pop()) if len(found) == 1 else None
    return None


def _in_range(scores):
    return scores if all(1 <= score <= 10 for score in scores) else None
