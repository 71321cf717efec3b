"""What a score costs on the digits, for every method with records: `make pareto` for another model and task."""

from __future__ import annotations

from pathlib import Path

from experiments.engine import pareto
from experiments.engine.render import Table
from experiments.engine.rows import Asked

ON = ("digits_vit", "digits")


def build(asked: Asked) -> list[Table]:
    return [pareto.table(asked, *ON, "pareto")]


def draw(asked: Asked, folder: Path) -> list[Path]:
    return pareto.draw(asked, *ON, folder / "pareto")
