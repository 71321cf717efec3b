"""What can be rendered, by name: every published table of scores, and every module of experiments/artefacts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from experiments import ARTEFACTS
from experiments.engine import published
from experiments.engine.comparison import compare
from experiments.engine.render import Table


@dataclass(frozen=True)
class Artefact:
    """build(cells, overrides, stat) -> tables; draw(cells, folder, overrides) -> files, or None where there is no picture."""

    build: Callable[..., list[Table]]
    draw: Callable[..., list] | None = None


def _modules() -> list[str]:
    return [path.stem for path in ARTEFACTS.glob("[!_]*.py")]


def names() -> list[str]:
    """tableN for results/paper/tableN.yaml, and the name of each module in experiments/artefacts."""
    return sorted({*published.names(), *_modules()})


def artefact(name: str) -> Artefact:
    """One of `names()`; imports its module and no other. A module without `build` adds claims to a published table."""
    module = importlib.import_module(f"experiments.artefacts.{name}") if name in _modules() else None
    return Artefact(getattr(module, "build", partial(compare, name)), getattr(module, "draw", None))


def load_all() -> None:
    """Import every artefact, so that each claim knows what decides it."""
    for name in _modules():
        importlib.import_module(f"experiments.artefacts.{name}")
