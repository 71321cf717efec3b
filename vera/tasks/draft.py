"""A task's yaml from its data: what is looked at, counted, and written down for a person to check."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf

from vera.config import build
from vera.errors import ConfigError, DataError
from vera.io.files import files_below
from vera.io.rows import check_path, number_of, positions, spelt
from vera.io.tables import class_names, not_arrow, read_objects
from vera.tasks import image_rows
from vera.tasks.alpaca import read_rows
from vera.tasks.base import repeated
from vera.tasks.files import SPLITS, TextFiles, columns_of, label_of, read_table
from vera.tasks.images import Images
from vera.tasks.text import encode

log = logging.getLogger(__name__)

MOST_CLASSES = 1000
FEW_NUMBERS = 20  # so many whole numbers are taken for classes
SHOWN = 300  # characters of a text that no tokenizer cuts
MEASURED = 1000  # training rows whose tokens are counted
END = "...\n"  # of a yaml that is one word
BESIDE = {  # how files beside a training file begin
    "validation": ("validation", "valid", "val", "development", "devel", "dev", "trial"),
    "test": ("testing", "test"),
}

_NUMBER_WITH = re.compile(r"[-+]?[\d. ]*\d(,\d+|(,\d+)?\s*%)")  # a decimal comma, or per cent

OURS = {"cache_dir": "${cache_dir}"}  # a reference of our own in a drafted yaml

MISSING = {"nan", "na", "n/a", "<na>", "none", "null"}  # how pandas and others write a label that is not there

Kind = Literal["classes", "scores"]


def text_files(
    name: str,
    train: Path,
    texts: Sequence[str],
    label: str | None,
    others: dict[str, Path],
    kind: Kind | None = None,
) -> dict[str, Any]:
    """Settings of a TextFiles task. others: files of the other splits, here or beside `train`; those that are not given are
    looked for there.
    kind: what the labels are; None: what they look like.

    Raises ConfigError for columns that were not named, DataError for a file that cannot be read.
    """
    columns = columns_of(train)
    if not texts or label is None:
        raise ConfigError(
            f"name the columns of the text (one, or two with a comma) and of the label; {train} has {', '.join(columns)}"
        )
    others = {split: path if path.exists() else train.parent / path for split, path in others.items()}
    files = {"train": train, **_beside(train, (*texts, label), others), **others}
    files = {split: files[split] for split in SPLITS if split in files}
    if len({path.parent.resolve() for path in files.values()}) > 1:
        raise ConfigError("the files of a task lie in one folder (task.data_dir)")
    for path in files.values():
        check_path(path.parent.resolve() / path.name)
    found = [(where, row[-1]) for where, row in read_table(train, (*texts, label))]
    labels = labels_of(found, label, kind)
    if labels and train.suffix.lower() == ".parquet" and (names := class_names(train, label)):
        labels.sort(key=lambda label: names.index(label) if label in names else -1)  # in the file's order: f1 is of the second
    metrics = (["accuracy", "f1_macro"] if len(labels) > 2 else ["accuracy", "f1"]) if labels else ["pearson", "spearmanr"]
    return {
        "_target_": "vera.tasks.files.TextFiles",
        "name": name,
        "version": 1,
        "files": {split: path.name for split, path in files.items()},
        "data_dir": str(train.parent.resolve()),
        **({} if len(files) > 1 else {"held_out": 0.2}),
        "texts": list(texts),
        "label": label,
        "labels": labels,
        "metrics": metrics,
        "primary": metrics[0],
        "validation": "dev",
        "max_length": 128,
    }


def _beside(train: Path, columns: Sequence[str], given: Collection[str]) -> dict[str, Path]:
    """The files of the splits that are not given: where exactly one beside the training file begins like it, with that split's
    word, or of several the one that is called like it but for the word. What is left out is warned of: several that may be
    meant, and a file that has no labels, as a leaderboard's test set."""
    before, word, after = train.name.lower().partition("train")
    found: dict[str, Path] = {}
    for split, words in BESIDE.items() if word else ():
        if split in given:
            continue
        paths = sorted(train.parent.glob(f"*{train.suffix}"))
        alike = [path for path in paths if path.name.lower() in {before + w + after for w in words}]
        begins = re.compile(f"{re.escape(before)}({'|'.join(words)})(?![^\\W\\d_])")  # and no letter: testimonials is no test
        fitting = [path for path in paths if path in alike or begins.match(path.name.lower())]
        fitting = alike if len(alike) == 1 else fitting
        if len(fitting) > 1:
            names = " and ".join(path.name for path in fitting)
            log.warning("%s may be of the split %s, and none is taken: name one with --%s", names, split, split)
        elif fitting and (problem := _unlabelled(fitting[0], columns)):
            log.warning("%s is not taken for the split %s: %s", fitting[0].name, split, problem)
        elif fitting:
            found[split] = fitting[0]
    return found


