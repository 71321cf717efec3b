"""What a verdict says, read in the form that its prompt asked for and in no other: nothing is guessed out of prose or code.

Two rules (`judge.parse`). "own": the form stands where the prompt wants it, once; a verdict that was cut is unreadable.
"fastchat": the first number in the right brackets, wherever it stands (fastchat/llm_judge/common.py), and for a pair the first
line (fastchat/eval/eval_gpt_review.py at 080a703). Under both a score is from 1 to 10.
"""

from __future__ import annotations

import re
from typing import Literal

Form = Literal["rating", "pair", "first line", "tuple"]
Rule = Literal["own", "fastchat"]

WHOLE = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"}  # how endpoints call an answer that has its end

LONGEST = 240  # characters at the end of a line that are looked at

_N = r"([0-9]+(?:\.[0-9]+)?)"
_SHAPES = {
    "rating": rf"\[\[\s*{_N}\s*\]\]",
    "pair": rf"\[\[\s*{_N}\s*[,; ]\s*{_N}\s*\]\]",
    "tuple": rf"\(\s*{_N}\s*,\s*{_N}\s*\)",
}
_MARKUP = "*_~`\"'“”>#| \t\r"
_GAP = r"[\s*_`\"“”]*"
_WORD = (
    r"(?:(?:so|thus|therefore|hence|my|the|a|final|overall|total|python)\b,?\s*)*(?:ratings?|scores?|grades?{more})"
    rf"(?:\s*\([^()]{{0,40}}\)|\s+for\s[^.:;!?]{{1,40}})?{_GAP}(?:\b(?:is|are|of)\b)?"
)
_FIRST_PERSON = r"\b(?:I|we)(?:['’]\w+)?\b[^.!?]{0,120}\b(?:ratings?|scores?|grades?) of"
# What may stand before the form: nothing, the end of a sentence, or a word for it where a sentence or a clause begins.
_BEFORE = (
    r"(?:^|(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)[.!?]\s+"
    rf"|(?:(?:^|[^\w\s'’]\s*)(?:{{word}}){_GAP}{{link}}|{_FIRST_PERSON}){_GAP})"
)
# Words with which a first person says what a score is not, or would be: of the clause up to the form.
_NOT = re.compile(
    r"n['’]t\b|\b(?:not|never|no|none|nor|neither|cannot|without|hardly|barely|scarcely|rarely|seldom|refuse|decline|hesitate"
    r"|unable|reluctant|instead|short of|below|above|than|if|unless|had"
    r"|(?:could|would|might|should|must)(?: \w+)? have(?! to))\b",
    re.I,
)
_PERSON = re.compile(r"(?:I|we)\b", re.I)
_CLAUSE = re.compile(r"[.!?,;:–—]")
# Where a first person begins anew and gives the score: what stands before ("I see no error, so") is not about it.
_GIVES = re.compile(
    r"(?:[,;:–—]|\b(?:so|and|but|hence)\b)\W*(?:(?:so|and|but|hence|thus|therefore|overall)\b\W*)*\b(?:I|we)(?:['’](?:d|ll))?"
    r"(?:\s+(?:would|will|shall|must|have to|therefore|thus|still))*\s+(?:give|assign|award)\b",
    re.I,
)
# The two answers by the names that a verdict may give them; a small "a" is a name only before a small "b", and a number only
# after a word for an answer.
_ANSWER = r"\b(?:answers?|assistants?|responses?|models?|ais?)"
_FIRST = rf"(?:(?-i:\bA)\b|\ba(?=\W+(?:(?:and|then|to|vs)\W+)?b\b)|{_ANSWER}\W*1(?!\d)|\b(?:first|former|1st)\b)"
_SECOND = rf"(?:\bb\b|{_ANSWER}\W*2(?!\d)|\b(?:second|latter|2nd)\b)"
_NAMES = re.compile(rf"(?P<first>{_FIRST})|(?P<second>{_SECOND})", re.I)
_BETWEEN = r"(?:['’]s)?\W+(?:(?:and|then|to|vs|the|answer|assistant|response|model|ai)\b\W*)*"
_REVERSED = re.compile(rf"{_SECOND}{_BETWEEN}(?:{_FIRST}|1\b)|\b2{_BETWEEN}1\b|(?-i:\bb{_BETWEEN}a\b)", re.I)
_SCORES = re.compile(r".*\b(?:ratings?|scores?|grades?|tuples?)\b", re.I)
_AFTER = r"(?:\s*(?:/|out of)\s*10)?\s*[.!]*"


