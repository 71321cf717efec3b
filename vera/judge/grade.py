"""Grading answers: what is to be asked, asking it with several requests at once, and the record of it."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vera.errors import ConfigError, DataError, JudgeError, RecordError
from vera.io.files import append_line, read_lines
from vera.io.json_text import read_json
from vera.judge.endpoint import Endpoint, JudgeSettings, Reply
from vera.judge.judgement import SCHEMA, Answers, Judged, digest, find, judged_name, write
from vera.judge.prompts import Prompts, own_prompts, parse_pair, parse_rating, read_prompts
from vera.judge.questions import Id, Question, QuestionSet, QuestionSource, described, load_questions, parse_turns
from vera.judge.sources import Found, fetch, in_folder


@dataclass(frozen=True)
class AnswerFile:
    """Answers to every question of a set. record is None for a file that another program wrote."""

    name: str
    sha256: str
    turns: dict[Id, tuple[str, ...]]
    record: Answers | None

    @property
    def public(self) -> dict[str, Any]:
        run = self.record.run if self.record else None
        identity = {key: getattr(run, key) for key in ("model", "task", "method", "seed", "cell_id")} if run else None
        model, checkpoint = (self.record.model, self.record.checkpoint) if self.record else (None, None)
        return {"name": self.name, "sha256": self.sha256, "model": model, "checkpoint": checkpoint, "run": identity}


def read_answers(path: str | Path, questions: QuestionSet, turns: int) -> AnswerFile:
    """Answers from a JSONL file (ours or FastChat's model_answer). Raises DataError when it does not fit the questions."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    record = find(Answers, path.with_suffix(".json"))
    if record is not None and record.questions.sha256 != questions.sha256:
        raise DataError(f"{path} answers another version of {record.questions.name} than the questions at hand")
    given = parse_turns(Found(data, str(path), "", False), turns)
    missing = [question.id for question in questions.questions if question.id not in given]
    if missing:
        raise DataError(f"{path} has no answer to question {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    return AnswerFile(path.stem, hashlib.sha256(data).hexdigest(), given, record)


@dataclass(frozen=True)
class Item:
    """One thing to ask. order: which of two answers stands first; 0 for a single one."""

    question: Question
    turn: int
    order: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.question.id}/{self.turn}/{''.join('ab'[i] for i in self.order)}"


def items(questions: QuestionSet, source: QuestionSource, orders: str) -> list[Item]:
    """Everything to ask: each turn of each question, and for pairs each order.

    Pairs are graded on the first turn: Vicuna Eval has no second one.
    """
    if source.grading == "single":
        return [Item(q, turn, (0,)) for q in questions.questions for turn in range(1, source.turns + 1)]
    if source.turns != 1:
        raise ConfigError(f"questions.grading=pairwise is for one turn, {source.name} has {source.turns}")
    both = [(0, 1), (1, 0)] if orders == "both" else [(0, 1)]
    return [Item(q, 1, order) for q in questions.questions for order in both]


def messages(item: Item, prompts: Prompts, source: QuestionSource, questions: QuestionSet, answers: list[AnswerFile]):
    """The chat messages that ask for one verdict."""
    reference = questions.references.get(item.question.id)
    shown = reference is not None and item.question.category in source.reference_categories
    prompt = prompts.choose(source.grading, item.question.category, item.turn, shown)
    values = {f"question_{i}": text for i, text in enumerate(item.question.turns, start=1)}
    values["question"] = item.question.turns[0]
    values |= {f"ref_answer_{i}": text for i, text in enumerate(reference or (), start=1)}
    if source.grading == "single":
        turns = answers[0].turns[item.question.id]
        values |= {"answer": turns[0], **{f"answer_{i}": text for i, text in enumerate(turns, start=1)}}
    else:
        values |= {f"answer_{i}": answers[which].turns[item.question.id][0] for i, which in enumerate(item.order, start=1)}
    return prompt.messages(values)


def find_prompts(source: QuestionSource, choice: str, cache_dir: str | Path) -> tuple[Prompts, str | None]:
    """The wording to use, and why it is not the official one where "auto" falls back to ours. Raises DataError."""
    if choice == "own" or (source.synthetic and choice == "auto"):
        return own_prompts(), None
    file = source.files.prompts.get(source.grading)
    if file is None:
        raise ConfigError(
            f"questions={source.name} has no official wording for {source.grading} grading; set judge.prompts=own"
        )
    found = in_folder(file, source.data_dir) if source.data_dir is not None else None
    if found is None:
        try:
            found = fetch(file, cache_dir)
        except DataError as error:
            if choice == "official":
                raise
            return own_prompts(), f"our own judge wording is used: {error}"
    return read_prompts(found, source.grading), None


def judge(
    paths: list[str | Path],
    source: QuestionSource,
    settings: JudgeSettings,
    key: str,
    results_dir: str | Path,
    cache_dir: str | Path,
    on_note: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Judged, Path]:
    """Grade one answer file, or two side by side, and return the record and its path.

    A verdict is kept as soon as it is there, in <record>.jsonl, and never asked for again once it has been read; an
    unreadable one is asked for `settings.attempts` times and then reported. Raises JudgeError when the endpoint fails;
    the same call goes on from there.
    """
    needed = 1 if source.grading == "single" else 2
    if len(paths) != needed:
        raise ConfigError(f"questions={source.name} is graded {source.grading}: give {needed} answer file{'s' * (needed == 2)}")
    questions = load_questions(source, cache_dir)
    answers = [read_answers(path, questions, source.turns) for path in paths]
    prompts, note = find_prompts(source, settings.prompts, cache_dir)
    if note:
        on_note(note)
    wanted = items(questions, source, settings.orders)
    public = _public(settings, prompts)
    used = described(source, questions)
    references = digest({str(key): turns for key, turns in sorted(questions.references.items(), key=str)})
    identity = digest([public, used.model_dump(), references, source.grading, [answer.sha256 for answer in answers]])
    name = judged_name([answer.name for answer in answers], settings.model, identity)
    folder = Path(results_dir) / "judged"
    verdicts = folder / f"{name}.jsonl"
    path = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise JudgeError(f"another process is judging {name}") from None
    except OSError as error:
        raise RecordError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        started = _now()
        kept = _kept(verdicts)
        if any(item.key not in kept for item in wanted):
            endpoint = Endpoint(settings, key)
            _ask_all(
                [item for item in wanted if item.key not in kept],
                lambda item: endpoint.ask(messages(item, prompts, source, questions, answers)),
                parse_rating if source.grading == "single" else parse_pair,
                settings,
                verdicts,
                lambda done: on_progress(len(kept) + done, len(wanted)),
            )
            kept = _kept(verdicts)
        elif (record := find(Judged, path)) is not None:
            return record, path
        record = _record(identity, public, used, answers, wanted, kept, verdicts, started)
        write(path, record)
    finally:
        lock.release()
    return record, path


def _ask_all(
    missing: list[Item],
    ask: Callable[[Item], Reply],
    parse: Callable[[str], tuple[float, ...] | None],
    settings: JudgeSettings,
    verdicts: Path,
    on_progress: Callable[[int], None],
) -> None:
    """Ask for every item, at most `concurrency` at once; this thread alone writes."""
    done = 0
    failure: JudgeError | None = None
    with ThreadPoolExecutor(max_workers=settings.concurrency) as pool:
        waiting: dict[Future, tuple[Item, int]] = {pool.submit(ask, item): (item, 1) for item in missing}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                item, attempt = waiting.pop(future)
                if future.cancelled():
                    continue
                try:
                    reply = future.result()
                except JudgeError as error:
                    failure = failure or error
                    for other in waiting:
                        other.cancel()
                    continue
                scores = parse(reply.text)
                _keep(verdicts, json.dumps(_line(item, attempt, reply, scores), ensure_ascii=False))
                if scores is None and attempt < settings.attempts and failure is None:
                    waiting[pool.submit(ask, item)] = (item, attempt + 1)
                else:
                    done += 1
                    on_progress(done)
    if failure is not None:
        raise JudgeError(f"{failure}; {done} new verdicts are kept, the same command asks for the rest")


def _keep(path: Path, line: str) -> None:
    try:
        append_line(path, line)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror or error}") from None


