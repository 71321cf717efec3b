"""Instruction tuning on rows of Alpaca's format: instruction, input (may be empty), output (paper, section 4.3)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from vera.config import Source
from vera.errors import ConfigError, DataError
from vera.io import hub, tables
from vera.io.hub import HubData
from vera.models.base import Backbone
from vera.seeds import generator
from vera.tasks.base import Data, Made, twice
from vera.tasks.language import LanguageTask, collate

REPOSITORY = "yahma/alpaca-cleaned"
FILES = ("alpaca_data_cleaned.json", "alpaca_data.json", "alpaca.json")
FIELDS = ("instruction", "input", "output")

Row = tuple[str, str, str]
_PLACEHOLDER = re.compile(r"\{(instruction|input)\}")


class Alpaca(LanguageTask):
    """conf/task/{alpaca,alpaca_10k}.yaml. The loss is on the response and the end token alone.

    data_dir      a JSON file of rows, or a folder with one of FILES; None reads the hub.
    columns       what other data call instruction, input and output: {instruction: question, output: answer}. Where a column
                  called input is one of the others, rows have no input unless one is named.
    rows          how many rows to train on, chosen once and for all seeds; None: all that are not held out.
    held_out      rows kept for evaluation, chosen likewise.
    prompt_input  the prompt of a row with an input, with {instruction} and {input}; prompt: of one without.
    """

    data_dir: Annotated[str | None, Source] = None
    columns: dict[Literal["instruction", "input", "output"], str] = {}
    rows: int | None = Field(ge=1)
    held_out: int = Field(ge=1)
    prompt_input: str
    prompt: str

    @field_validator("prompt_input", "prompt")
    @classmethod
    def _has_fields(cls, value: str, info) -> str:
        for name in ("instruction", "input")[: 2 if info.field_name == "prompt_input" else 1]:
            if f"{{{name}}}" not in value:
                raise ValueError(f"must hold {{{name}}}")
        return value

    @model_validator(mode="after")
    def _columns_of_a_file(self):
        if self.columns and self.data_dir is None and not self.synthetic:
            raise ValueError(f"columns are those of a file: give it with data_dir=; {REPOSITORY} has {', '.join(FIELDS)}")
        return self

    def _prepare(self, backbone: Backbone) -> Data:
        every, source, commit = self.read()
        train, held = self._split(every)
        examples, made = {}, {}
        for split, chosen in (("train", train), ("evaluation", held)):
            examples[split], made[split] = self._tokenise(backbone.preprocess, [every[index] for index in chosen], split)
        content = json.dumps([[every[index] for index in chosen] for chosen in (train, held)], ensure_ascii=False)
        return Data(
            train=examples["train"],
            evaluation=examples["evaluation"],
            lengths=[len(example["input_ids"]) for example in examples["evaluation"]],
            collate=partial(collate, pad=backbone.preprocess.pad_token_id, most=self.max_length),
            source=source,
            commit=commit,
            fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
            made=made,
        )

    def text(self, row: Row) -> str:
        """The prompt of a row."""
        fields = dict(zip(FIELDS, row, strict=True))
        template = self.prompt_input if fields["input"].strip() else self.prompt
        return _PLACEHOLDER.sub(lambda found: fields[found[1]], template)  # one pass: a row may hold "{input}" itself

    def reads(self, notes):
        prompts = f"{json.dumps(self.prompt)}, of a row with an input {json.dumps(self.prompt_input)}"
        return f"{prompts}; after the tokenizer's bos_token, if it has one; with the answer at most {self.max_length} tokens"

    def _split(self, rows: list[Row]) -> tuple[list[int], list[int]]:
        """Row numbers for training and for evaluation, each in the order of the file. Of synthetic rows 8 are held out."""
        held_out, wanted = (8, None) if self.synthetic else (self.held_out, self.rows)
        needed = held_out + (wanted or 1)
        if len(rows) < needed:
            raise DataError(
                f"{len(rows)} rows are fewer than task.rows={self.rows} and task.held_out={self.held_out} need; "
                "lower them or give more data"
            )
        order = torch.randperm(len(rows), generator=generator(0, "few_shot")).tolist()
        stop = len(rows) if wanted is None else needed
        return sorted(order[held_out:stop]), sorted(order[:held_out])

    def _tokenise(self, tokenizer, rows: list[Row], split: str) -> tuple[list[dict[str, list[int]]], Made]:
        """Examples, and what they were made of: without the rows of whose response nothing fits or is there."""
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        encode = partial(tokenizer, add_special_tokens=False, verbose=False)
        prompts = encode([self.text(row) for row in rows])["input_ids"]
        responses = encode([row[2] for row in rows])["input_ids"]
        examples, texts, cut = [], [], []
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            if response and len(begin) + len(prompt) < self.max_length:
                example, shortened = self.example(begin + prompt, [*response, tokenizer.eos_token_id])
                examples.append(example)
                texts.append(row)
                cut.append(shortened)
        if not examples:
            raise DataError(f"no row of the {split} part fits task.max_length={self.max_length}")
        return examples, Made(texts, cut, dropped=len(rows) - len(examples))

    def hub_data(self):
        if self.synthetic or self.data_dir is not None:
            return None
        return HubData(REPOSITORY, "main", None, ("train",), FIELDS, FILES)

    def source_rows(self) -> tuple[list[Row], str, str | None]:
        if self.synthetic:
            return synthetic_rows(), "synthetic", None
        if self.data_dir is not None:
            return read_rows(Path(self.data_dir), self.columns), "Alpaca JSON file", None
        found, commit = hub.load_rows(
            self.hub_data(), "give a JSON file of its rows with task.data_dir=/path/to/alpaca_data_cleaned.json"
        )
        rows = [checked_row(where, dict(zip(FIELDS, values, strict=True))) for where, values in found["train"]]
        return rows, REPOSITORY, commit


def read_rows(path: Path, columns: dict[str, str] | None = None) -> list[Row]:
    """Rows of a JSON or JSON-lines file, of the one in a folder, or of the parquet files in it. columns: what they call FIELDS;
    a column "input" that is another field's is not the input as well. Raises DataError, and ConfigError for a column of two."""
    names = {field: (columns or {}).get(field, field) for field in FIELDS}
    if "input" in (columns or {}).values() and "input" not in (columns or {}):
        del names["input"]
    if again := twice(names.values()):
        raise ConfigError(f"task.columns: {again} is named for two columns; name one for each of {', '.join(names)}")
    if not path.exists():
        raise DataError(f"task.data_dir={path} does not exist")
    files = [path]
    if path.is_dir():
        files = tables.split_files(path, "train", named=FILES)
        if not files:
            raise DataError(
                f"task.data_dir={path} holds neither {', '.join(FILES)} nor the hub's files of the split train "
                f"({', '.join(tables.FORMATS)}){tables.not_arrow(path)}"
            )
    if files[0].suffix.lower() == ".parquet":
        if "input" not in (columns or {}) and "input" not in tables.parquet_columns(files[0]):
            names.pop("input", None)  # which JSON rows need not have either
        found = tables.read_columns(files, list(names.values()))
        return [checked_row(where, dict(zip(names, values, strict=True)), names) for where, values in found]
    objects = [found for file in files for found in tables.read_objects(file, names.values())]
    if "input" in (columns or {}) and not any(names["input"] in row for _, row in objects):
        raise DataError(f"{files[0]}: no row has {names['input']!r}, which columns name as the input")
    return [
        checked_row(where, {field: row[name] for field, name in names.items() if name in row}, names) for where, row in objects
    ]


def checked_row(where: str, row: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})) -> Row:
    """(instruction, input, output) of one row, which must have the first and the last. Raises DataError."""
    for field in FIELDS:
        if field not in row and field != "input":
            raise DataError(f"{where}: no {names.get(field, field)!r}")
        if not isinstance(row.get(field), (str, type(None))):
            raise DataError(f"{where}: {names.get(field, field)!r} is not a text")
    instruction, given, output = (row.get(field) or "" for field in FIELDS)
    if not instruction.strip():
        raise DataError(f"{where}: empty {names.get('instruction', 'instruction')!r}")
    return instruction, given, output


def synthetic_rows() -> list[Row]:
    """Sums, every third with an input: for rehearsals and tests, no meaning."""
    rows = []
    for index in range(32):
        question, answer = f"{index} + {index % 7}", str(index + index % 7)
        rows.append(("Add the numbers.", question, answer) if index % 3 == 0 else (f"What is {question}?", "", answer))
    return rows
