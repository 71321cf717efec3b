"""What can be rendered, by name: every published table of scores, and every module here with `build`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.comparison import compare
from experiments.published import names
from experiments.render import Table


@dataclass(frozen=True)
class Artefact:
    """build(cells, overrides, stat) -> tables; draw(cells, folder, overrides) -> files, or None where there is no picture."""

    build: Callable[..., list[Table]]
    draw: Callable[..., list[Path]] | None = None


def artefacts() -> dict[str, Artefact]:
    """By name: tableN from results/paper/tableN.yaml, and one for each module with `build`, called like the module."""
    found = {name: Artefact(partial(compare, name)) for name in names()}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = importlib.import_module(f"experiments.{path.stem}")
        if hasattr(module, "build"):
            found[path.stem] = Artefact(module.build, getattr(module, "draw", None))
    return dict(sorted(found.items()))
