"""Grade answers with another language model: any OpenAI-compatible endpoint, its key from the environment.

python scripts/judge.py results/answers/A.jsonl                               MT-Bench, one set of answers at a time
python scripts/judge.py results/answers/A.jsonl results/answers/B.jsonl       Vicuna Eval, two side by side
    ... judging=fastchat                                       asked for and read as FastChat does
    ... judge.model=gpt-4-0613 judge.counts_as=gpt-4           a release that may fill Tables 4 and 13
    ... judge.base_url=http://localhost:8000/v1 questions.data_dir=/path/to/mt_bench

Every word with `=` is a key of conf/judge.yaml. Verdicts are kept as they come; the same command asks for what is missing.
Several MT-Bench files are graded one after the other.
"""

import sys
from pathlib import Path

from vera.config import checked, resolve
from vera.config.paths import readable
from vera.errors import ConfigError, DataError
from vera.judge.endpoint import JudgeSettings, read_key
from vera.judge.grade import judge
from vera.judge.judgement import Answers, find
from vera.judge.questions import QuestionSource
from vera.records import interrupt, screen


def main() -> int:
    files = [argument for argument in sys.argv[1:] if "=" not in argument]
    overrides = readable([argument for argument in sys.argv[1:] if "=" in argument])
    if {"-h", "--help"} & set(files):
        print(__doc__)
        return 0
    if not files or any(file.startswith("-") for file in files):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with interrupt.handled():
            for group in _groups(files, overrides):
                _one(group, overrides)
    except interrupt.Interrupted as left:
        print(left, file=sys.stderr)
        return left.status
    return 0


def _config(files: list[str], overrides: list[str]) -> tuple[QuestionSource, JudgeSettings, dict]:
    """The questions are those that the files say they answer, unless the command line chooses."""
    if not any(override.startswith("questions=") for override in overrides):
        record = find(Answers, Path(files[0]).with_suffix(".json"))
        if record is not None:
            overrides = [f"questions={record.questions.name}", *overrides]
            if record.questions.sha256 == "synthetic":
                overrides.append("questions.synthetic=true")
    values = resolve("judge", overrides)
    for key in ("results_dir", "cache_dir"):
        if not isinstance(values[key], str) or not values[key]:
            raise ConfigError(f"{key}: it must be a folder, got {values[key]!r}")
    source = checked(QuestionSource, values["questions"], "questions")
    if source.grading == "single" and any(override.lstrip("+").startswith("judge.orders=") for override in overrides):
        raise ConfigError(f"judge.orders is of pairs, and questions={source.name} is graded one answer at a time: leave it out")
    return source, checked(JudgeSettings, values["judge"], "judge"), values


def _groups(files: list[str], overrides: list[str]) -> list[list[str]]:
    source, _, _ = _config(files, overrides)
    return [[file] for file in files] if source.grading == "single" else [files]


def _one(files: list[str], overrides: list[str]) -> None:
    if missing := next((file for file in files if not Path(file).is_file()), None):
        raise DataError(f"{missing} is no file")
    source, settings, values = _config(files, overrides)
    key = read_key(settings)
    with screen.counted("judge", "verdicts", say=lambda text: print(text, file=sys.stderr, flush=True)) as show:
        record, path = judge(
            files,
            source,
            settings,
            key,
            values["results_dir"],
            values["cache_dir"],
            on_note=lambda text: print(text, file=sys.stderr),
            on_progress=show,
        )
    for answer, score in zip(record.answers, record.scores, strict=True):
        turns = ", ".join(f"turn {turn} {mean:.2f}" for turn, mean in score["by_turn"].items())
        print(f"{answer['name']}  {score['mean']:.2f} of 10  (n={score['n']}; {turns})")
    if record.unreadable:
        print(f"{len(record.unreadable)} of {record.verdicts} verdicts could not be read: {', '.join(record.unreadable)}")
    if record.alone:
        print(f"{record.alone} more are in no mean: their questions could be read in one order alone")
    for key, reason in list(record.failed.items())[:5]:
        print(f"{key}: {reason}")
    print(f"record {path}")