def _unlabelled(path: Path, columns: Sequence[str]) -> str | None:
    """What a file lacks of a split's, in words: a column, or every label (-1 is the hub's mark of a missing one, an empty
    cell a competition's)."""
    there = columns_of(path)
    lacking = next((column for column in columns if column not in there), None)
    if lacking is not None:
        return f"it has no column {lacking!r}"
    try:
        missing = all(value in (None, -1, "-1", "") for _, (value,) in read_table(path, columns[-1:]))
    except DataError:  # which is said where the split is read
        return None
    return f"all of column {columns[-1]!r} is -1, null or empty" if missing else None


def labels_of(rows: list[tuple[str, Any]], column: str, kind: Kind | None = None) -> list[str]:
    """The classes in ("file:line", value) of a column, in the order of numbers or of the alphabet; [] for scores.

    Without a `kind` numbers are classes where they are whole and at most FEW_NUMBERS different ones, and scores where one has a
    fraction or where no two rows have the same. Raises DataError for what may be either, for labels that differ in spaces or
    case alone, for -1 beside other classes (the hub's mark for a missing label), for `nan` and, among numbers, other words of a
    missing label, for numbers with a decimal comma or per cent, and for one word among scores, which would make each of them a
    class.
    """
    places: dict[str, str] = {}  # the first of each
    for where, value in rows:
        places.setdefault(label_of(where, column, value), where)
    numbers = {text: number_of(text) for text in places}
    words = [text for text, number in numbers.items() if number is None]
    found = [number for number in numbers.values() if number is not None]
    if kind is None:
        _check_words(places, words, column, beside_numbers=bool(found))
    whole = all(number.is_integer() for number in found)
    scores = kind == "scores" or (kind is None and (len(found) > FEW_NUMBERS or not whole))
    if scores and words and (kind or len(words) == 1):
        raise DataError(f"{places[words[0]]}, column {column!r}: {words[0]!r} among {len(found)} different numbers is no score")
    if kind is None and whole:
        _check_missing(places, numbers, column)
        if scores and not words and len(places) < len(rows):
            raise DataError(
                f"{rows[0][0]} and on, column {column!r}: {len(places)} different whole numbers may be classes or scores; "
                "say which with --classes or --scores"
            )
    if scores and not words:
        return []
    if kind is None and words and all(map(_NUMBER_WITH.fullmatch, words)):
        raise DataError(
            f"{places[words[0]]}, column {column!r}: {words[0]!r} is a number in another spelling; write scores as 4.5, or say "
            "--classes"
        )
    if kind is None:
        _check_alike(places, numbers, column)
    if not 2 <= len(places) <= MOST_CLASSES:
        raise DataError(f"{rows[0][0]} and on, column {column!r}: {len(places)} different values, which are no classes")
    return sorted(places) if words else sorted(places, key=numbers.get)


def _check_words(places: dict[str, str], words: Sequence[str], column: str, beside_numbers: bool) -> None:
    """Raises DataError for a text that stands for a missing label: nan, and those of MISSING among numbers; among words the
    others may be a class."""
    for text in words:
        spelt = text.strip().casefold()
        if spelt == "nan" or (beside_numbers and spelt in MISSING):
            raise DataError(
                f"{places[text]}, column {column!r}: {text!r} stands for a missing label; remove such rows, or say --classes "
                "where it is a class"
            )


def _check_missing(places: dict[str, str], numbers: dict[str, float | None], column: str) -> None:
    """Raises DataError for -1 beside words, or beside 0 and up; -1 and 1 alone are two classes."""
    missing = next((text for text, number in numbers.items() if number == -1), None)
    found = [number for number in numbers.values() if number is not None]
    if missing is not None and (len(found) < len(numbers) or (0 in found and min(found) == -1)):
        raise DataError(
            f"{places[missing]}, column {column!r}: {missing} beside other classes is the hub's mark of a missing label; "
            "remove such rows, or say --classes where it is a class and --scores where it is a score"
        )


def _check_alike(places: dict[str, str], numbers: dict[str, float | None], column: str) -> None:
    """Raises DataError for two labels that differ in spaces, in case, in how one character is composed (NFKC), or in how one
    number is written."""
    seen: dict[str | float, str] = {}
    for text, number in numbers.items():
        other = seen.setdefault(spelt(text) if number is None else number, text)
        if other != text:
            raise DataError(
                f"{places[text]}, column {column!r}: {text!r} and {other!r} ({places[other]}) would be two classes; write them "
                "alike, or say --classes where they are two"
            )


