"""Counts: what each row trains, counted on the adapted models (scripts/account.py), against what the paper prints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from experiments import RESULTS
from experiments.engine import published
from experiments.engine.published import NUMBER, Row
from vera.config import RunConfig

COUNTS = RESULTS / "accounting.json"
SAME = ("model.path=", "model.quantisation=", "model.gradient_checkpointing=", "model.dropout=")  # leave every count as it is
COUNTED = ("model.", "model=", "method.", "method=", "scale=")
UNITS = {**published.UNITS["params"], **published.UNITS["bytes"]}


def key(row: Row) -> str:
    """How results/accounting.json calls a row: its overrides without task and training."""
    return " ".join(override for override in row.overrides("") if not override.startswith(("task=", "train.")))


@lru_cache(maxsize=1)
def counts() -> dict[str, dict[str, int]]:
    """results/accounting.json; {} where it does not exist."""
    return json.loads(COUNTS.read_text()) if COUNTS.exists() else {}


def of_cell(run: RunConfig, overrides: Sequence[str]) -> dict[str, int] | None:
    """The counts of a run's model and method, where they are as they were counted; None with other settings of theirs."""
    own = [override for override in overrides if override.startswith(("model.", "method.")) and not override.startswith(SAME)]
    return counts().get(" ".join([f"model={run.model['name']} method={run.method['name']}", *own]))


def trained(row: Row, given: Sequence[str] = ()) -> set[int]:
    """The row's trainable parameters outside the head, or nothing when they have not been counted: with other settings of its
    model or method, which may be among those that --with gives."""
    words = {word.lstrip("+~") for word in given} - {*row.overrides("")}
    other = [word for word in words if word.startswith(COUNTED) and not word.startswith((*SAME, "scale=paper"))]
    counted = None if other else counts().get(key(row))
    return {counted["adapter"]} if counted else set()


def prints(printed: str, value: float) -> str | None:
    """How `value` becomes the printed count: "rounded", "cut off" (further digits dropped), or None: it does not."""
    match = re.fullmatch(rf"({NUMBER})({'|'.join(UNITS)})", printed)
    if match is None:
        return None
    number, unit = match[1].replace(",", ""), match[2]
    decimals = len(number.partition(".")[2])
    scaled = value / UNITS[unit]
    if abs(round(scaled, decimals) - float(number)) < 1e-9 or abs(scaled - float(number)) <= 0.5 * 10**-decimals + 1e-9:
        return "rounded"
    cut = int(scaled * 10**decimals + 1e-9) / 10**decimals
    return "cut off" if abs(cut - float(number)) < 1e-9 else None
