"""The E2E NLG challenge: from a restaurant's attributes to a sentence (paper, section 4.2), in the set-up of the LoRA paper."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from vera.config import Source
from vera.errors import ConfigError, DataError
from vera.io import hub, tables
from vera.io.hub import HubData
from vera.io.rows import read_csv, read_text
from vera.models.base import Backbone
from vera.models.decoding import Decoding, check_room, check_search, generate
from vera.seeds import derive
from vera.tasks.base import Data, Final, Made
from vera.tasks.e2e_metrics import CAPTION_METRICS, METRICS, NIST_MODES, NIST_PY, compute, unavailable
from vera.tasks.language import LanguageTask, collate

CHALLENGE, HU2022 = "challenge", "hu2022"
REPOSITORY, REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
FILES = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
HU_FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
HU_SOURCE = "examples/NLG/data/e2e of github.com/microsoft/LoRA"
COLUMNS = ("mr", "ref")
HUB_COLUMNS = ("meaning_representation", "human_reference")
RENAMED = {"eatType": "Type", "familyFriendly": "family friendly", "priceRange": "price"}  # as LoRA's data call them

log = logging.getLogger(__name__)

Row = tuple[str, str]  # meaning representation (hu2022: the context made from it), reference
_SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")


class E2E(LanguageTask):
    """conf/task/e2e.yaml.

    format    challenge: the challenge's own texts. hu2022: those that Hu et al. train on and score against (microsoft/LoRA),
              which are tokenised ("family - friendly"); scores of one format do not compare with scores of the other.
    data_dir  challenge: a folder with trainset.csv, devset.csv and testset_w_refs.csv; None reads the hub. hu2022: one with
              train.txt, valid.txt and test.txt, lines of context||reference; they are not on the hub.
    decoding  how the test set's texts are written, once, after the last epoch; None writes none, and primary is log_likelihood.

    The model reads "name : Blue Spice | Type : pub", the end token, and the reference with a leading space up to another end
    token. Each epoch is scored by the log-likelihood of the development set; the last one also by what the model writes for
    each distinct meaning representation of the test set, in the five metrics of the challenge.
    """

    searched: ClassVar[tuple[str, ...]] = ("task.primary=log_likelihood", "task.decoding=null")

    validation: Literal["dev"] = "dev"  # type: ignore[assignment]  # what it writes is for a test set of its own
    format: Literal["challenge", "hu2022"] = "challenge"
    data_dir: Annotated[str | None, Source] = None
    decoding: Decoding | None

    @model_validator(mode="after")
    def _something_to_score(self):
        if self.decoding is None and self.primary != "log_likelihood":
            raise ValueError(f"decoding=null writes nothing that {self.primary} could be of; give primary=log_likelihood")
        return self

    @property
    def scored(self):
        return super().scored if self.decoding is None else (*METRICS, NIST_PY, *super().scored)

    def check_primary(self):
        super().check_primary()
        if self.primary in CAPTION_METRICS and (reason := unavailable()):
            raise ConfigError(f"task.primary={self.primary} {reason}")

    def _prepare(self, backbone: Backbone) -> Data:
        if self.decoding is not None and (reason := unavailable()):
            log.warning("task=%s: records of this machine lack %s: %s", self.name, ", ".join(CAPTION_METRICS), reason)
        tokenizer = backbone.preprocess
        rows, source, commit = self.read()
        examples, cut = {}, {}
        for split in ("train", "validation"):
            prompts = encode_prompts(tokenizer, self._contexts(meaning for meaning, _ in rows[split]))
            texts = [" " + " ".join(ref.split()) for _, ref in rows[split]]
            targets = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            made = [self.example(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
            examples[split] = [example for example, _ in made]
            cut[split] = [was_cut for _, was_cut in made]
            empty = sum(len(prompt) >= self.max_length for prompt in prompts)  # the target's first token is cut
            if empty == len(made):
                raise DataError(f"no row of the {split} part fits task.max_length={self.max_length}")
            if empty:
                what = f"{empty} of {len(made)} {split} rows have a prompt of task.max_length={self.max_length} tokens or more"
                log.warning("task=%s: %s: nothing of their reference is read", self.name, what)
        groups = by_meaning(rows["test"])
        prompts = encode_prompts(tokenizer, self._contexts(groups))
        if self.decoding is not None:
            check_room(backbone.model, prompts, self.decoding, list(groups))
            check_search(backbone, prompts[0], self.decoding, "task.decoding", " ".join(self.searched))
        return Data(
            train=examples["train"],
            evaluation=examples["validation"],
            lengths=[len(example["input_ids"]) for example in examples["validation"]],
            prompts=prompts,
            references=list(groups.values()),
            collate=partial(collate, pad=tokenizer.pad_token_id, most=self.max_length),
            source=source,
            commit=commit,
            fingerprint=hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16],
            notes={"test_references": len(rows["test"])},
            made={**{split: Made([mr for mr, _ in rows[split]], cut[split]) for split in cut}, "test": Made(list(groups))},
        )

    def hub_data(self):
        if self.synthetic or self.data_dir is not None or self.format == HU2022:
            return None
        return HubData(REPOSITORY, REVISION, None, tuple(FILES), HUB_COLUMNS)

    def source_rows(self) -> tuple[dict[str, list[Row]], str, str | None]:
        """Rows of the splits "train", "validation" and "test", where they come from, and the hub's commit."""
        if self.synthetic:
            return synthetic_rows(self.format), "synthetic", None
        if self.format == HU2022:
            if self.data_dir is None:
                raise DataError(
                    f"task.format={HU2022} reads {', '.join(HU_FILES.values())}, which are not on the hub: give the folder "
                    f"{HU_SOURCE} with task.data_dir=/path/to/e2e, or choose task.format={CHALLENGE}"
                )
            files = {split: Path(self.data_dir) / name for split, name in HU_FILES.items()}
            missing = [path.name for path in files.values() if not path.is_file()]
            if missing:
                raise DataError(
                    f"task.data_dir={self.data_dir} does not hold {', '.join(missing)}, which task.format={HU2022} reads"
                )
            return {split: read_hu2022(path) for split, path in files.items()}, "the texts of Hu et al.", None
        if self.data_dir is not None:
            return self._from_folder(Path(self.data_dir))
        instead = "give a folder with " + ", ".join(FILES.values()) + " with task.data_dir=/path/to/e2e"
        found, commit = hub.load_rows(self.hub_data(), instead)
        return {split: [_checked(where, *pair) for where, pair in rows] for split, rows in found.items()}, REPOSITORY, commit

    def _contexts(self, meanings: Iterable[str]) -> list[str]:
        return list(meanings) if self.format == HU2022 else [context(meaning) for meaning in meanings]

    def reads(self, notes):
        example = "a row's text" if self.format == HU2022 else "name[Zizzi], eatType[pub]"
        shown = "it is" if self.format == HU2022 else json.dumps(context(example))
        return f"{example} is read as {shown}, the tokenizer's eos_token after it; the answer begins with a space"

    @staticmethod
    def _from_folder(folder: Path) -> tuple[dict[str, list[Row]], str, str | None]:
        missing = [name for name in FILES.values() if not (folder / name).is_file()]
        if not missing:
            found = {split: read_csv(folder / name, COLUMNS) for split, name in FILES.items()}
            source, commit = "the challenge's CSV files", None
        else:
            files = {split: tables.split_files(folder, split) for split in FILES}
            if not all(files.values()):
                raise DataError(
                    f"task.data_dir={folder} does not hold {', '.join(missing)}, nor the hub's files of each split "
                    f"({', '.join(tables.FORMATS)}){tables.not_arrow(folder)}"
                )
            found = {split: tables.read_columns(names, HUB_COLUMNS) for split, names in files.items()}
            source, commit = f"{REPOSITORY}, local files", hub.commit_in(str(folder))
        return {split: [_checked(where, *pair) for where, pair in rows] for split, rows in found.items()}, source, commit

    def finish(self, backbone, data, batch_size):
        if self.decoding is None:
            return Final()
        began = time.monotonic()
        texts = [" ".join(text.split()) for text in generate(backbone, list(data.prompts), self.decoding, batch_size)]
        notes: dict[str, Any] = {
            "outputs": len(texts),
            "empty_outputs": texts.count(""),
            "decoding_seconds": round(time.monotonic() - began, 1),
            "nist_modes": NIST_MODES,
        }
        reason = unavailable()
        if reason:
            notes["missing_metrics"] = dict.fromkeys(CAPTION_METRICS, reason)
        metrics = compute(texts, list(data.references))
        return Final(metrics=metrics, files={"txt": "".join(text + "\n" for text in texts)}, notes=notes)


