"""Judges' scores: joined to the training runs whose answers they grade, and every judgement on a line of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.engine.aggregate import Cells
from experiments.engine.published import judged_metric, judged_pairs, judged_tasks
from experiments.engine.render import DASH, Table
from vera.config import choices, hashed, resolve
from vera.config.memory import composed
from vera.errors import ConfigError, RecordError
from vera.judge.judgement import Answers, Judged, find_all
from vera.judge.questions import own_grading
from vera.records.record import Record

PAPER_JUDGE = "gpt-4"


class Judgements(Mapping[str, list[Record]]):
    """Cells whose records hold judges' scores. bare: scores of backbones without training, by model and metric; notes: who
    judged, and which scores are left out, by metric, as a table shows it."""

    def __init__(self, cells: Cells, scores: dict[tuple, tuple[float, str]], notes: dict[str, list[str]]):
        self._cells, self._scores, self.notes = cells, scores, notes
        self.bare = {key: mean for key, (mean, _) in scores.items() if len(key) == 2}

    def __getitem__(self, cell_id: str) -> list[Record]:
        return [_scored(record, self._scores) for record in self._cells[cell_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def join(cells: Cells, results: Path, judge: str = PAPER_JUDGE, overrides: Sequence[str] = ()) -> Cells:
    """The cells with each run's mean score among its metrics, at the epoch whose weights answered.

    judge: a name, or several with commas between. Only records of these judges count, and of those that are declared to stand
    for one of them (judge.counts_as); with the official questions and wording. overrides: of every run, as for `unfit`. Scores
    of what is not there any more, of another backbone, of another pair or of another way of grading are left out, with a note.
    Raises RecordError when two records grade the same answers: nothing says which one to take.
    """
    scores: dict[tuple, tuple[float, str]] = {}
    notes: dict[str, set[str]] = {}
    names = {name.strip() for name in judge.split(",")}
    written = {record.name: record for record in find_all(Answers, results / "answers")}
    settings: dict[str, dict[str, list[str]]] = {}
    marked: dict[str, dict[str, list[str]]] = {}
    backbones: dict[tuple[str, str], dict[str, list[str]]] = {}
    for record in find_all(Judged, results / "judged"):
        if not counts(record, names):
            continue
        metric = judged_metric(record.questions.name)
        problem = _graded_otherwise(record) or left_out(record, written, cells, overrides)
        if problem:
            marked.setdefault(metric, {}).setdefault(f"left out, {problem}", []).extend(a["name"] for a in record.answers)
            continue
        for answer, score in zip(record.answers, record.scores, strict=True):
            run, own = answer["run"], written.get(answer["name"])
            if answer["model"] is None:  # another program's answers
                continue
            key = (answer["model"], metric) if run is None else (run["cell_id"], run["seed"], answer["checkpoint"], metric)
            if key in scores:
                raise RecordError(
                    f"{results}/judged: {record.name} and {scores[key][1]} both grade {answer['name']}; keep one, or name its "
                    "judge with scripts/tables.py --judge"
                )
            scores[key] = (score["mean"], record.name)
            notes.setdefault(metric, set()).update(_about(record, answer["name"], score["n"]))
            settings.setdefault(metric, {}).setdefault(_how(record, own), []).append(answer["name"])
            for mark in _marks(record.questions.name, own, cells):
                marked.setdefault(metric, {}).setdefault(mark, []).append(answer["name"])
            if own is not None and (weights := own.provenance.get("model_fingerprint")):
                backbones.setdefault((metric, own.model), {}).setdefault(weights, []).append(answer["name"])
    for metric, marks in marked.items():
        notes[metric] = notes.get(metric, set()) | {f"{', '.join(sorted(named))}: {mark}." for mark, named in marks.items()}
    for metric, ways in settings.items():
        if len(ways) > 1:
            notes[metric] |= {f"Not like with like: {', '.join(sorted(named))}: {how}." for how, named in ways.items()}
    for (metric, _), found in backbones.items():
        if len(found) > 1:
            notes[metric] |= {f"Not like with like: {', '.join(sorted(named))}: backbone {it}." for it, named in found.items()}
    return Judgements(cells, scores, {metric: sorted(found) for metric, found in notes.items()}) if notes else cells


def _graded_otherwise(record: Judged) -> str | None:
    """Why a table shows no scores of this way of grading."""
    usual = own_grading(record.questions.name)
    if usual in (None, record.grading):
        return None
    return f"graded {record.grading}, where conf/questions/{record.questions.name}.yaml has {usual}"


def left_out(record: Judged, written: Mapping[str, Answers], cells: Cells, overrides: Sequence[str] = ()) -> str | None:
    """Why a table shows none of a record's scores: one of its answers (a pair stands or falls together) was written anew since,
    was not known for what it is, or is `unfit`; or its two are no pair of the table's. written: what answers/ holds, by name.
    """
    for graded in record.answers:
        answers = written.get(graded["name"])
        if answers is None:
            continue
        if answers.sha256 not in (None, graded["sha256"]):
            return f"graded before {answers.name} was written anew (judge again)"
        if graded["model"] is None:
            return f"graded while the record of {answers.name} was not beside it (judge again)"
        if problem := unfit(answers, cells, overrides):
            return problem
    return _unpaired(record, overrides) if record.grading == "pairwise" else None


def _unpaired(record: Judged, overrides: Sequence[str]) -> str | None:
    """Why two answers' scores are none that a table compares: of its two rows of one model, at one seed and epoch, over
    questions read in every order that was asked for."""
    if any(score["n"] > record.verdicts - len(record.unreadable) - record.alone for score in record.scores):
        return "averaged by an older version, over questions read in one order alone as well (judge again)"
    sides = frozenset(a["run"]["cell_id"] if a["run"] else a["model"] for a in record.answers)
    made = {(a["run"]["seed"], a["checkpoint"]) for a in record.answers if a["run"]}
    try:
        if len(made) <= 1 and sides in judged_pairs(record.questions.name, overrides):
            return None
    except ConfigError as error:
        return str(error)
    return "judged side by side, but no pair of the table's two rows at one seed and epoch"


def unfit(answers: Answers, cells: Cells, overrides: Sequence[str] = ()) -> str | None:
    """Why answers are not those that a table asks for: of other weights than the run's record names, or of a backbone with
    other settings than conf/model (with overrides of every run) has. None also where one side does not say.
    """
    if answers.run is None:
        other = _other_settings(answers, overrides)
        return f"{answers.name} is of other settings than conf/model/{answers.model}.yaml has ({other})" if other else None
    run, used = _run(answers, cells), answers.adapter_sha256
    own = run.weights.get(answers.checkpoint) if run else None
    if own is None or used is None or own == used:
        return None
    return f"{answers.name} is of other weights ({used[:8]}) than its run has now ({own[:8]}); answer and judge again"


def _run(answers: Answers, cells: Cells) -> Record | None:
    """The record of the run that answered, where it is here."""
    return next((r for r in cells.get(answers.run.cell_id, ()) if r.run.seed == answers.run.seed), None)


def _other_settings(answers: Answers, overrides: Sequence[str]) -> str | None:
    """The settings of an untrained backbone that differ from those of its yaml."""
    task = judged_tasks().get(answers.questions.name)
    if answers.backbone is None or task is None or answers.model not in choices("model"):
        return None
    of_model = [text for text in overrides if text.lstrip("+~").startswith(("model.", "scale="))]
    try:
        usual = hashed("model", composed([f"model={answers.model}", f"task={task}", *of_model]).model)
    except ConfigError as error:
        return str(error)
    keys = sorted(key for key in {**usual, **answers.backbone} if usual.get(key) != answers.backbone.get(key))
    return ", ".join(f"{key}={answers.backbone.get(key)}" for key in [key for key in keys if key in usual] or keys)


def counts(record: Judged, judges: set[str]) -> bool:
    """Whether a table takes the scores: of one of these judges or declared to stand for one, official questions and wording."""
    official = record.questions.official and record.judge["prompts"] == "official"
    return official and bool(judges & {record.judge["model"], record.judge.get("counts_as")})


def _how(record: Judged, answers: Answers | None) -> str:
    """How answers were written and graded, where rows of one table may differ in it."""
    judge = {key: record.judge[key] for key in ("model", "temperature")}
    judge |= {"rule": _rule(record), "grading": _grading(record)}
    return f"answers {'not here' if answers is None else _flat(answers.settings.get('decoding', {}))}; judge {_flat(judge)}"


def _marks(questions: str, answers: Answers | None, cells: Cells) -> list[str]:
    """What answers have otherwise than conf/answers has it for these questions, and what they lack."""
    if answers is None:
        return ["how these answers were written is not known, since their record is not here"]
    run, unknown = answers.run and _run(answers, cells), ""
    if answers.run is None and answers.backbone is None:
        unknown = "with which settings this backbone answered"
    elif run and None in (run.weights.get(answers.checkpoint), answers.adapter_sha256):
        unknown = "whether these are answers of the weights that its run has now"
    marks = [f"{unknown} is not known, since no record says it"] * bool(unknown)
    marks += [f"{answers.cut} answers were cut at max_new_tokens"] * bool(answers.cut)
    marks += [f"{answers.shortened} questions lost earlier turns, to fit the model"] * bool(answers.shortened)
    if questions in choices("answers"):
        own = resolve("run", [f"answers={questions}"])["answers"]
        usual, found = {**own["decoding"], "stop": own["chat"].pop("stop")}, answers.settings.get("decoding", {})
        other = {key: found.get(key, "not said") for key in {**usual, **found} if found.get(key) != usual.get(key)}
        texts = [_flat(other)] * bool(other) + ["another prompt (chat)"] * (answers.settings.get("chat") != own["chat"])
        marks += [f"not written as conf/answers/{questions}.yaml has it: {', '.join(texts)}"] * bool(texts)
    return marks


def _flat(values: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(values.items()))


def _about(record: Judged, name: str, read: int) -> list[str]:
    """Who judged, and what is missing."""
    judge = record.judge
    served = ", ".join(map(str, record.provenance.get("served_models") or [])) or "not said"
    stands = judge.get("counts_as")
    lines = [
        f"Judged by {judge['model']} (answering as {served})"
        + (f", declared to stand for {stands}" if stands else "")
        + f"; verdicts read by the rule {_rule(record)!r}, grading: {_grading(record)}, temperature "
        f"{judge['temperature']}."
    ]
    if read < record.verdicts:
        over = f", {record.alone} of them in one order of a question alone; the mean is over the other {read}"
        over = over if record.alone else "; the mean is over these"
        lines.append(f"{name}: {read + record.alone} of {record.verdicts} verdicts could be read{over}.")
    return lines


def _grading(record: Judged) -> str:
    return record.grading if record.grading == "single" else f"{record.grading}, orders: {record.judge['orders']}"


def _rule(record: Judged) -> str:
    return record.judge.get("parse", "of version 1")


def _scored(record: Record, scores: dict[tuple, tuple[float, str]]) -> Record:
    changed = {}
    for epoch in ("best", "last"):
        which = (record.run.cell_id, record.run.seed, epoch)
        mine = {key[-1]: mean for key, (mean, _) in scores.items() if key[:-1] == which}
        for name in (epoch, *(["test"] if epoch == "best" and record.scores.test else [])):
            selected = getattr(record.scores, name)
            changed[name] = selected.model_copy(update={"metrics": {**selected.metrics, **mine}})
    return record.model_copy(update={"scores": record.scores.model_copy(update=changed)})


def table(results: Path) -> Table | None:
    """Every judgement, by answers and judge; None when there is none."""
    rows = []
    for record in find_all(Judged, results / "judged"):
        for answer, score in zip(record.answers, record.scores, strict=True):
            run = answer["run"]
            rows.append(
                [
                    record.questions.name,
                    answer["model"] or answer["name"],
                    DASH if run is None else run["method"],
                    DASH if run is None else str(run["seed"]),
                    record.judge["model"],
                    record.judge.get("counts_as") or DASH,
                    record.judge["prompts"],
                    record.grading,
                    _rule(record),
                    f"{score['mean']:.2f}",
                    *(f"{score['by_turn'][turn]:.2f}" if turn in score["by_turn"] else DASH for turn in ("1", "2")),
                    f"{score['n']}/{record.verdicts}",
                ]
            )
    if not rows:
        return None
    columns = [
        "Questions",
        "Model",
        "Method",
        "Seed",
        "Judge",
        "Stands for",
        "Wording",
        "Grading",
        "Rule",
        "Mean",
        "Turn 1",
        "Turn 2",
        "Read",
    ]
    notes = [
        "Mean score from 1 to 10 over the verdicts that could be read (Read: of how many); of pairs in both orders, over the "
        "questions of which both could. A pair is two lines, one a side.",
        "A method that is a dash: the backbone as it is, or answers that another program wrote.",
        "Grading: one answer at a time (single) or two side by side (pairwise).",
        "Rule: how scores were read out of the verdicts, own or FastChat's (judge.parse).",
        f"Tables 4 and 13 take the scores of {PAPER_JUDGE}, and of judges declared to stand for it (judge.counts_as), with the "
        "official questions, wording and grading (scripts/tables.py --judge for another), of the weights that runs have now.",
    ]
    return Table("judged", "What judges said", columns, sorted(rows), notes)
