"""Accounts: Weights & Biases, and the judge with its questions."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vera.checks.doctor.lines import NETWORK, NOTE, OK, TODO, UNUSED, Line
from vera.config import RunConfig, component
from vera.errors import ConfigError, DataError
from vera.judge.endpoint import JudgeSettings, read_key
from vera.judge.grade import find_prompts
from vera.judge.questions import QuestionSource, load_questions
from vera.judge.sources import cached, in_folder
from vera.train.tracker import Wandb, login


def tracker(runs: Sequence[RunConfig]) -> Line:
    online = [run for run in runs if issubclass(component(run.tracker, "tracker"), Wandb) and run.tracker["mode"] == "online"]
    if not online:
        return Line(UNUSED, "wandb login", "nothing is sent (tracker=none, or offline)")
    known = login()
    return Line(OK if known else TODO, "wandb login", known or "none", "" if known else "wandb login, or tracker.mode=offline")


def judging(questions: Sequence[QuestionSource], judge: JudgeSettings, silence: str | None, cache_dir: str) -> list[Line]:
    """The key of the judge (its name, never its value), and the official questions."""
    if not questions:
        return [Line(UNUSED, "judge", "no answers are graded")]
    try:
        read_key(judge)
        lines = [Line(OK, "judge key", f"{judge.key_env} is set")]
    except ConfigError as error:
        found = str(error) if os.environ.get(judge.key_env, "").strip() else f"{judge.key_env} is not set"
        remedy = f"export {judge.key_env}=..., or judge.key_env= another variable's name"
        lines = [Line(TODO, "judge key", found, remedy)]
    for source in (source for source in questions if not source.synthetic):
        lines += [_questions(source, silence, cache_dir), _wording(source, judge.prompts, silence, cache_dir)]
    return lines


def _questions(source: QuestionSource, silence: str | None, cache_dir: str) -> Line:
    what, remedy = f"questions: {source.name}", "questions.data_dir=/path/to/it"
    files = [file for file in (source.files.questions, source.files.references) if file is not None]
    away = [file for file in files if source.data_dir is None and not cached(file, cache_dir)]
    if silence and away:
        return Line(NETWORK, what, away[0].url, f"or {remedy}")
    try:
        found = load_questions(source, cache_dir)
    except DataError as error:
        return Line(TODO, what, str(error), remedy)
    name = source.files.questions.names[0]
    return Line(OK, what, name if found.official else f"{name}, not the official one, which Tables 4 and 13 want")


def _wording(source: QuestionSource, choice: str, silence: str | None, cache_dir: str) -> Line:
    what, file = f"judge's wording: {source.name}", source.files.prompts.get(source.grading)
    here = file is not None and source.data_dir is not None and in_folder(file, source.data_dir) is not None
    if silence and file is not None and choice != "own" and not here and not cached(file, cache_dir):
        return Line(NETWORK, what, file.url, f"or {file.names[0]} in questions.data_dir, or judge.prompts=own")
    try:
        prompts = find_prompts(source, choice, cache_dir)
    except (ConfigError, DataError) as error:
        return Line(TODO, what, str(error), "judge.prompts=own, or the official file")
    if prompts.source != "official":
        return Line(NOTE, what, f"{prompts.source} wording", "Tables 4 and 13 take the official one alone")
    return Line(OK, what, file.names[0])
