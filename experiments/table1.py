"""Table 1: parameters and bytes of trained LoRA and VeRA weights, counted on the adapted models, beside the printed ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import yaml

from experiments.accounting import UNITS, counts, prints
from experiments.published import FOLDER, Statistic
from experiments.render import DASH, Table
from vera.config import RunConfig, Strict, checked
from vera.config.memory import composed

MARK = "‡"
METHODS = {"lora": "LoRA", "vera": "VeRA"}
Cell = Literal["lora params", "lora bytes", "vera params", "vera bytes"]


class Printed(Strict):
    params: str
    bytes: str


class Line(Strict):
    """One model at one rank. differs: the cells that no formula of the paper gives; remark: what is known of them."""

    model: str
    rank: int
    lora: Printed
    vera: Printed
    differs: list[Cell] = []
    remark: str | None = None


class Published(Strict):
    table: str
    title: str
    tasks: dict[str, str]
    models: dict[str, str]
    rows: list[Line]


@lru_cache(maxsize=1)
def published() -> Published:
    return checked(Published, yaml.safe_load((FOLDER / "table1.yaml").read_text(encoding="utf-8")), "results/paper/table1.yaml")


def runs() -> Iterator[tuple[str, str, int]]:
    """(model, method, rank) of every line."""
    for line in published().rows:
        for method in METHODS:
            yield line.model, method, line.rank


def key(model: str, method: str, rank: int) -> str:
    """How results/accounting.json calls a cell."""
    return f"model={model} method={method} method.rank={rank}"


def run(model: str, method: str, rank: int) -> RunConfig:
    """A run whose counts fill the line; the learning rate is of no interest and set, since no recipe may give one."""
    return composed([f"model={model}", f"task={published().tasks[model]}", f"method={method}", f"method.rank={rank}"])


def units(value: float, like: str) -> str:
    """`value` with one decimal in the unit of a printed figure."""
    unit = like.lstrip("0123456789.")
    return f"{value / UNITS[unit]:,.1f}{unit}"


def build(cells: Any = None, overrides: Sequence[str] = (), stat: Statistic | None = None) -> list[Table]:
    """Printed and counted, cell by cell; marked where they differ, with the reason."""
    rows, rules, remarks = [], [], []
    lines = published().rows
    for index, line in enumerate(lines):
        row = [published().models[line.model], str(line.rank)]
        for method in METHODS:
            counted = counts().get(key(line.model, method, line.rank))
            printed: Printed = getattr(line, method)
            for kind, field in (("params", "adapter"), ("bytes", "adapter_bytes")):
                text = getattr(printed, kind)
                if counted is None:
                    row += [text, DASH]
                    continue
                differs = prints(text, counted[field]) is None
                row += [text, units(counted[field], text) + MARK * differs]
        rows.append(row)
        if line.remark:
            remarks.append(
                f"{MARK} {published().models[line.model]}, rank {line.rank} ({', '.join(line.differs)}): {line.remark}."
            )
        if index + 1 == len(lines) or lines[index + 1].model != line.model:
            rules.append(index + 1)
    columns = ["Model", "Rank"]
    for label in METHODS.values():
        columns += [f"{label} parameters, paper", "ours", f"{label} bytes, paper", "ours"]
    notes = [
        "ours: counted on the adapted model (two matrices a block), four bytes a value; K and M are thousands and millions, "
        "KB, MB and GB powers of 1024. The paper mostly cuts decimals off.",
        "The caption in the paper names query and key, all else query and value; the counts are the same.",
        *remarks,
    ]
    return [Table("table1", f"Table 1: {published().title}", columns, rows, notes, rules)]
