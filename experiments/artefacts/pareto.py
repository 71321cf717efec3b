"""What a score costs on the digits, for every method with records: `make pareto` for another model and task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiments.engine import pareto
from experiments.engine.render import DASH, Table
from experiments.engine.rows import Asked

ON = ("digits_vit", "digits")


def build(asked: Asked) -> list[Table]:
    made = pareto.table(asked, *ON, "pareto")
    return [replace(made, rows=made.rows or [[DASH] * len(made.columns)])]


def draw(asked: Asked, folder: Path) -> list[Path]:
    return pareto.draw(asked, *ON, folder / "pareto")
