"""A trained model's answers to a set of questions, turn by turn, kept question by question."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from vera.config import RunConfig, Strict, build, choice, component, hashed
from vera.errors import Claimed, ConfigError, RecordError
from vera.io.files import append_line, locked, os_error_as, read_json, read_lines
from vera.judge.judgement import SCHEMA, Answers, answers_name, digest, find, write
from vera.judge.questions import Question, QuestionSet, QuestionSource, described, load_questions
from vera.methods.base import Method
from vera.models.base import Backbone, Model, positions
from vera.models.decoding import Decoding, Draws, check_search, generate_ids, text_of
from vera.records.kept import Checkpoint, check_backbone, kept
from vera.records.record import Finite, Record, Run, now
from vera.records.sources import configured
from vera.records.store import Store
from vera.run import code
from vera.seeds import generator
from vera.train.numerics import make_accelerator, precision_of
from vera.train.processes import launched

log = logging.getLogger(__name__)


class Chat(Strict):
    """conf/chat: how a conversation becomes a prompt.

    first, next  the text around the first and each later message, up to where the answer begins; {message} is the message.
    close        whether the model's end token follows each finished answer.
    stop         texts that end an answer, beside the end token: the model starts to speak for the user.
    """

    first: str
    next: str
    close: bool
    stop: list[str]

    @field_validator("first", "next")
    @classmethod
    def _has_message(cls, value: str) -> str:
        if value.count("{message}") != 1:
            raise ValueError("must hold {message} once")
        return value

    def prompt(self, tokenizer, turns: tuple[str, ...], answers: list[str]) -> list[int]:
        """Token ids of the conversation up to where the next answer begins. `turns` has one more than `answers` at least."""
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        for index, message in enumerate(turns[: len(answers) + 1]):
            text = (self.next if index else self.first).replace("{message}", message)
            ids += tokenizer.encode(text, add_special_tokens=False)
            if index < len(answers):
                ids += tokenizer.encode(answers[index], add_special_tokens=False)
                ids += [tokenizer.eos_token_id] * self.close
        return ids


OTHERWISE = "otherwise"
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Sampling(Decoding):
    """How answers are written: Decoding, and what is drawn. All of it goes into the answers' record and identity.

    temperature  one for all questions, or by category (`otherwise`: any other); 0 takes the likeliest token.
    top_k        the draw is among so many likeliest tokens; 0: among all.
    seed         of the draws; each turn of each question has a stream of its own.
    """

    temperature: Temperature | dict[str, Temperature]
    top_k: int = Field(ge=0)
    seed: int = Field(ge=0, lt=2**31)

    @model_validator(mode="after")
    def _drawn(self):
        if self.stop:
            raise ValueError("the texts that end an answer are the chat's: answers.chat.stop")
        warm = max(self.temperature.values(), default=0) if isinstance(self.temperature, dict) else self.temperature
        if warm > 0 and self.beams > 1:
            raise ValueError("several beams are searched, not drawn from: set temperature to 0, or beams to 1")
        if warm > 0 and self.search != "transformers":
            raise ValueError(f"search={self.search} draws nothing: set temperature to 0, or search to transformers")
        return self

    def of(self, category: str) -> float:
        """The temperature of a question. Raises ConfigError for a category that has none."""
        if not isinstance(self.temperature, dict):
            return self.temperature
        found = self.temperature.get(category, self.temperature.get(OTHERWISE))
        if found is None:
            raise ConfigError(f"answers.decoding.temperature has none for category {category!r}; add it or `{OTHERWISE}`")
        return found

    def generator(self, question: Question, turn: int) -> torch.Generator:
        """The stream of one turn (from 1) of one question."""
        index = int.from_bytes(hashlib.sha256(f"{question.id}/{turn}".encode()).digest()[:6], "big")
        return generator(self.seed, "answers", index)


class AnswerSettings(Strict):
    """conf/answers. checkpoint: which of a run's kept weights answer; none: the backbone as it is."""

    version: int = Field(ge=1)
    questions: QuestionSource
    chat: Chat
    decoding: Sampling
    checkpoint: Literal["last", "best", "none"]
    batch_size: int = Field(ge=1)

    @property
    def public(self) -> dict[str, Any]:
        """What decides the answers beside model and questions."""
        decoding = {**self.decoding.model_dump(exclude_defaults=True), "stop": self.chat.stop}
        return {"version": self.version, "chat": self.chat.model_dump(exclude={"stop"}), "decoding": decoding}


