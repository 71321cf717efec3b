"""Grading answers: what is to be asked, asking it with several requests at once, and the record of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import statistics
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vera.errors import ConfigError, DataError, JudgeError, RecordError
from vera.io.files import append_line, locked, os_error_as, read_json, read_lines
from vera.judge.endpoint import Endpoint, ItemError, JudgeSettings, Reply
from vera.judge.judgement import SCHEMA, Answers, Judged, digest, find, judged_name, write
from vera.judge.prompts import Prompt, Prompts, own_prompts, read_prompts
from vera.judge.questions import (
    Id,
    Question,
    QuestionSet,
    QuestionSource,
    described,
    load_questions,
    own_grading,
    parse_turns,
)
from vera.judge.sources import Found, fetch, in_folder
from vera.judge.verdicts import read_verdict
from vera.records import interrupt
from vera.records.record import now

IN_A_ROW = 4  # requests without an answer, one after another, after which an endpoint is taken to be out of order
GLANCE = 0.2  # seconds between two looks for a signal


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
    """Answers from a JSONL file (ours or FastChat's model_answer). Raises DataError when it does not fit the questions, and
    RecordError when it is not the file that its record is about."""
    path = Path(path)
    with os_error_as(DataError, f"{path} cannot be read"):
        data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    record = find(Answers, path.with_suffix(".json"))
    if record is not None:
        record.check(path, sha256)
    if record is not None and record.questions.sha256 != questions.sha256:
        raise DataError(f"{path} answers another version of {record.questions.name} than the questions at hand")
    given = parse_turns(Found(data, str(path), "", False), turns)
    missing = [question.id for question in questions.questions if question.id not in given]
    if missing:
        raise DataError(f"{path} has no answer to question {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    return AnswerFile(path.stem, sha256, given, record)


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


def prompt_of(item: Item, prompts: Prompts, source: QuestionSource, questions: QuestionSet) -> Prompt:
    """The wording that asks for one verdict."""
    shown = item.question.id in questions.references and item.question.category in source.reference_categories
    return prompts.choose(source.grading, item.question.category, item.turn, shown)


def messages(item: Item, prompts: Prompts, source: QuestionSource, questions: QuestionSet, answers: list[AnswerFile]):
    """The chat messages that ask for one verdict."""
    values = {f"question_{i}": text for i, text in enumerate(item.question.turns, start=1)}
    values["question"] = item.question.turns[0]
    values |= {f"ref_answer_{i}": text for i, text in enumerate(questions.references.get(item.question.id, ()), start=1)}
    if source.grading == "single":
        turns = answers[0].turns[item.question.id]
        values |= {"answer": turns[0], **{f"answer_{i}": text for i, text in enumerate(turns, start=1)}}
    else:
        values |= {f"answer_{i}": answers[which].turns[item.question.id][0] for i, which in enumerate(item.order, start=1)}
    return prompt_of(item, prompts, source, questions).messages(values)


def find_prompts(source: QuestionSource, choice: str, cache_dir: str | Path) -> Prompts:
    """The wording to use: the one in the folder of the questions, or the official one fetched; ours where that is the choice,
    and for questions that are made up.

    Raises DataError where there is none, before anything is asked, and for choice "official" also when it is not the official
    file.
    """
    if choice == "own" or (source.synthetic and choice == "auto"):
        return own_prompts()
    own = "judge.prompts=own takes this project's wording, whose scores Tables 4 and 13 do not show"
    file = source.files.prompts.get(source.grading)
    if file is None:
        raise ConfigError(f"questions={source.name} has no official wording for {source.grading} grading; {own}")
    found = in_folder(file, source.data_dir) if source.data_dir is not None else None
    if found is None:
        try:
            found = fetch(file, cache_dir)
        except DataError as error:
            where = f"put it into {source.data_dir}" if source.data_dir else "give its folder with questions.data_dir="
            raise DataError(f"the judge's wording is missing: {error}; {where}, or {own}") from None
    if choice == "official" and not found.official:
        raise DataError(f"{found.where} is not the official file of judge prompts; judge.prompts=auto takes it, or {own}")
    return read_prompts(found, source.grading)


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
    unreadable one is asked for `settings.attempts` times and then reported, and so is an item that the endpoint refuses. The
    scores are read from the kept texts each time, so that another `settings.parse` needs no further request.

    Raises JudgeError when the endpoint fails; the same call goes on from there. That failure, a signal
    (vera.records.interrupt), a full disk: whatever ends it, nothing more is asked, and the verdicts that are under way are
    waited for and kept.
    """
    needed = 1 if source.grading == "single" else 2
    if len(paths) != needed:
        raise ConfigError(f"questions={source.name} is graded {source.grading}: give {needed} answer file{'s' * (needed == 2)}")
    if source.grading == "single":
        settings = settings.model_copy(update={"orders": "both"})  # of pairs: it decides nothing here, so no identity
    questions = load_questions(source, cache_dir)
    answers = [read_answers(path, questions, source.turns) for path in paths]
    if len({(answer.name, answer.sha256) for answer in answers}) < len(answers):
        raise ConfigError(f"{paths[0]} and {paths[1]} are the same answers; a pair is of two")
    prompts = find_prompts(source, settings.prompts, cache_dir)
    not_official = ["the questions"] * (not questions.official) + ["the judge's wording"] * (prompts.source != "official")
    not_official += ["the way of grading"] * (source.grading != (own_grading(source.name) or source.grading))
    if not_official and not source.synthetic:
        on_note(f"not official: {' and '.join(not_official)}; Tables 4 and 13 do not show the scores")
    wanted = {item.key: item for item in items(questions, source, settings.orders)}
    public = _public(settings, prompts)
    used = described(source, questions)
    references = digest({str(key): turns for key, turns in sorted(questions.references.items(), key=str)})
    asked = {key: value for key, value in public.items() if key not in READING}
    identity = digest([asked, used.model_dump(), references, source.grading, [answer.sha256 for answer in answers]])
    name = judged_name([answer.name for answer in answers], settings.model, identity)
    folder = Path(results_dir) / "judged"
    verdicts = folder / f"{name}.jsonl"
    path = folder / f"{name}.json"

    def scores(item: Item, line: dict[str, Any]) -> tuple[float, ...] | None:
        """In the order of the answer files, whatever order the judge saw."""
        form = prompt_of(item, prompts, source, questions).form
        found = read_verdict(line["verdict"], line["finish"], form, settings.parse)
        return found and tuple(found[item.order.index(which)] for which in range(len(found)))

    with locked(folder, name, JudgeError(f"another process is judging {name}")):
        started = now()
        lines = _lines(verdicts)
        kept = _read(lines, wanted, scores)
        missing = [item for item in wanted.values() if item.key not in kept]
        if missing:
            failed = {line["item"] for line in lines if line.get("failure")}
            missing.sort(key=lambda item: item.key in failed)  # others first
            endpoint = Endpoint(settings, key)
            desk = Desk(
                settings,
                lambda item: endpoint.ask(messages(item, prompts, source, questions, answers)),
                endpoint.leave,
                scores,
                verdicts,
                lambda done: on_progress(len(kept) + done, len(wanted)),
            )
            desk.ask(missing, failed)
            lines = _lines(verdicts)
            kept = _read(lines, wanted, scores)
            if not _whole(list(wanted.values()), kept):
                raise JudgeError(_nothing(lines, len(wanted), bool(kept), verdicts))
        before = find(Judged, path)
        known = before.answers if before else [answer.public for answer in answers]  # a record may have been beside them then
        graded = [a.public if a.record else said for a, said in zip(answers, known, strict=True)]
        record = _record(identity, public, used, graded, list(wanted.values()), kept, lines, started)
        if before is not None and not missing and before == record.model_copy(update={"provenance": before.provenance}):
            return before, path
        write(path, record)
    return record, path


class Desk:
    """Asks for items, at most `concurrency` at once, and keeps what comes. Only the calling thread writes.

    ask      one item's Reply. Raises ItemError (its own affair) or JudgeError (nobody's turn any more).
    leave    makes those that pause before another try give up.
    scores   what a kept line says, or None.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        ask: Callable[[Item], Reply],
        leave: Callable[[], None],
        scores: Callable[[Item, dict[str, Any]], tuple[float, ...] | None],
        verdicts: Path,
        on_progress: Callable[[int], None],
    ):
        self._settings, self._ask, self._leave, self._scores = settings, ask, leave, scores
        self._verdicts, self._on_progress = verdicts, on_progress
        self._todo: queue.SimpleQueue[tuple[Item, int]] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[tuple[Item, int, Reply | BaseException]] = queue.SimpleQueue()
        self._waiting: deque[tuple[Item, int]] = deque()
        self._unwritten: deque[str] = deque()
        self._under_way = self._done = self._in_a_row = self._new = 0
        self._stopping = False

    def ask(self, missing: list[Item], failed: set[str]) -> None:
        """Every item's verdicts, or its failure, into the file. `failed`: keys of items that had no answer in an earlier call,
        whose failures say nothing about the endpoint. Raises what ended it early, after what was under way has been kept."""
        self._waiting.extend((item, 1) for item in missing)
        for _ in range(min(self._settings.concurrency, len(missing))):
            # Not an executor: at the end of the process Python would wait for its threads, whatever they wait for.
            threading.Thread(target=self._work, daemon=True).start()
        reason: BaseException | None = None
        with interrupt.deferred():
            while self._waiting or self._under_way:
                try:
                    if not self._stopping:
                        interrupt.check()
                        self._give_out()
                    self._take(failed)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and reason is not None:
                        raise  # asked to leave a second time
                    reason, self._stopping = reason or error, True
                    self._waiting.clear()
                    self._leave()
            if self._unwritten:
                with contextlib.suppress(OSError, RecordError):
                    self._write()
        if reason is None:
            return
        if isinstance(reason, JudgeError):
            raise JudgeError(f"{reason}; {self._new} new verdicts are kept, the same command asks for the rest") from None
        if self._unwritten and isinstance(reason, RecordError):
            raise RecordError(f"{reason}; {len(self._unwritten)} verdicts could not be kept") from None
        raise reason

    def _work(self) -> None:
        while True:
            item, attempt = self._todo.get()
            try:
                outcome: Reply | BaseException = self._ask(item)
            except BaseException as error:
                outcome = error
            self._came.put((item, attempt, outcome))

    def _give_out(self) -> None:
        while self._waiting and self._under_way < self._settings.concurrency:
            self._under_way += 1
            self._todo.put(self._waiting.popleft())

    def _take(self, failed: set[str]) -> None:
        try:
            item, attempt, outcome = self._came.get(timeout=GLANCE)
        except queue.Empty:
            return
        self._under_way -= 1
        if isinstance(outcome, ItemError):
            self._keep(_line(item, attempt, failure=str(outcome)))
            self._done += 1
            if not outcome.final and item.key not in failed:
                self._in_a_row += 1
                if self._in_a_row >= max(IN_A_ROW, self._settings.concurrency):
                    raise JudgeError(str(outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            self._in_a_row = 0
            line = _line(item, attempt, outcome)
            line["scores"] = self._scores(item, line)
            self._keep(line)
            self._new += 1
            if line["scores"] is None and attempt < self._settings.attempts and not self._stopping:
                self._waiting.appendleft((item, attempt + 1))
                return
            self._done += 1
        self._on_progress(self._done)

    def _keep(self, line: dict[str, Any]) -> None:
        self._unwritten.append(json.dumps(line, ensure_ascii=False))
        self._write()

    def _write(self) -> None:
        while self._unwritten:
            with os_error_as(RecordError, f"{self._verdicts} cannot be written"):
                append_line(self._verdicts, self._unwritten[0])
            self._unwritten.popleft()


def _line(item: Item, attempt: int, reply: Reply | None = None, failure: str | None = None) -> dict[str, Any]:
    """A verdict as it is kept, or why there is none."""
    about = {
        "item": item.key,
        "question_id": item.question.id,
        "turn": item.turn,
        "order": list(item.order),
        "attempt": attempt,
    }
    said = {
        "scores": None,
        "verdict": reply.text if reply else "",
        "finish": reply.finish if reply else None,
        "model": reply.model if reply else None,
        "prompt_tokens": reply.prompt_tokens if reply else None,
        "completion_tokens": reply.completion_tokens if reply else None,
    }
    return {**about, **said, **({"failure": failure} if failure else {}), "asked": now()}


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, text in enumerate(dict.fromkeys(read_lines(path)), start=1):  # an interruption may have one written twice
        try:
            value = read_json(text)
            good = isinstance(value["item"], str) and isinstance(value["verdict"], str)
            good &= all(value[key] is None or isinstance(value[key], str) for key in ("finish", "model"))
            value["asked"], value["prompt_tokens"], value["completion_tokens"]
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise RecordError(f"{path}, line {number}: not a verdict")
        found.append(value)
    return found


def _read(lines: list[dict[str, Any]], wanted: dict[str, Item], scores: Callable) -> dict[str, tuple[float, ...]]:
    """Scores by item, of the first verdict of each that can be read."""
    kept: dict[str, tuple[float, ...]] = {}
    for line in lines:
        item = wanted.get(line["item"])
        if item is not None and item.key not in kept and not line.get("failure"):
            found = scores(item, line)
            if found is not None:
                kept[item.key] = found
    return kept


def _whole(wanted: list[Item], kept: dict[str, tuple[float, ...]]) -> list[Item]:
    """The items that are in a mean: of each turn of a question all its orders, or none, as judges favour a place."""
    unread = {(item.question.id, item.turn) for item in wanted if item.key not in kept}
    return [item for item in wanted if (item.question.id, item.turn) not in unread]


def _nothing(lines: list[dict[str, Any]], wanted: int, some: bool, verdicts: Path) -> str:
    """Why there is nothing to take a mean of. some: there are verdicts with scores."""
    if some:
        return f"of no question the verdicts in both orders hold scores; they are kept in {verdicts}"
    failures = [line["failure"] for line in lines if line.get("failure")]
    texts = [line["verdict"] for line in lines if not line.get("failure")]
    if failures and not texts:
        return f"{failures[-1]}; so it was for every one of {wanted} verdicts"
    first = " ".join(texts[0].split())[-80:] if texts else ""
    read = f"not one of {wanted} verdicts holds a rating as the prompt asks for it"
    return f"{read} (the first ends {first!r}); they are kept in {verdicts}"


def _record(identity, public, used, answers, wanted, kept, lines, started) -> Judged:
    unread = [item.key for item in wanted if item.key not in kept]
    failures = {line["item"]: line["failure"] for line in lines if line.get("failure")}
    given = [line for line in lines if not line.get("failure")]
    scores = []
    for which in range(len(answers)):
        values = [(item, kept[item.key][which]) for item in _whole(wanted, kept)]
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
        answers=answers,
        scores=scores,
        verdicts=len(wanted),
        unreadable=unread,
        failed={key: failures[key] for key in unread if key in failures},
        cost={
            "requests": len(given),
            "prompt_tokens": _sum(given, "prompt_tokens"),
            "completion_tokens": _sum(given, "completion_tokens"),
        },
        provenance={
            "started": min([started, *(line["asked"] for line in lines)]),
            "finished": now(),
            "served_models": sorted({line["model"] for line in given if line["model"]}),
            "openai": version("openai"),
        },
    )


def _sum(lines: list[dict[str, Any]], key: str) -> int | None:
    """The total over all requests; None when the endpoint does not count."""
    values = [line[key] for line in lines]
    return None if None in values else sum(values)


READING = ("counts_as", "parse")  # what may change without another request


def _public(settings: JudgeSettings, prompts: Prompts) -> dict[str, Any]:
    """What a record shows of the judge; all of it but READING makes it another judge."""
    shown = ("version", "model", "base_url", "temperature", "max_tokens", "orders", *READING)
    values = {key: getattr(settings, key) for key in shown}
    return {**values, "prompts": prompts.source, "prompts_sha256": prompts.sha256}
