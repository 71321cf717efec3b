"""Accounts: Weights & Biases, and the judge with its questions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vera.checks.doctor.lines import NETWORK, OK, TODO, UNUSED, Line
from vera.config import RunConfig, component
from vera.errors import DataError
from vera.judge.endpoint import JudgeSettings
from vera.judge.questions import QuestionSource
from vera.judge.sources import fetch, in_folder
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
    present = bool(os.environ.get(judge.key_env, "").strip())
    remedy = "" if present else f"export {judge.key_env}=..., or judge.key_env= another variable's name"
    lines = [Line(OK if present else TODO, "judge key", f"{judge.key_env} is {'set' if present else 'not set'}", remedy)]
    for source in questions:
        if source.synthetic:
            continue
        file = source.files.questions
        try:
            if source.data_dir is not None:
                there = in_folder(file, source.data_dir) is not None
                if not there:
                    raise DataError(f"{source.data_dir} holds no {file.names[0]}")
            elif silence and not (Path(cache_dir) / "official" / f"{file.sha256[:16]}-{file.names[0]}").is_file():
                lines.append(Line(NETWORK, f"questions: {source.name}", file.url, "or questions.data_dir=/path/to/it"))
                continue
            else:
                fetch(file, cache_dir)
        except DataError as error:
            lines.append(Line(TODO, f"questions: {source.name}", str(error), "questions.data_dir=/path/to/it"))
            continue
        lines.append(Line(OK, f"questions: {source.name}", file.names[0]))
    return lines