def answer(
    run: RunConfig, settings: AnswerSettings, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Answers, Path, bool]:
    """The record of a run's answers, the path of the answers, and whether anything was computed.

    Answers are appended to results_dir/answers/<name>.jsonl batch by batch; an interrupted call goes on from there, and the
    record is written when all are there. Raises VeraError.
    """
    if launched() > 1:
        raise ConfigError("answers are written by one process; start scripts/answer.py without accelerate launch")
    if component(run.model, "model").modality != "generation":
        raise ConfigError(f"model={run.model['name']} does not write text, so it cannot answer questions")
    questions = load_questions(settings.questions, run.cache_dir)
    trained = None if settings.checkpoint == "none" else _trained(run)
    folder, weights = kept(trained, run.work_dir, settings.checkpoint) if trained else (None, None)
    used = described(settings.questions, questions)
    about = _bare(run) if trained is None else {"cell_id": trained.run.cell_id, "seed": trained.run.seed}
    loaded = None
    if trained is None and run.model.get("path") is not None:  # a path is no name: weights of a folder by what they are
        loaded = _load(run, None, None)
        about = {**about, "fingerprint": loaded[0].fingerprint, **configured(loaded[0].notes)}
    identity = digest([about, weights, used.model_dump(), settings.public])
    stem = f"{answers_name(run.model['name'], trained.run if trained else None)}--{used.name}--{identity[:8]}"
    path = Path(run.results_dir) / "answers" / f"{stem}.jsonl"
    with locked(path.parent, path.stem, Claimed(f"another process is writing {path}")):
        found = find(Answers, path.with_suffix(".json"))
        if found is not None:
            found.check(path, _hash(path))
            return found, path, False
        missing = _missing(path, questions)
        if missing:
            _warn_of_prompt(run, settings.chat, trained)
            backbone, method = loaded or _load(run, trained, folder)
            _write(run, settings, backbone, method, questions, missing, path, on_progress)
        record = _record(run, settings, identity, trained, weights, questions, used, path)
        write(path.with_suffix(".json"), record)
    return record, path, True


def _bare(run: RunConfig) -> dict[str, Any]:
    """What decides an untrained backbone's answers."""
    asked = run.train.precision
    return {**hashed("model", run.model), **({} if asked == "auto" else {"precision": asked})}


def _warn_of_prompt(run: RunConfig, chat: Chat, trained: Record | None) -> None:
    """Where a run answers in Alpaca's prompt, which nobody has to choose, and was trained in another."""
    prompt = run.task.get("prompt")
    usual = chat.first == choice("chat", "alpaca")["first"]
    if trained is not None and usual and prompt is not None and prompt.replace("{instruction}", "{message}") != chat.first:
        log.warning(
            "%s was trained in a prompt of its own (task.prompt) and answers in Alpaca's: give answers.chat.first and "
            "answers.chat.next, or a conf/chat of it with chat@answers.chat=",
            run.run_name,
        )


def load_trained(run: RunConfig, checkpoint: Checkpoint = "last") -> tuple[Backbone, Method | None]:
    """A finished run's backbone with its trained weights on it. Raises VeraError when the run or its weights are not here."""
    trained = _trained(run)
    return _load(run, trained, kept(trained, run.work_dir, checkpoint)[0])


def _trained(run: RunConfig) -> Record:
    record = Store(run.results_dir).find(run.run_name)
    if record is None:
        raise RecordError(f"{run.results_dir} has no record of {run.run_name}; train it first (scripts/train.py, same keys)")
    return record


def _hash(path: Path) -> str:
    """SHA-256, in hex, of a file of answers. Raises RecordError when it cannot be read."""
    with os_error_as(RecordError, f"{path} cannot be read"):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _missing(path: Path, questions: QuestionSet) -> list[Question]:
    done = {line["question_id"] for line in _lines(path)}
    return [question for question in questions.questions if question.id not in done]


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            value = read_json(line)
            value["question_id"], value["choices"][0]["turns"], value["cut"], value["shortened"]
            value |= Made.model_validate({key: value[key] for key in Made.model_fields if key in value}).model_dump()
        except (ValueError, LookupError, TypeError):
            raise RecordError(f"{path}, line {number}: not an answer") from None
        found.append(value)
    return found


def _load(run: RunConfig, trained: Record | None, folder: Path | None) -> tuple[Backbone, Method | None]:
    """The backbone, with the run's trained weights on it unless it is to answer as it is."""
    model_config: Model = build(run.model, "model")
    backbone = model_config.load(0, Path(run.cache_dir))
    if trained is None:
        return backbone, None
    check_backbone(trained, backbone.fingerprint, backbone.notes)
    method: Method = build(run.method, "method")
    method.load(backbone, model_config, folder)
    return backbone, method


def _write(run, settings, backbone, method, questions, missing, path, on_progress) -> None:
    """Answer what is missing, a batch at a time, every turn of it, and say in each line how it was made."""
    accelerator = make_accelerator(run.device, run.train.precision)
    backbone.model.to(accelerator.device).eval()
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else "cpu"
    precision = precision_of(accelerator, backbone.model)
    prompt = settings.chat.prompt(backbone.preprocess, missing[0].turns, [])
    check_search(backbone, prompt, settings.decoding, "answers.decoding", "answers.batch_size=1", settings.batch_size)
    done = len(questions.questions) - len(missing)
    on_progress(done, len(questions.questions))
    merged = contextlib.nullcontext() if method is None else method.merged(backbone)
    with merged, torch.inference_mode(), accelerator.autocast():
        for start in range(0, len(missing), settings.batch_size):
            batch = missing[start : start + settings.batch_size]
            asked, began = now(), time.monotonic()
            lines = answer_batch(backbone, settings, batch)
            seconds = (time.monotonic() - began) / len(batch)
            made = Made(asked=asked, seconds=seconds, device=device, precision=precision, fingerprint=backbone.fingerprint)
            for line in lines:
                with os_error_as(RecordError, f"{path} cannot be written"):
                    append_line(path, json.dumps({**line, **made.model_dump()}, ensure_ascii=False))
            done += len(batch)
            on_progress(done, len(questions.questions))


