"""What the tables of judges' scores need beside training: answers, also of backbones as they are, and the judge's requests."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.engine.aggregate import epoch_of
from experiments.engine.judged import PAPER_JUDGE, counts, left_out, unfit
from experiments.engine.published import Published, Row, load, names, run_of
from experiments.engine.render import DASH, Table
from experiments.engine.sweeps import AXES, narrowing
from vera.config import checked, resolve
from vera.errors import ConfigError
from vera.judge.endpoint import JudgeSettings
from vera.judge.judgement import Answers, Judged, find_all
from vera.judge.questions import QuestionSource
from vera.project import called, project
from vera.records.store import Store

OF_THE_JUDGE = ("judge.", "judging=", "questions.")
COLUMNS = ["Fills", "Questions", "Answers wanted", "Done", "Graded", "Requests", "Left", "US$ left"]


@dataclass(frozen=True)
class Asked:
    """The answers of one published row at one seed. name: how their files begin; command: what makes them; stem: theirs, where
    they are there; graded: whether the judge has seen them."""

    name: str
    command: str
    stem: str | None
    graded: bool


@dataclass(frozen=True)
class Judging:
    """What one table wants of the judge. requests: for all of it, and those left; dollars: for the latter."""

    table: str
    questions: str
    pairwise: bool
    asked: list[Asked]
    requests: int
    left: int
    dollars: float

    def named(self, having: str = "name") -> set[str]:
        """Answers, each once, also where a backbone as it is stands in several pairs; all, or those with a file or a grade."""
        return {asked.name for asked in self.asked if getattr(asked, having)}

    def commands(self, results: str, of_judge: Sequence[str]) -> list[str]:
        """What makes the answers that are missing and grades what is not graded, as for a shell, in this order. Its
        folder is not the project's: files are named from the root there."""
        folder = shlex.quote(str(Path(results).absolute()) if project() else results)
        lines = list(dict.fromkeys(asked.command for asked in self.asked if asked.stem is None))
        words = [f"questions={self.questions}", *of_judge, *([f"results_dir={results}"] if results != "results" else [])]
        left: list[tuple[Asked, ...]]
        if self.pairwise:
            pairs = zip(self.asked[::2], self.asked[1::2], strict=True)
            left = [pair for pair in pairs if not all(asked.graded for asked in pair)]
        else:
            left = [found] if (found := tuple(asked for asked in self.asked if not asked.graded)) else []
        for group in left:
            files = [f"{folder}/answers/{a.stem or a.name + f'--{self.questions}--*'}.jsonl" for a in group]
            lines.append(f"{called('judge')} {' '.join(files)} {shlex.join(words)}")
        return lines


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of runs, and those of the judge."""
    of_judge = [override for override in overrides if override.startswith(OF_THE_JUDGE)]
    return [override for override in overrides if override not in of_judge], of_judge


def wanted(artefacts: Collection[str], results: Path, overrides: Sequence[str] = ()) -> list[Judging]:
    """What those of these tables that show judges' scores want, where `overrides` leave rows of them. Raises VeraError."""
    chosen = [name for name in names() if name in artefacts]
    return [found for name in chosen if (found := judging(name, results, overrides)) is not None and found.asked]


def judging(name: str, results: Path, overrides: Sequence[str] = ()) -> Judging | None:
    """What one published table wants of the judge; None when it shows no such scores. Raises VeraError."""
    published = load(name)
    column = next((column for column in published.columns.values() if column.judged), None)
    if column is None:
        return None
    of_runs, of_judge = split(overrides)
    values = resolve("judge", [f"questions={column.judged}", *of_judge])
    source = checked(QuestionSource, values["questions"], "questions")
    settings = checked(JudgeSettings, values["judge"], "judge")
    axes, seeds, of_runs = narrowing(of_runs)
    cells = Store(results).by_cell()
    written = {a.name: a for a in find_all(Answers, results / "answers") if a.questions.name == column.judged}
    answered = [a for a in written.values() if not unfit(a, cells, of_runs)]
    judged = [j for j in find_all(Judged, results / "judged") if j.questions.name == column.judged]
    counted = [j for j in judged if j.grading == source.grading and counts(j, {PAPER_JUDGE, settings.model})]
    graded = {a["name"] for j in counted if not left_out(j, written, cells, of_runs) for a in j.answers}
    pairwise = source.grading == "pairwise"
    if pairwise and (odd := [m for m in published.models if sum(row.model == m for row in published.rows) % 2]):
        raise ConfigError(f"published table {name}: its rows are judged two and two, and {', '.join(odd)} has an odd number")
    rows = _chosen(published, column.task, axes, pairwise)
    # A pair stands side by side, LoRA first, as the paper's samples do; a backbone as it is is one side at every seed.
    lines = [
        _asked(name, row, seed, column.task, column.judged, of_runs, answered, graded, str(results))
        for model in published.models
        for seed in seeds
        for row in rows
        if row.model == model and (pairwise or row.method is not None or seed == seeds[0])
    ]
    each = source.count * (1 if pairwise else source.turns)
    if pairwise:
        each *= 2 if settings.orders == "both" else 1
        units = [a.graded and b.graded for a, b in zip(lines[::2], lines[1::2], strict=True)]
    else:
        units = [asked.graded for asked in lines]
    left = each * units.count(False)
    prompt, completion = _tokens(judged, settings)
    dollars = left * (prompt * settings.price.prompt + completion * settings.price.completion) / 1e6
    return Judging(name, column.judged, pairwise, lines, each * len(units), left, dollars)


