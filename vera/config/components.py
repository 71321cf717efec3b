"""The choices of conf/ and the classes that they name; nothing else is ever imported."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vera.config.schema import Strict, checked, shown
from vera.errors import ConfigError

CONF_DIR = Path(__file__).resolve().parent.parent.parent / "conf"


def build(settings: dict[str, Any], where: str) -> Any:
    """The object that a group's `_target_` names, from the group's other keys. Raises ConfigError."""
    values = {key: value for key, value in settings.items() if key != "_target_"}
    return checked(component(settings, where), values, where)


def component(settings: dict[str, Any], where: str) -> type[Strict]:
    """The class that a group's `_target_` names: one that a yaml of conf/<where> names too. Raises ConfigError.

    Nothing else is ever imported, wherever the settings come from.
    """
    target = settings.get("_target_")
    allowed = targets(where)
    if not isinstance(target, str) or target not in allowed:
        raise ConfigError(f"{where}._target_: {shown(target)} is not a component; allowed: {', '.join(sorted(allowed))}")
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


@lru_cache(maxsize=16)
def targets(group: str) -> frozenset[str]:
    """The classes that the yamls of one config group name."""
    loaded = [yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8")) for name in choices(group)]
    return frozenset(str(values["_target_"]) for values in loaded if "_target_" in values)


def choices(group: str) -> list[str]:
    """The yamls of one config group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