class Made(Strict):
    """How one line was made, since several calls may write a file: when it was asked for, its share of its batch's seconds,
    where, and with which backbone. An older version said nothing of it."""

    asked: str | None = None
    seconds: Finite | None = None
    device: str | None = None
    precision: str | None = None
    fingerprint: str | None = None


def answer_batch(backbone: Backbone, settings: AnswerSettings, batch: list[Question]) -> list[dict[str, Any]]:
    """One line a question in FastChat's format: choices[0].turns; beside it its temperature and, by turn, `tokens` written,
    `cut` at max_new_tokens, and `shortened`: prompt tokens dropped from the left, so that prompt and answer fit the model."""
    tokenizer, chat = backbone.preprocess, settings.chat
    decoding = settings.decoding.model_copy(update={"stop": chat.stop})
    limit = positions(backbone.model)
    room = None if limit is None else limit - decoding.max_new_tokens
    if room is not None and room < 1:
        raise ConfigError(
            f"answers.decoding.max_new_tokens={decoding.max_new_tokens} leaves no prompt; this model reads {limit}"
        )
    temperatures = [decoding.of(q.category) for q in batch]
    lines: list[dict[str, Any]] = [
        {"question_id": q.id, "category": q.category, "temperature": temperature, "tokens": [], "cut": [], "shortened": []}
        for q, temperature in zip(batch, temperatures, strict=True)
    ]
    texts: list[list[str]] = [[] for _ in batch]
    for turn in range(1, settings.questions.turns + 1):

        def draws(rows: list[int], turn: int = turn) -> Draws:
            streams = [decoding.generator(batch[row], turn) for row in rows]
            return Draws([temperatures[row] for row in rows], streams, decoding.top_k)

        prompts = [chat.prompt(tokenizer, q.turns, given) for q, given in zip(batch, texts, strict=True)]
        asked = prompts if room is None else [_shortened(prompt, room, tokenizer.bos_token_id) for prompt in prompts]
        written = generate_ids(backbone, asked, decoding, settings.batch_size, draws if any(temperatures) else None)
        for line, given, prompt, left, ids in zip(lines, texts, prompts, asked, written, strict=True):
            text = text_of(backbone, ids, chat.stop)
            given.append(text.strip())
            line["tokens"].append(len(ids))
            line["cut"].append(len(ids) >= decoding.max_new_tokens and text == text_of(backbone, ids, []))
            line["shortened"].append(len(prompt) - len(left))
    return [{**line, "choices": [{"index": 0, "turns": given}]} for line, given in zip(lines, texts, strict=True)]


def _shortened(prompt: list[int], room: int, begin: int | None) -> list[int]:
    """The last `room` tokens of a prompt, after its begin token."""
    head = 1 if prompt[0] == begin else 0
    return prompt if len(prompt) <= room else prompt[:head] + prompt[len(prompt) - room + head :]


def _record(run, settings, identity, trained, weights, questions, used, path) -> Answers:
    lines = _lines(path)
    if sorted((line["question_id"] for line in lines), key=str) != sorted((q.id for q in questions.questions), key=str):
        raise RecordError(f"{path} has answers twice or to other questions; delete them, or the file")

    def all_of(key: str) -> list[Any] | None:
        """What the lines have under a key; None when one of them does not say."""
        values = [line[key] for line in lines]
        return None if None in values else values

    def each(key: str) -> str | None:
        values = all_of(key)
        return None if values is None else ", ".join(sorted(set(values)))

    started, seconds = all_of("asked"), all_of("seconds")
    return Answers(
        schema=SCHEMA,
        status="done",
        identity=identity,
        model=run.model["name"],
        run=Run(**trained.run.model_dump()) if trained else None,
        checkpoint=None if trained is None else settings.checkpoint,
        adapter_sha256=weights,
        backbone=hashed("model", run.model) if trained is None else None,
        questions=used,
        settings=settings.public,
        sha256=_hash(path),
        cut=sum(sum(line["cut"]) for line in lines),
        shortened=sum(any(line["shortened"]) for line in lines),
        cost={
            "seconds": None if seconds is None else sum(seconds),
            "tokens": sum(sum(line["tokens"]) for line in lines),
            "device": each("device"),
            "precision": each("precision"),
        },
        provenance={
            "started": None if started is None else min(started),
            "finished": now(),
            **code(),
            "model_fingerprint": trained.provenance.model_fingerprint if trained else each("fingerprint"),
        },
    )
