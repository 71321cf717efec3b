"""Counts: what each row trains, counted on the adapted models (scripts/account.py), against what the paper prints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.published import Row, Statistic, load, names
from experiments.render import DASH, Table

COUNTS = Path(__file__).resolve().parent.parent / "results" / "accounting.json"
UNITS = {"": 1, "K": 1e3, "M": 1e6, "KB": 2**10, "MB": 2**20, "GB": 2**30}


def key(row: Row) -> str:
    """How results/accounting.json calls a row: its overrides without the task."""
    return " ".join(override for override in row.overrides("") if not override.startswith("task="))


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


def build(cells: Any = None, overrides: Sequence[str] = (), stat: Statistic | None = None) -> list[Table]:
    """Every '# trainable parameters' cell of the paper's tables of scores."""
    rows, remarks = [], []
    for name in names():
        published = load(name)
        for row in published.rows:
            for printed, kind in ((row.params, "adapter"), (row.bytes, "adapter_bytes")):
                if printed is None or printed == "-" or row.method is None:
                    continue
                counted = counts().get(key(row))
                label = [published.table, published.models[row.model], row.label, printed]
                if counted is None:
                    rows.append([*label, DASH, "not counted"])
                    continue
                how = prints(printed, counted[kind])
                rows.append([*label, f"{counted[kind]:,}", how or ("differs" if row.remark else "DIFFERS")])
                if how is None and row.remark:
                    remarks.append(
                        f"Table {published.table}, {published.models[row.model]}, {row.label} ({printed}): {row.remark}."
                    )
    notes = [
        "ours: counted on the adapted full-size model without weights, the head left out; four bytes a value.",
        "rounded, cut off: how our count becomes the printed one.",
        *dict.fromkeys(remarks),
    ]
    return [
        Table(
            "counts",
            "Trained parameters: every printed count",
            ["Table", "Model", "Method", "Paper", "Ours", "Match"],
            rows,
            notes,
        )
    ]
