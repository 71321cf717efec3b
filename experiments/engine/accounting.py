"""Counts: what each row trains, counted on the adapted models (scripts/account.py), against what the paper prints."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from experiments import RESULTS
from experiments.engine.published import Row

COUNTS = RESULTS / "accounting.json"
UNITS = {"": 1, "K": 1e3, "M": 1e6, "KB": 2**10, "MB": 2**20, "GB": 2**30}


def key(row: Row) -> str:
    """How results/accounting.json calls a row: its overrides without task and training."""
    return " ".join(override for override in row.overrides("") if not override.startswith(("task=", "train.")))


@lru_cache(maxsize=1)
def counts() -> dict[str, dict[str, int]]:
    """results/accounting.json; {} where it does not exist."""
    return json.loads(COUNTS.read_text()) if COUNTS.exists() else {}


def trained(row: Row) -> set[int]:
    """The row's trained parameters outside the head, or nothing when they have not been counted."""
    counted = counts().get(key(row))
    return {counted["adapter"]} if counted else set()


def prints(printed: str, value: float) -> str | None:
    """How `value` becomes the printed count: "rounded", "cut off" (further digits dropped), or None: it does not."""
    match = re.fullmatch(r"([\d.]+)([KMG]?B?)", printed)
    if match is None:
        return None
    number, unit = match.groups()
    decimals = len(number.partition(".")[2])
    scaled = value / UNITS[unit]
    if abs(round(scaled, decimals) - float(number)) < 1e-9 or abs(scaled - float(number)) <= 0.5 * 10**-decimals + 1e-9:
        return "rounded"
    cut = int(scaled * 10**decimals + 1e-9) / 10**decimals
    return "cut off" if abs(cut - float(number)) < 1e-9 else None