def parse(mr: str) -> list[tuple[str, str]]:
    """Slots and values of a meaning representation, such as "name[Blue Spice], eatType[pub]". Raises ValueError."""
    slots, position = [], 0
    while position < len(mr):
        found = _SLOT.match(mr, position)
        if found is None:
            raise ValueError(f"cannot parse {mr[position:]!r}; expected slot[value], slot[value] ...")
        slots.append((found[1], found[2]))
        position = found.end()
    if not slots:
        raise ValueError("is empty")
    return slots


def context(mr: str) -> str:
    """The text that the model reads for a meaning representation, as in LoRA's data: "name : Zizzi | price : £ 20 - 25"."""
    parts = []
    for slot, value in parse(mr):
        tokens = re.sub(r"(£|(?<=\d)-(?=\d))", r" \1 ", value).split()
        parts.append(f"{RENAMED.get(slot, slot)} : {' '.join(tokens)}")
    return " | ".join(parts)


def encode_prompts(tokenizer, contexts: list[str]) -> list[list[int]]:
    """Token ids of the contexts, each with the end token that closes it."""
    ids = tokenizer(contexts, add_special_tokens=False)["input_ids"]
    return [[*prompt, tokenizer.eos_token_id] for prompt in ids]


def read_hu2022(path: Path) -> list[Row]:
    """The rows of a file of Hu et al.: lines of context||reference. Raises DataError that names file and line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        meaning, bars, reference = (part.strip() for part in line.partition("||"))
        if not (meaning and bars and reference) or "||" in reference:
            raise DataError(f"{path}:{number}: expected context||reference, got {line.strip()[:80]!r}")
        rows.append((meaning, reference))
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def by_meaning(rows: list[Row]) -> dict[str, list[str]]:
    """References by distinct meaning representation, both in the order of the file."""
    groups: dict[str, list[str]] = {}
    for mr, ref in rows:
        groups.setdefault(mr, []).append(" ".join(ref.split()))
    return groups


def _checked(where: str, mr: str, ref: str) -> Row:
    if not isinstance(mr, str) or not isinstance(ref, str):
        raise DataError(f"{where}: meaning representation and reference must be texts")
    try:
        parse(mr)
    except ValueError as error:
        raise DataError(f"{where}: meaning representation {error}") from None
    return mr, ref


def synthetic_rows(form: str) -> dict[str, list[Row]]:
    """Meaning representations with two plain sentences each, in one of the formats: for rehearsals and tests, no meaning."""
    draws = np.random.default_rng(derive(0, "synthetic"))
    values = {
        "name": ["The Mill", "Blue Spice", "Zizzi", "Cotto"],
        "eatType": ["pub", "coffee shop", "restaurant"],
        "priceRange": ["cheap", "£20-25", "more than £30"],
        "familyFriendly": ["yes", "no"],
        "near": ["Café Rouge", "The Bakers"],
    }

    def row() -> list[Row]:
        chosen = {slot: str(draws.choice(options)) for slot, options in values.items()}
        mr = ", ".join(f"{slot}[{value}]" for slot, value in chosen.items())
        first = f"{chosen['name']} is a {chosen['eatType']} near {chosen['near']}."
        pairs = [(mr, first), (mr, f"Near {chosen['near']}, {chosen['name']} is a {chosen['eatType']}.")]
        return pairs if form == CHALLENGE else [(context(mr), re.sub(r"([.,])", r" \1", text)) for mr, text in pairs]

    sizes = {"train": 24, "validation": 8, "test": 6}
    return {split: [pair for _ in range(count // 2) for pair in row()] for split, count in sizes.items()}
