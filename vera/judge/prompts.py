"""What the judge is told, and the form in which each wording asks for its verdict. The official prompts are read from their
files; ours are below."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from vera.errors import DataError
from vera.judge.questions import Grading
from vera.judge.sources import Found, json_lines
from vera.judge.verdicts import Form

FIELDS = {
    "single": ("question", "answer", "ref_answer_1"),
    "multi": ("question_1", "question_2", "answer_1", "answer_2", "ref_answer_1", "ref_answer_2"),
    "pairwise": ("question", "answer_1", "answer_2"),
}
PAIR_CATEGORIES = ("general", "coding", "math")


@dataclass(frozen=True)
class Prompt:
    """One wording: the system message, a template of the user message with {fields} as in FIELDS, and the form of the verdict
    that it asks for."""

    name: str
    system: str
    template: str
    form: Form = "rating"

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
    Prompt("pair", _SYSTEM, _PAIR, "pair"),
)


def own_prompts() -> Prompts:
    """The wording of this project."""
    text = json.dumps([[prompt.name, prompt.system, prompt.template] for prompt in OWN])
    return Prompts("own", hashlib.sha256(text.encode()).hexdigest(), {prompt.name: prompt for prompt in OWN})


def read_prompts(found: Found, grading: Grading) -> Prompts:
    """FastChat's judge_prompts.jsonl (single: the verdict ends with [[rating]]) or the older prompt.jsonl (pairwise: a first
    line with two scores, for mathematics a tuple). Raises DataError."""
    prompts: dict[str, Prompt] = {}
    asked: dict[str, Any] = {}
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
        form = "rating" if grading == "single" else "tuple" if row[key] == "math" else "first line"
        prompts[row[key]] = Prompt(row[key], row["system_prompt"], template, form)
        asked[row[key]] = row.get("output_format")
    needed = [prompt.name for prompt in OWN[:4]] if grading == "single" else PAIR_CATEGORIES
    for name in needed:
        if name not in prompts:
            raise DataError(f"{found.where}: no judge prompt for {name}")
        if grading == "single" and asked[name] not in (None, "[[rating]]"):
            raise DataError(
                f"{found.where}: judge prompt {name} asks for {str(asked[name])[:40]!r}; this program reads [[rating]]"
            )
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