def _line(item: Item, attempt: int, reply: Reply, scores: tuple[float, ...] | None) -> dict[str, Any]:
    """A verdict as it is kept. scores are in the order of the answer files, whatever order the judge saw."""
    ordered = None if scores is None else [scores[item.order.index(i)] for i in range(len(scores))]
    return {
        "item": item.key,
        "question_id": item.question.id,
        "turn": item.turn,
        "order": list(item.order),
        "attempt": attempt,
        "scores": ordered,
        "verdict": reply.text,
        "finish": reply.finish,
        "model": reply.model,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "asked": _now(),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            value = read_json(line)
            value["item"], value["scores"]
        except (ValueError, KeyError, TypeError):
            raise RecordError(f"{path}, line {number}: not a verdict") from None
        found.append(value)
    return found


def _kept(path: Path) -> dict[str, list[float]]:
    """Scores by item, of the verdicts that could be read."""
    kept: dict[str, list[float]] = {}
    for line in _lines(path):
        if line["scores"] is not None:
            kept.setdefault(line["item"], line["scores"])
    return kept


def _record(identity, public, used, answers, wanted, kept, verdicts, started) -> Judged:
    if not kept:
        raise JudgeError(f"not one of {len(wanted)} verdicts holds a rating; they are kept in {verdicts}")
    lines = _lines(verdicts)
    scores = []
    for which in range(len(answers)):
        values = [(item, kept[item.key][which]) for item in wanted if item.key in kept]
        groups: dict[str, dict[str, list[float]]] = {"by_turn": defaultdict(list), "by_category": defaultdict(list)}
        for item, value in values:
            groups["by_turn"][str(item.turn)].append(value)
            groups["by_category"][item.question.category].append(value)
        means = {group: {k: statistics.fmean(v) for k, v in sorted(by.items())} for group, by in groups.items()}
        scores.append({"mean": statistics.fmean(value for _, value in values), "n": len(values), **means})
    return Judged(
        schema=SCHEMA,
        status="done",
        identity=identity,
        judge=public,
        questions=used,
        answers=[answer.public for answer in answers],
        scores=scores,
        verdicts=len(wanted),
        unreadable=[item.key for item in wanted if item.key not in kept],
        cost={
            "requests": len(lines),
            "prompt_tokens": _sum(lines, "prompt_tokens"),
            "completion_tokens": _sum(lines, "completion_tokens"),
        },
        provenance={
            "started": min([started, *(line["asked"] for line in lines)]),
            "finished": _now(),
            "served_models": sorted({line["model"] for line in lines if line["model"]}),
            "openai": version("openai"),
        },
    )


def _sum(lines: list[dict[str, Any]], key: str) -> int | None:
    """The total over all requests; None when the endpoint does not count."""
    values = [line[key] for line in lines]
    return None if None in values else sum(values)


def _public(settings: JudgeSettings, prompts: Prompts) -> dict[str, Any]:
    """What a record shows of the judge, and what makes it another judge."""
    shown = ("version", "model", "base_url", "temperature", "max_tokens", "orders")
    values = {key: getattr(settings, key) for key in shown}
    return {**values, "prompts": prompts.source, "prompts_sha256": prompts.sha256}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
