"""What can be known before the money is spent: a line for each thing that a sweep needs, and what to do where it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from vera.checks.doctor.accounts import judging, tracker
from vera.checks.doctor.hardware import device_bytes, disk, memory, weights_bytes
from vera.checks.doctor.lines import NETWORK, NOTE, OFFLINE, OK, TODO, UNUSED, Line, Wanted, describe, distinct, verdict
from vera.checks.doctor.software import DISTRIBUTION, extras_of, java, packages, python
from vera.checks.doctor.sources import data_line, local_data, model_line
from vera.config import build
from vera.io import hub
from vera.judge.endpoint import JudgeSettings
from vera.judge.questions import QuestionSource


def examine(
    wanted: Sequence[Wanted], questions: Sequence[QuestionSource], judge: JudgeSettings, constraints: Path
) -> list[Line]:
    """Every line, in the order in which things are wanted: this machine, its disk, the hub, accounts.

    The hub is asked once whether it answers, then once for each repository; without an answer those lines say so.
    """
    runs = [item.run for item in wanted]
    lines = [python(), *packages(constraints, extras_of(runs, bool(questions)))]
    lines += [*memory(wanted), java(runs)]
    silence = None
    needs = [model for run in distinct(runs, "model") if (model := build(run.model, "model")).source_kind == "hub"]
    data = {(d.repository, d.subset): d for run in runs if (d := build(run.task, "task").hub_data()) is not None}
    if needs or data:
        silence = hub.silent()
        lines.append(Line(NETWORK if silence else OK, "hub", silence or constants.ENDPOINT, OFFLINE if silence else ""))
    else:
        lines.append(Line(UNUSED, "hub", "nothing is read from it"))
    sizes: dict[str, int] = {}
    lines += [model_line(run, silence, sizes) for run in distinct(runs, "model")]
    lines += [data_line(item, silence, sizes) for item in data.values()]
    lines += local_data(runs)
    lines += disk(wanted, sizes)
    lines += [tracker(runs), *judging(questions, judge, silence, runs[0].cache_dir)]
    return lines