def table(found: Sequence[Judging]) -> Table:
    rows = [
        [
            one.table,
            one.questions,
            str(len(one.named())),
            str(len(one.named("stem"))),
            str(len(one.named("graded"))),
            f"{one.requests:,}",
            f"{one.left:,}",
            f"{one.dollars:.0f}",
        ]
        for one in found
    ]
    total = [str(sum(int(row[i]) for row in rows)) for i in (2, 3, 4)]
    sums = [f"{sum(one.requests for one in found):,}", f"{sum(one.left for one in found):,}"]
    rows.append(["all", DASH, *total, *sums, f"{sum(one.dollars for one in found):.0f}"])
    notes = [
        "Answers: of every trained run, and of a backbone as it is where the table has such a row (scripts/answer.py).",
        "US$: for the requests left, at judge.price a million tokens; tokens of a request as the judge has recorded them, else "
        "judge.tokens, a guess.",
    ]
    return Table("judging", "Answers and the judge", COLUMNS, rows, notes, [len(rows) - 1])


def _asked(name, row: Row, seed: int, task: str, questions: str, overrides, answered, graded, results: str) -> Asked:
    words = [f"model={row.model}", f"task={task}"] if row.method is None else row.overrides(task)
    command = [*words, *overrides, f"answers={questions}"]
    if row.method is None:
        fitting = [a for a in answered if a.run is None and a.model == row.model]
        begins, command = f"{row.model}--bare", [*command, "answers.checkpoint=none"]
    else:
        run = run_of(name, row, task, [*overrides, f"seed={seed}"])
        key = (run.cell_id, seed, epoch_of(load(name).stat))  # the epoch whose score the table shows
        fitting = [a for a in answered if a.run is not None and (a.run.cell_id, a.run.seed, a.checkpoint) == key]
        begins, command = run.run_name, [*command, f"seed={seed}"]
    if results != "results":
        command.append(f"results_dir={results}")
    stems = sorted((a.name for a in fitting), key=lambda stem: stem in graded)
    return Asked(
        begins, f"{called('answer')} {shlex.join(command)}", stems[-1] if stems else None, bool(stems) and stems[-1] in graded
    )


def _chosen(published: Published, task: str, axes: dict[str, list[str]], pairwise: bool) -> list[Row]:
    """The rows that the axes leave; where answers are seen two and two, those of models of which they leave all."""
    rows = [
        row
        for row in published.rows
        if all(value in axes.get(axis, [value]) for axis, value in zip(AXES, (row.model, task, row.method), strict=True))
    ]
    broken = {row.model for row in published.rows if row not in rows} if pairwise else set()
    return [row for row in rows if row.model not in broken]


def _tokens(judged: Sequence[Judged], settings: JudgeSettings) -> tuple[float, float]:
    """Tokens of a request and of a verdict: the mean of what is recorded, else the guess of conf/judge.yaml."""
    costs = [j.cost for j in judged if j.cost.get("requests") and None not in j.cost.values()]
    if not costs:
        return settings.tokens.prompt, settings.tokens.completion
    requests = sum(cost["requests"] for cost in costs)
    prompt, completion = (sum(cost[key] for cost in costs) / requests for key in ("prompt_tokens", "completion_tokens"))
    return prompt, completion
