"""A validation set out of the training rows, for data with two splits: the second is then read once, at the end."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from sklearn.model_selection import train_test_split
from torch.utils.data import Subset

from vera.errors import ConfigError, DataError

if TYPE_CHECKING:  # which imports this
    from vera.tasks.base import Data, Task

SEED = 0  # of the split, whatever the run's seed
LISTED = 1000  # row numbers that a record lists


def split(task: Task, data: Data) -> Data:
    """The data as `task.validation` asks for, with a note for the record on how the rows were chosen.

    A fraction of the training rows becomes `evaluation`, with the classes in their proportions, and what was it becomes `test`;
    what the notes count by split is counted anew, under these names.
    Raises ConfigError for data with a test set, DataError when there are too few rows, or such as `check_held_out` refuses.
    """
    if task.validation == "dev":
        said = "the epoch is chosen on the rows that are reported" if data.test is None else "a split of the data's own"
        return replace(data, notes={**data.notes, "validation": said})
    if data.test is not None:
        raise ConfigError(f"task={task.name} has validation rows of its own beside its test set; leave task.validation=dev")
    strata, count = task.strata(data.train), len(data.train)
    try:
        train, chosen = train_test_split(range(count), test_size=task.validation, random_state=SEED, stratify=strata)
    except ValueError as error:  # such as a class with one row
        raise DataError(f"task.validation={task.validation} of {count} training rows: {error}") from None
    train, chosen = sorted(train), sorted(chosen)
    note = {
        "fraction_of_train": task.validation,
        "rule": f"sklearn.model_selection.train_test_split(range({count}), test_size={task.validation}, "
        f"random_state={SEED}, stratify={'labels' if strata else None})",
        "stratified": strata is not None,
        **({"rows": chosen} if len(chosen) <= LISTED else {"rows_sha256": rows_hash(chosen)}),
    }
    evaluation = Subset(data.train, chosen)
    task.check_held_out(evaluation, f"{data.source}: task.validation={task.validation} of {count} training rows")
    made = data.made
    if made:
        whole, held = made["train"], next(each for name, each in made.items() if name != "train")
        none = None if whole.dropped is None else 0
        made = {"train": whole.part(train, whole.dropped), "validation": whole.part(chosen, none), "test": held}
    return replace(
        data,
        train=Subset(data.train, train),
        evaluation=evaluation,
        lengths=None if data.lengths is None else [task.length(example) for example in evaluation],
        test=data.evaluation,
        test_lengths=data.lengths,
        made=made,
        notes={**data.notes, "validation": note},
    )


def rows_hash(rows: list[int]) -> str:
    """SHA-256 of row numbers in ascending order, as a JSON list without spaces."""
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