def _pattern(form: str) -> re.Pattern[str]:
    more, link = ("|tuples?", "[:：=–—-]?") if form == "tuple" else ("", "[:：–—-]?")
    before = _BEFORE.replace("{word}", _WORD.replace("{more}", more)).replace("{link}", link)
    return re.compile(f"{before}{_SHAPES[form]}{_AFTER}$", re.I)


_AT_THE_END = {form: _pattern(form) for form in _SHAPES}
_FIRST_LINE = re.compile(rf"{_N}\s*[, \t]\s*{_N}")
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.M | re.S)


def whole(finish: str | None) -> bool:
    """Whether a verdict has its end, by the reason that the endpoint gives; one without a reason is taken for whole."""
    return finish is None or finish.lower() in WHOLE


def read_verdict(text: str, finish: str | None, form: Form, rule: Rule = "own") -> tuple[float, ...] | None:
    """The scores of a verdict, in the order in which the judge saw the answers; None when it is unreadable.

    finish: why the endpoint ended it ("stop", "length" ...).
    """
    if rule == "fastchat":
        found = _fastchat(text, form)
    elif not whole(finish):
        return None
    else:
        found = _first_line(text) if form == "first line" else _at_the_end(text, form)
    return found if found is not None and all(1 <= score <= 10 for score in found) else None


def _first_line(text: str) -> tuple[float, ...] | None:
    """Two numbers and nothing else on the first line that is not empty."""
    lines = _lines(text)
    found = _FIRST_LINE.fullmatch(lines[0]) if lines else None
    return found and _numbers(found)


def _at_the_end(text: str, form: str) -> tuple[float, ...] | None:
    """The form at the end of the last line; None as well when another line ends in the form with other scores.

    The prompt for mathematics lets reasons follow its tuple, so that one line of its own that calls it scores will do.
    """
    lines = _lines(_FENCE.sub(lambda fence: _prose(fence, form), text))
    ends = [
        _end(line if len(line) <= LONGEST else f"x{line[-LONGEST:]}", form, above)
        for above, line in zip(["", *lines], lines, strict=False)
    ]
    stated = {_numbers(found) for found in ends if found}
    if not ends or len(stated) != 1:
        return None
    labelled = form == "tuple" and any(found and found.start() == 0 and found.group()[0] not in "(" for found in ends)
    return stated.pop() if ends[-1] or labelled else None


def _end(line: str, form: str, above: str) -> re.Match[str] | None:
    """The form at the end of a line; None as well where the words before it, or a line above that leads to it with a colon,
    say that it is no score, or the second answer's before the first's."""
    found = _AT_THE_END[form].search(line)
    if found is None:
        return None
    label, before = line[found.start() : found.start(1)], line[: found.start()]
    if _PERSON.match(label):
        said = _CLAUSE.split(before)[-1] + label
        anew = [given.end() for given in _GIVES.finditer(said)]
        if _NOT.search(said, anew[-1] if anew else 0):
            return None
    if form != "rating":
        leads = above.endswith((":", "：")) and not (before + label).strip("[( ")
        text = above if leads else re.split(r"[.!?]\s", before)[-1] + label
        called = _SCORES.match(text)
        named = _NAMES.search(text, called.end()) if called else None
        if _REVERSED.search(text) or (named and named.lastgroup == "second"):
            return None
    return found


def _prose(fence: re.Match[str], form: str) -> str:
    """A fenced block: code goes; one line that is set apart stays, a tuple in Python too."""
    language, inside = fence.group(1).strip().lower(), fence.group(2)
    apart = not language or (form, language) == ("tuple", "python")
    return inside if apart and "\n" not in inside.strip() else ""


def _lines(text: str) -> list[str]:
    """The lines that hold more than markup, without the markup at their ends."""
    lines = (line.strip(_MARKUP) for line in text.split("\n"))
    return [line for line in lines if line and not re.fullmatch(r"[\W_]*|<[|/]?\w+\|?>?", line)]


def _numbers(found: re.Match[str]) -> tuple[float, ...]:
    return tuple(float(value) for value in found.groups() if value is not None)


_LOOSE = r"(\d+\.?\d*)"
_LOOSE_PAIR = rf"{_LOOSE},\s?{_LOOSE}"


def _fastchat(text: str, form: Form) -> tuple[float, ...] | None:
    if form in ("rating", "pair"):
        inside = _LOOSE if form == "rating" else _LOOSE_PAIR
        found = re.search(rf"\[\[{inside}\]\]", text) or re.search(rf"\[{inside}\]", text)
        return found and _numbers(found)
    parts = text.partition("\n")[0].replace(",", " ").split(" ")
    try:
        return tuple(map(float, parts)) if len(parts) == 2 else None
    except ValueError:
        return None
