"""From conf/ and overrides to one validated run.

Nothing here imports torch, so that plans and tables can name runs on a laptop in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vera.config import paths  # noqa: F401 (its resolvers)
from vera.config.components import CONF_DIR, choices
from vera.config.identity import GROUPS, SEED_REFERENCE
from vera.config.schema import RunConfig, checked
from vera.errors import ConfigError, redacted

# For launchers that have to be told how many GPUs a run takes (conf/hydra/launcher).
OmegaConf.register_new_resolver("gpus_here", lambda: int(Path("/proc/driver/nvidia/version").exists()), replace=True)


def recipe(method: str, model: str) -> str:
    """Which yaml of conf/recipe holds a method's settings on a model.

    <method>_<model>; or <model>, which then has those of every method; or <method>_<family>, where the family is the module of
    the model's class. The first of them, which does not exist, where none does.
    """
    path = CONF_DIR / "model" / f"{model}.yaml"
    target = re.search(r"^_target_:.*\.(\w+)\.\w+", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    names = (f"{method}_{model}", model, f"{method}_{target.group(1)}" if target else "")
    return next((name for name in names if (CONF_DIR / "recipe" / f"{name}.yaml").is_file()), names[0])


OmegaConf.register_new_resolver("recipe", recipe, replace=True)

# What Hydra and OmegaConf raise for overrides that fit nowhere; the last ones where they expect a text and find a list.
_COMPOSING = (
    *(HydraException, OmegaConfBaseException, ValueError, RecursionError),
    *(TypeError, AttributeError, AssertionError, LookupError),
)


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `python scripts/train.py OVERRIDES` would make. Raises ConfigError with one line."""
    try:
        return from_hydra(_compose(overrides))
    except _COMPOSING as error:
        raise ConfigError(explain(error)) from None


def resolve(entry: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Another entry of conf/, composed and resolved to plain values. Raises ConfigError with one line."""
    try:
        return OmegaConf.to_container(_compose(overrides, entry), resolve=True, throw_on_missing=True)
    except _COMPOSING as error:
        raise ConfigError(explain(error)) from None


def _compose(overrides: Sequence[str], entry: str = "run") -> DictConfig:
    if not GlobalHydra.instance().is_initialized():
        hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR))
    return hydra.compose(entry, overrides=list(overrides))


def from_hydra(cfg: DictConfig) -> RunConfig:
    """Resolve and check a composed config. Raises ConfigError naming the key and what it may be."""
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    raw = OmegaConf.to_container(cfg, resolve=False)
    refuse_secrets(_leaves(resolved))
    groups = {group: raw[group] for group in GROUPS if isinstance(raw.get(group), dict)}
    follows = [f"{group}.{key}" for group, values in groups.items() for key, value in values.items() if value == SEED_REFERENCE]
    known = {key: resolved[key] for key in RunConfig.model_fields if key in resolved}
    run = checked(RunConfig, {**known, "follows_seed": follows})
    try:
        _ = run.cell_id
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # a number that is not finite, half a surrogate pair, a key that is no word
        raise ConfigError(f"the configuration has no identity: {error}") from None
    _check_recipe(recipe(run.method["name"], run.model["name"]))
    return run


def refuse_secrets(values: Iterable[tuple[str, str]]) -> None:
    """Raises ConfigError for a value (key, text) that holds a token, a key or a password: records and logs keep configs."""
    for key, text in values:
        if redacted(text) != text:
            raise ConfigError(f"{key} holds a secret (a token, a key, or a password in an address); give it in the environment")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    elif isinstance(value, str):
        yield key, value


@lru_cache(maxsize=256)
def _check_recipe(name: str) -> None:
    """A recipe says how long to train in epochs or in steps. (max_steps on the command line is a cap on either.)"""
    path = CONF_DIR / "recipe" / f"{name}.yaml"
    if path.is_file():
        train = OmegaConf.to_container(OmegaConf.load(path), resolve=False).get("train") or {}
        if train.get("epochs") is not None and train.get("max_steps") is not None:
            raise ConfigError(f"conf/recipe/{path.name}: train.epochs and train.max_steps are both given; keep one")


def explain(error: Exception) -> str:
    """One line for what Hydra or OmegaConf says in several."""
    text = str(error)
    if isinstance(error, (TypeError, AttributeError, AssertionError, RecursionError, KeyError)):
        return f"these overrides make no configuration ({' '.join(text.split())[:200] or type(error).__name__})"
    if isinstance(error, ValueError) and "Config group override" in text:
        return "a config group is chosen by name, such as train=default"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        key = unknown.group(1)
        parent, _, leaf = key.rpartition(".")
        if leaf in choices_groups() and not parent:
            return f"{key}: no such choice; allowed: {', '.join(choices(leaf))}"
        return f"{key} is not a key of the configuration; {_allowed(parent)}"
    launcher = re.search(r"(?:'hydra_plugins\.hydra_|Could not find 'hydra/launcher/)(joblib|submitit|ray)", text)
    if launcher:
        extra = {"submitit": "slurm"}.get(launcher.group(1), launcher.group(1))
        return f"hydra/launcher: its package is not installed; pip install -c constraints.txt -e '.[{extra}]'"
    sweep = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if sweep:
        key, _, value = sweep.group(1).partition("=")
        return f"{key}={value} is a sweep over several values: add -m; for one value with a comma write \"{key}='{value}'\""
    missing = re.search(r"(?:In '[^']*': )?Could not find '([^']+)/([^'/]+)'", text)
    if missing:
        group, choice = missing.groups()
        plugins = ", and those of installed plugins such as joblib" if group.startswith("hydra/") else ""
        return f"{group}={choice}: no such choice; allowed: {', '.join(choices(group))}{plugins}"
    interpolation = re.search(r"Interpolation key '([^']+)' not found", text)
    if interpolation:
        key = re.search(r"full_key: (\S+)", text)
        missing_value = f"the recipe of this method and model has no value {interpolation.group(1)}"
        return f"{key.group(1) + ': ' if key else ''}{missing_value}; give the key on the command line"
    if re.search(r"Could not find|mandatory", text):
        return " ".join(text.split())
    return text.strip().splitlines()[0]


def choices_groups() -> list[str]:
    """The config groups that a command line chooses from."""
    return sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())


def _allowed(parent: str) -> str:
    if parent in GROUPS:
        keys = {key for name in choices(parent) for key in OmegaConf.load(CONF_DIR / parent / f"{name}.yaml")}
    elif not parent:
        keys = set(_compose([]))
    else:
        return f"{parent} has no such key"
    return f"{parent or 'top level'} has: {', '.join(sorted(key for key in keys if not key.startswith('_')))}"
