"""Table 1: parameters and bytes of trained LoRA and VeRA weights, counted on the adapted models, beside the printed ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from experiments.engine import accounting
from experiments.engine.accounting import UNITS, prints
from experiments.engine.claims import Claim, decides, quantity
from experiments.engine.published import FOLDER, read
from experiments.engine.render import DASH, Table
from experiments.engine.rows import Asked
from experiments.engine.verdicts import Line
from vera.config import RunConfig, Strict
from vera.config.memory import composed

MARK = "‡"
METHODS = {"lora": "LoRA", "vera": "VeRA"}
Cell = Literal["lora params", "lora bytes", "vera params", "vera bytes"]
TAKES = (), "it shows counts of whole models (results/accounting.json)"


class Printed(Strict):
    params: str
    bytes: str


class Sizes(Strict):
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
    rows: list[Sizes]


@lru_cache(maxsize=1)
def published() -> Published:
    return read(Published, "table1", FOLDER)


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


def build(asked: Asked) -> list[Table]:
    """Printed and counted, cell by cell; marked where they differ, with the reason."""
    rows, rules, remarks = [], [], []
    lines = published().rows
    for index, line in enumerate(lines):
        row = [published().models[line.model], str(line.rank)]
        for method in METHODS:
            counted = accounting.counts().get(key(line.model, method, line.rank))
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


@decides("below_rank_1")
def _below_rank_1(claim: Claim, asked: Asked) -> list[Line]:
    ours, met = [], []
    for model, label in published().models.items():
        counted: list[Any] = [accounting.counts().get(key(model, method, 1)) for method in ("vera", "lora")]
        if None in counted:
            return [Line("counts", claim.paper, DASH, DASH, DASH, "not run")]
        vera, lora = (counts["adapter"] for counts in counted)
        ours.append(f"{label} {vera / lora:.3f} ({vera:,} / {lora:,})")
        met.append(vera < lora)
    result = f"fewer parameters with {sum(met)} of {len(met)} models"
    reading = "supported" if all(met) else "not supported"
    return [Line("counts", claim.paper, "; ".join(ours), "counting", result, reading)]


@decides("storage")
def _storage(claim: Claim, asked: Asked) -> list[Line]:
    paper, ours, met = [], [], []
    for line in published().rows:
        sizes: list[Any] = [accounting.counts().get(key(line.model, method, line.rank)) for method in METHODS]
        if None in sizes:
            return [Line("counts", DASH, DASH, DASH, DASH, "not run")]
        lora, vera = (found["adapter_bytes"] for found in sizes)
        printed = quantity(line.vera.bytes) / quantity(line.lora.bytes)
        met.append(float(f"{vera / lora:.1g}") <= float(f"{printed:.1g}"))
        if line.model == "gpt3":
            paper.append(f"r={line.rank} {line.vera.bytes} / {line.lora.bytes}")
            ours.append(f"r={line.rank} {units(vera, line.vera.bytes)} / {units(lora, line.lora.bytes)}")
    result = f"a share no larger than printed, to one digit, in {sum(met)} of {len(met)} rows"
    reading = "supported" if all(met) else "not supported"
    return [Line("counts", "GPT-3: " + "; ".join(paper), "GPT-3: " + "; ".join(ours), "counting", result, reading)]


@decides("table1_roberta", "table1_gpt3")
def _table1(claim: Claim, asked: Asked) -> list[Line]:
    wanted = [line for line in published().rows if (line.model == "gpt3") == (claim.id == "table1_gpt3")]
    total, other = 0, []
    for line in wanted:
        for method, label in METHODS.items():
            counted = accounting.counts().get(key(line.model, method, line.rank))
            if counted is None:
                return [Line("counts", DASH, DASH, DASH, DASH, "not run")]
            printed = getattr(line, method)
            for text, value in ((printed.params, counted["adapter"]), (printed.bytes, counted["adapter_bytes"])):
                total += 1
                if prints(text, value) is None:
                    other.append(f"{label} r={line.rank} {text}: {units(value, text)}")
    ours = f"{total - len(other)} of {total} cells" + (f"; differ: {', '.join(other)}" if other else "")
    reading = "not supported" if other else "supported"
    return [Line("counts", f"{total} printed cells", ours, "counting", f"{len(other)} differ", reading)]
