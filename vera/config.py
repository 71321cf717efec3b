"""From conf/ to one validated run: composing, checking, and the identity under which a run is never repeated.

Nothing here imports torch, so that plans and tables can name runs on a laptop in milliseconds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from vera.errors import ConfigError, redacted

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
GROUPS = ("model", "task", "method", "train")

# Keys that change where and how fast a run goes, and keys that describe what others decide (a checkpoint's architecture and the
# size of a data set, for counts and estimates). They stay out of a run's identity.
OPERATIONAL = frozenset(
    {
        "model.data_dir",
        "model.full",
        "model.gradient_checkpointing",
        "model.path",
        "task.cache_dir",
        "task.data_dir",
        "task.facts",
        "task.workers",
        "train.checkpoint_seconds",
        "train.eval_batch_size",
        "train.micro_batch_size",
        "train.micro_batch_tokens",
        "train.save",
    }
)
UNHASHED = frozenset({"tiny", "neutral"})  # of every group, beside these
SEED_REFERENCE = "${seed}"

# For launchers that have to be told how many GPUs a run takes (conf/hydra/launcher).
OmegaConf.register_new_resolver("gpus_here", lambda: int(Path("/proc/driver/nvidia/version").exists()), replace=True)


# A word that becomes part of a file's name: no separator, no leading dot.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=64)]
# A repository on the hub, as opposed to a path or an address.
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$", max_length=128)]


class Strict(BaseModel):
    """A mapping whose every key is declared: an unknown one, or a value of the wrong type or range, is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Component(Strict):
    """What every model, task and method yaml has beside its own keys.

    name     the yaml's file name, which is what records and tables call it.
    version  raised when a default, a metric or the meaning of a key changes; part of a run's identity.
    neutral  keys younger than `version`, each at the value that means "as before": left out of the identity at that value,
             so that a new key leaves old records valid.
    """

    name: Name
    version: int = Field(ge=1)
    neutral: dict[str, Any] = {}


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """The training loop's settings; `conf/train/default.yaml` says what each one is."""

    version: int = Field(ge=1)
    neutral: dict[str, Any] = {}
    epochs: int = Field(ge=1)
    max_steps: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(ge=0)
    head_lr: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    head_weight_decay: float = Field(ge=0)
    decay_biases_and_norms: bool
    betas: tuple[Beta, Beta]
    eps: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "constant"]
    warmup_ratio: float | None = Field(ge=0, le=1)
    warmup_steps: int | None = Field(ge=0)
    clip: float = Field(ge=0)
    precision: Literal["auto", "fp32", "bf16"]
    micro_batch_size: int | None = Field(ge=1)
    micro_batch_tokens: int | None = Field(ge=1)
    eval_batch_size: int = Field(ge=1)
    checkpoint_seconds: float = Field(ge=0)
    save: bool

    @field_validator("warmup_steps")
    @classmethod
    def _one_warmup(cls, steps: int | None, info: ValidationInfo) -> int | None:
        ratio = info.data.get("warmup_ratio")
        if steps is not None and ratio is not None:
            raise PydanticCustomError(
                "two_warmups",
                "a warm-up is given by ratio or by steps; set train.warmup_ratio={ratio} to null",
                {"ratio": ratio},
            )
        return steps


_NAME = TypeAdapter(Name)


class RunConfig(Strict):
    """One run, resolved. `model`, `task` and `method` are the keyword arguments of their `_target_`."""

    model: dict[str, Any]
    task: dict[str, Any]
    method: dict[str, Any]
    train: TrainConfig
    tracker: dict[str, Any]
    seed: int = Field(ge=0, lt=2**31)
    results_dir: str
    work_dir: str
    cache_dir: str
    device: str = Field(pattern=r"^(auto|cpu|cuda)$")
    progress: bool | Literal["auto"]
    claim_timeout: float = Field(ge=1)
    follows_seed: list[str] = []

    @field_validator(*GROUPS[:3])
    @classmethod
    def _has_a_name(cls, group: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        try:
            _NAME.validate_python(group.get("name"))
        except ValidationError:
            raise PydanticCustomError("name", "its name becomes part of a file's name: letters, digits, _ . -") from None
        return group

    @property
    def scientific(self) -> dict[str, Any]:
        """The four groups that decide what a run computes, as plain values."""
        return {**{group: getattr(self, group) for group in GROUPS[:3]}, "train": self.train.model_dump(mode="json")}

    @property
    def cell_id(self) -> str:
        return cell_id(self.scientific, self.follows_seed)

    @property
    def run_name(self) -> str:
        return run_name(self.model["name"], self.task["name"], self.method["name"], self.cell_id, self.seed)


def cell_id(config: dict[str, Any], follows_seed: Sequence[str] = ()) -> str:
    """SHA-256, in hex, of what a run computes: the groups of `config` without seed, paths, device, launcher and tracker.

    Keys in OPERATIONAL and keys at their `neutral` value are left out; leaves named in `follows_seed` count as the word
    `${seed}` instead of a number, so that all seeds of a cell share one id.
    """
    kept: dict[str, Any] = {}
    for group in GROUPS:
        values = dict(config[group])
        if group == "model" and values.get("size") == "full":
            values.pop("tiny", None)  # the rehearsal's stand-in says nothing about the real model
        neutral = values.pop("neutral", None) or {}
        for key, value in values.items():
            dotted = f"{group}.{key}"
            if dotted in OPERATIONAL or (key in neutral and neutral[key] == value):
                continue
            kept[dotted] = SEED_REFERENCE if dotted in follows_seed else _plain(value)
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(model: str, task: str, method: str, cell: str, seed: int) -> str:
    """The stem of a run's files: <model>--<task>--<method>--<cell8>--s<seed>."""
    return f"{model}--{task}--{method}--{cell[:8]}--s{seed}"


def _plain(value: Any) -> Any:
    """1.0 and 1 are one value in a config, and so are tuples and lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


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
    _check_recipe(f"{run.method.get('name')}_{run.model.get('name')}")
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


_Model = TypeVar("_Model", bound=BaseModel)


def checked(schema: type[_Model], values: dict[str, Any], where: str = "") -> _Model:
    """Build a pydantic model; its errors become one line that names key, problem and value."""
    try:
        return schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(schema.model_fields))
            raise ConfigError(f"{key} is not a key; allowed: {allowed}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{key} is missing") from None
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{key}: {message}, got {_shown(first['input'])}{more}") from None
    except TypeError:  # keys that are no words
        raise ConfigError(f"{where or schema.__name__}: its keys must be words") from None


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlong = 40


def _shown(value: Any) -> str:
    """A value in an error: whole when it is short, whatever a stranger's file has nested into it."""
    return _short.repr(value)


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
        raise ConfigError(f"{where}._target_: {_shown(target)} is not a component; allowed: {', '.join(sorted(allowed))}")
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
