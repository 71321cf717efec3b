"""What can be rendered, by name: every published table of scores, and every module of experiments/artefacts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from experiments import ARTEFACTS
from experiments.engine import published
from experiments.engine.comparison import compare
from experiments.engine.render import Table
from experiments.engine.rows import Asked, given, tested_note, unlike_notes

EVERY = ("results", "with", "stat")  # options of scripts/tables.py that change what is shown; and judge, where judges score


@dataclass(frozen=True)
class Artefact:
    """build(asked) -> tables; draw(asked, folder) -> files, or None where there is no picture.

    takes: which of these options change what it shows; why: what it is made from instead.
    """

    build: Callable[[Asked], list[Table]]
    draw: Callable[[Asked, Path], list[Path]] | None = None
    takes: Collection[str] = EVERY
    why: str = "it shows no judge's scores"


def _modules() -> list[str]:
    return [path.stem for path in ARTEFACTS.glob("[!_]*.py")]


def names() -> list[str]:
    """tableN for results/paper/tableN.yaml, and the name of each module in experiments/artefacts."""
    return sorted({*published.names(), *_modules()})


def artefact(name: str) -> Artefact:
    """One of `names()`; imports its module and no other. A module without `build` adds claims to a published table."""
    module = importlib.import_module(f"experiments.artefacts.{name}") if name in _modules() else None
    build = getattr(module, "build", partial(compare, name))
    takes, *why = getattr(module, "TAKES", (EVERY,))
    if name in published.names() and any(column.judged for column in published.load(name).columns.values()):
        takes = (*takes, "judge")
    return Artefact(partial(_noting, build), getattr(module, "draw", None), takes, *why)


def _noting(build: Callable[[Asked], list[Table]], asked: Asked) -> list[Table]:
    """The tables, which say so where the records they were made from are not alike."""
    asked = replace(asked, shown={}, said=[])
    tables = build(asked)
    shown = [record for records in asked.shown.values() for record in records]
    notes = [*given(asked), *tested_note(shown), *unlike_notes(shown), *dict.fromkeys(asked.said)]
    for table in tables:
        table.notes = [*table.notes, *(note for note in notes if note not in table.notes)]
    return tables


def load_all() -> None:
    """Import every artefact, so that each claim knows what decides it."""
    for name in _modules():
        importlib.import_module(f"experiments.artefacts.{name}")