def instructions(name: str, file: Path, columns: dict[str, str]) -> dict[str, Any]:
    """Settings of a task on instructions in JSON lines or parquet: Alpaca's, with its prompts. columns: what the file calls
    them. Raises DataError."""
    check_path(file.resolve())
    if file.suffix.lower() != ".parquet":
        where, first = read_objects(file, columns.values())[0]
        positions(where, [column for field, column in columns.items() if field != "input"], first)  # which rows may lack
    rows = read_rows(file, columns)
    return {
        "defaults": ["alpaca", "_self_"],
        "name": name,
        "data_dir": str(file.resolve()),
        "columns": columns,
        "held_out": min(500, max(1, len(rows) // 10)),
        "facts": {"train_rows": len(rows)},
    }


def images(name: str, folder: Path) -> dict[str, Any]:
    """Settings of a task on folders of images: <split>/<class>/*.jpg. Raises DataError for others, and for splits that do not
    name the same classes."""
    check_path(folder.resolve())
    splits = [split for split in ("train", "validation", "val", "test") if (folder / split).is_dir()]
    if len(splits) > 2 and splits[0] == "train":
        raise DataError(
            f"{folder} holds {', '.join(splits)}, and images are scored on one split beside train: move the others away, and "
            "choose the epoch on a part of train (task.validation=0.1)"
        )
    if len(splits) != 2 or splits[0] != "train":
        raise DataError(
            f"{folder} must hold train/ and one of validation/, val/ or test/, with a folder of images a class in each"
            f"{not_arrow(folder)}"
        )
    if (table := next(files_below(folder, ".parquet"), None)) is not None:
        raise DataError(f"{table} is a parquet file, and a run would look for its images in such; move it away")
    classes, scored = ([*image_rows.class_files(folder / split)] for split in splits)
    if not classes:
        raise DataError(f"{folder / 'train'} holds no folder of images a class{not_arrow(folder)}")
    image_rows.check_names(splits[0], classes, splits[1], scored)
    return {
        "_target_": "vera.tasks.images.Images",
        "name": name,
        "version": 1,
        "repository": None,
        "data_dir": str(folder.resolve()),
        "image_column": "image",
        "label_column": "label",
        "train_splits": splits[:1],
        "eval_splits": splits[1:],
        "classes": len(classes),
        "train_per_class": None,
        "primary": "accuracy",
        "validation": "dev",
        **OURS,
    }


class _Quoting(yaml.SafeDumper):
    """Every text in quotes."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _flow(value: Any, dumper: type[yaml.SafeDumper]) -> str:
    return yaml.dump(value, Dumper=dumper, default_flow_style=True, sort_keys=False, width=10_000)


def as_yaml(settings: dict[str, Any], shipped: dict[str, Any] = OURS) -> str:
    """One key a line, as the yamls of conf/ are written. Raises ConfigError for a text that they would read as a reference,
    unless it is the one that the `shipped` settings have there."""
    lines = []
    for key, value in settings.items():
        if "${" in str(value) and value != shipped.get(key):
            raise ConfigError(f"{key}: {value} has a ${{, which a yaml of conf/ reads as a reference; write it otherwise")
        text = _flow(value, yaml.SafeDumper)
        if OmegaConf.to_container(OmegaConf.create(f"is: {text}")) != {"is": value}:  # which takes more texts for numbers: 1e5
            text = _flow(value, _Quoting)
        comment = "  # f1 is of the second" if key == "labels" and "f1" in settings.get("metrics", ()) else ""
        lines.append(f"{key}: {text.removesuffix(END).strip()}{comment}")
    return "\n".join(lines) + "\n"


def look(settings: dict[str, Any], tokenizer: Any = None, shown: int = 3) -> list[str]:
    """What a TextFiles task reads: rows a split, labels, and the first rows as a tokenizer encodes them; of folders of images
    how many each class has in a split. Raises DataError."""
    task = build(settings, "task")
    if isinstance(task, Images):
        lines = []
        for split in task.splits:
            counted = {name: len(files) for name, files in image_rows.class_files(Path(settings["data_dir"]) / split).items()}
            said = ", ".join(f"{name} {count}" for name, count in counted.items())
            lines.append(f"{split}: {sum(counted.values())} images; {said}")
        return lines
    if not isinstance(task, TextFiles):
        return []
    rows, _, _ = task.source_rows()
    lines = []
    for split, found in rows.items():
        names = task.class_names
        counted = Counter(names[int(label)] for _, label in found) if names else Counter()
        said = ", ".join(f"{label} {counted[label]}" for label in names or ()) or "scores"
        lines.append(f"{split}: {len(found)} rows; {said}")
    if "f1" in task.metrics and task.class_names:
        lines.append(f"f1 is of {task.class_names[1]!r}, the second of `labels`: change their order in the yaml for the other")
    read = []
    if tokenizer is not None:
        encoded, cut = encode(tokenizer, [texts for texts, _ in rows["train"][:MEASURED]], task.max_length)
        if any(cut):
            lines.append(
                f"{sum(cut)} of the first {len(cut)} train rows have more than max_length={task.max_length} tokens: cut"
            )
        read = encoded["input_ids"]
    also = repeated({split: [texts for texts, _ in found] for split, found in rows.items()})
    lines += [f"{count} of the {split} rows have the texts of a training row" for split, count in also.items()]
    for row, (texts, label) in enumerate(rows["train"][:shown]):
        words = tokenizer.convert_ids_to_tokens(read[row]) if read else [text[:SHOWN] for text in texts]
        lines.append(f"{' '.join(words)} -> {label}" + (f" ({task.class_names[int(label)]})" if task.class_names else ""))
    return lines
