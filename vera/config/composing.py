"""From conf/ and overrides to one validated run.

Nothing here imports torch, so that plans and tables can name runs on a laptop in milliseconds.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vera.config.components import (
    CONF_DIR,
    check_modality,
    choices,
    conf_folders,
    fields,
    group_marks,
    malformed,
    normalised,
    own_target,
    own_values,
    recipe,
    whole,
)
from vera.config.identity import GROUPS, hashed
from vera.config.marks import marks, table
from vera.config.paths import beside_results, local_copy
from vera.config.schema import RunConfig, checked
from vera.errors import ConfigError, redacted
from vera.io.files import files_below
from vera.project import called

# For launchers that have to be told how many GPUs a run takes (conf/hydra/launcher).
OmegaConf.register_new_resolver("gpus_here", lambda: int(Path("/proc/driver/nvidia/version").exists()), replace=True)
OmegaConf.register_new_resolver("recipe", recipe, replace=True)
OmegaConf.register_new_resolver("local_copy", local_copy, replace=True)
OmegaConf.register_new_resolver("beside", beside_results, replace=True)

# What Hydra and OmegaConf raise for overrides that fit nowhere; the last ones where they expect a text and find a list.
_COMPOSING = (
    *(HydraException, OmegaConfBaseException, ValueError, RecursionError, yaml.YAMLError),
    *(TypeError, AttributeError, AssertionError, LookupError),
)


# Interpolations whose value follows from the configuration alone; any other may give something else the next time.
_PURE = {
    "oc.select",
    "oc.create",
    "oc.decode",
    "oc.deprecated",
    "oc.dict.keys",
    "oc.dict.values",
    "local_copy",
    "beside",
    "recipe",
}
_PLACED = {"chat": "answers.chat", "questions": "answers.questions"}  # groups that another one chooses from
_RESOLVER = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*:")
_KEYS = RunConfig.model_fields.keys() - {"follows_seed", "unhashed", "variant"}  # which are found, not given
_READ = {*_KEYS, "answers", "models_dir", "data_root"}  # at the top level; the others there are what a recipe refers to
_CHOICE, _VALUE = re.compile(r"\w+=[\w-]+"), re.compile(r"[A-Za-z_][\w.]*=")
_GIVEN = re.compile(r"[+~]*(?:model|task|method|train)\.(?:neutral|version)\b")


class NotComposed(ConfigError):
    """Hydra makes no configuration of these overrides, and starts no sweep that has such a job."""


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `python scripts/train.py OVERRIDES` would make. Raises ConfigError with one line."""
    return compose_lasting(overrides)[0]


def compose_lasting(overrides: Sequence[str] = ()) -> tuple[RunConfig, bool]:
    """The same, and whether these overrides always give it and, but for what `RunConfig.with_seed` changes, at every seed.

    Not with ${oc.env:} or ${now:}, nor where a folder is named after the seed, nor with yamls from elsewhere, nor with a class
    that components.json does not list: its code may change.
    """
    try:
        cfg = _compose(overrides)
    except _COMPOSING as error:
        raise NotComposed(explain(error)) from None
    try:
        run, following = _checked(cfg, overrides)
    except _COMPOSING as error:
        raise ConfigError(explain(error)) from None
    texts = [*overrides, *(text for _, text in _texts(OmegaConf.to_container(cfg, resolve=False)))]
    changing = {found for text in texts for found in _RESOLVER.findall(text)} - _PURE
    known = all(getattr(run, group)["_target_"] in table() for group in GROUPS[:3])
    same = all(dotted in run.follows_seed and dotted.partition(".")[0] != "train" for dotted in following)
    found = not any("hydra.searchpath" in override for override in overrides)  # in conf/, which the memory looks at
    return run, known and same and found and not changing


def compose_on(overrides: Sequence[str], values: Mapping[str, Any]) -> RunConfig:
    """The run of these overrides where `values`, as a yaml of the method's recipe has them, are the last word. Raises
    ConfigError."""
    try:
        cfg = _compose(overrides)
        with open_dict(cfg):
            cfg.merge_with(dict(values))
        return _checked(cfg, overrides)[0]
    except _COMPOSING as error:
        raise ConfigError(explain(error)) from None


def resolve(entry: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Another entry of conf/, composed and resolved to plain values. Raises ConfigError with one line."""
    try:
        cfg = _compose(overrides, entry)
        resolved = _plain(cfg, throw_on_missing=True)
        _refuse_unread(cfg, resolved, overrides, entry)
    except _COMPOSING as error:
        raise ConfigError(explain(error, entry)) from None
    return resolved


def _compose(overrides: Sequence[str], entry: str = "run") -> DictConfig:
    """As hydra.compose. Choices of groups are composed once; values are set on a copy, which takes Hydra's last step alone."""
    if not GlobalHydra.instance().is_initialized():
        hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR))
    groups = _choosable()
    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    values = [override for override in overrides if override not in chosen]
    if all(map(_CHOICE.fullmatch, chosen)) and all(map(_VALUE.match, values)):
        cfg = copy.deepcopy(_chosen(entry, *chosen))
        try:
            parsed = [_parser().parse_override(value) for value in values]
            if not any(value.is_sweep_override() for value in parsed):
                for value in parsed:
                    OmegaConf.update(cfg, value.key_or_group, value.value(), merge=True)
                return cfg
        except _COMPOSING:
            pass  # Hydra says what is wrong
    return hydra.compose(entry, overrides=list(overrides))


@lru_cache(maxsize=512)
def _chosen(entry: str, *choices: str) -> DictConfig:
    return hydra.compose(entry, overrides=list(choices))


@lru_cache(maxsize=1)
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _plain(cfg: DictConfig, resolve: bool = True, throw_on_missing: bool = False) -> Any:
    return OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=throw_on_missing)


def written(overrides: Sequence[str], key: str) -> Any:
    """What the yamls of these choices write for one key, such as train.lr, with its interpolations; None where they have no
    value for it. Raises ConfigError."""
    try:
        cfg = _compose(overrides)
        if OmegaConf.select(cfg, key) is None:
            return None
        found: Any = OmegaConf.to_container(cfg, resolve=False)
        for part in key.split("."):
            found = found[part]
        return found
    except OmegaConfBaseException:
        return None
    except _COMPOSING as error:
        raise ConfigError(explain(error)) from None


def from_hydra(cfg: DictConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve and check a config that was composed with `overrides`. Raises ConfigError naming the key and what it may be."""
    try:
        return _checked(cfg, overrides)[0]
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None


def _checked(cfg: DictConfig, overrides: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The run, and the dotted names of all values that change with the seed."""
    given = [override for override in overrides if _GIVEN.match(override)]
    if given:
        raise ConfigError(f"{given[0]}: version and neutral are for the yaml's author; they say which records stay valid")
    resolved = _plain(cfg, throw_on_missing=True)
    _refuse_unread(cfg, resolved, overrides)
    refuse_secrets(_texts(resolved))
    known = {key: resolved[key] for key in _KEYS if key in resolved}
    unhashed = []
    for group in (*GROUPS[:3], "tracker"):
        if isinstance(known.get(group), dict):
            target = known[group].get("_target_")
            if group == "task":
                known[group] = _without_recipes(known[group], resolved, overrides)
            marked_here = group_marks(known[group], group)
            known[group] = normalised(known[group], group)
            unhashed += [f"{group}.{key}" for key in marked_here if key not in marks(group, str(target))]
            _check_name(known[group], group, overrides)
    run = checked(RunConfig, {**known, "unhashed": [key for key in unhashed if not key.startswith("tracker.")]})
    following = _following(cfg, resolved, run.seed)
    run = run.model_copy(update={"follows_seed": _only_the_seed(following, run), "variant": variant(run, overrides)})
    try:
        _ = run.cell_id
    except (ValueError, TypeError, AttributeError) as error:  # a number that is not finite, half a surrogate pair
        raise ConfigError(f"the configuration has no identity: {error}") from None
    _check_recipe(recipe(run.method["name"], run.model["name"]), cfg, overrides)
    return run, [dotted for dotted, _, _ in following]


def variant(run: RunConfig, overrides: Sequence[str]) -> str:
    """The overrides that tell this run from others of its model, task and method, as a person reads them."""
    said = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        group, _, name = key.partition(".")
        if name and group in GROUPS:
            target = "TrainConfig" if group == "train" else str(getattr(run, group).get("_target_"))
            if name.partition(".")[0] not in marks(group, target):
                said[name if group == "method" else key] = value
    return " ".join(f"{key}={value}" for key, value in said.items())


def _refuse_unread(cfg: DictConfig, resolved: dict[str, Any], overrides: Sequence[str], entry: str = "run") -> None:
    """Raises ConfigError for a key that was added with + at the top level, or to a recipe's own table, and that nothing reads:
    no run (or no command of another entry) has it, and no other value refers to it. (What is added inside a group, the group's
    class refuses; `answers` is one where answers= chooses it.)"""
    read = _READ if entry == "run" else {str(key) for key in _compose([], entry)}
    if entry == "run" and OmegaConf.select(cfg, "answers.questions") is None:
        read = read - {"answers"}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        top = key.partition(".")[0]
        if not override.startswith("+") or top in read or top not in resolved:
            continue
        less = cfg.copy()
        with open_dict(less):
            *parents, leaf = key.split(".")
            place = OmegaConf.select(less, ".".join(parents)) if parents else less
            if not isinstance(place, DictConfig) or leaf not in place:
                continue  # a group such as +recipe=...
            del place[leaf]
        try:
            without = _plain(less)
        except OmegaConfBaseException:
            continue
        if all(without.get(known) == resolved.get(known) for known in read):
            raise ConfigError(f"{key} is not a key of the configuration; {_allowed(key.rpartition('.')[0], entry)}")


def _following(cfg: DictConfig, resolved: dict[str, Any], seed: int) -> list[tuple[str, Any, Any]]:
    """Every value of the run that is another under another seed: (dotted name, at `seed`, at the next one)."""
    before = cfg.seed
    with open_dict(cfg):
        cfg.seed = seed + 1
        try:
            other = _plain(cfg)
        finally:
            cfg.seed = before
    return [
        found
        for key in RunConfig.model_fields
        if key in _KEYS & resolved.keys() and key != "seed"
        for found in _changes(resolved[key], other[key], key)
    ]


def _changes(one: Any, other: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _changes(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from _changes(first, second, f"{where}.{index}")
    elif one != other:
        yield where, one, other


def _only_the_seed(following: list[tuple[str, Any, Any]], run: RunConfig) -> list[str]:
    """Those that are part of the identity, which must be the seed itself. Raises ConfigError."""
    follows = []
    for dotted, one, other in following:
        group, key = (*dotted.split("."), "")[:2]
        if group not in GROUPS or key not in hashed(group, run.scientific[group], (), run.unhashed):
            continue
        if (str(one), str(other)) != (str(run.seed), str(run.seed + 1)):
            raise ConfigError(
                f"{dotted} is made from the seed ({one} at seed {run.seed}); only ${{seed}} by itself can follow it"
            )
        follows.append(dotted)
    return follows


def _without_recipes(task: dict[str, Any], resolved: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A task's settings without what the recipe says of tasks of another kind: how GPT-2 writes E2E, when it reads Alpaca."""
    model, method = resolved.get("model"), resolved.get("method")
    if not isinstance(model, dict) or not isinstance(method, dict):
        return task
    family = str(model.get("_target_")).split(".")[-2:-1]  # the recipe's other name, for a model with a name of its own
    of_method = str(method.get("name"))
    names = [recipe(of_method, str(model.get("name"))), *(f"{of_method}_{part}" for part in family)]
    given = {key.split(".")[1] for word in overrides if (key := word.lstrip("+").partition("=")[0]).startswith("task.")}
    told = {key for name in names for key in whole("recipe", name).get("task") or {}} & task.keys() - given
    if not told:
        return task
    foreign = told - fields({"_target_": task.get("_target_")}, "task").keys()
    if foreign:
        check_modality(model, task)
    return {key: value for key, value in task.items() if key not in foreign}


def _check_name(settings: dict[str, Any], group: str, overrides: Sequence[str]) -> None:
    """Raises ConfigError for a component under the name of another one, as whose its records would count, and for a yaml whose
    name is not its file's, by which every command looks for it."""
    name = settings.get("name")
    chosen = [word.partition("=")[2] for word in overrides if word.startswith(f"{group}=")][-1:]
    renamed = any(word.lstrip("+").startswith(f"{group}.name=") for word in overrides)
    if name is not None and chosen and not renamed and chosen != [name] and own_values(group, chosen[0]).get("name") == name:
        raise ConfigError(f"conf/{group}/{chosen[0]}.yaml: its name is {name!r}; it must be the file's, {chosen[0]!r}")
    if name in choices(group):
        own = own_target(group, name)
        if own is not None and own.rpartition(".")[2] != settings["_target_"].rpartition(".")[2]:
            raise ConfigError(
                f"{group}.name={name} is conf/{group}/{name}.yaml's; {settings['_target_']} needs a name of its own"
            )
        if chosen != [name] and (chosen or renamed):
            raise ConfigError(
                f"{group}.name={name} is conf/{group}/{name}.yaml's: choose {group}={name}, or give "
                f"{''.join(chosen) or 'these settings'} a name of its own"
            )


@lru_cache(maxsize=256)
def choice(group: str, name: str) -> dict[str, Any]:
    """One yaml of a group with its Hydra `defaults`; interpolations as they are written. Raises ConfigError."""
    if name not in choices(group):
        by = {"model": f"{called('model')} ID --write {name}", "task": f"{called('task')} {name} FILE"}.get(group)
        raise ConfigError(f"conf/{group} has no {name!r}" + (f"; {by} writes one" if by else ""))
    try:
        return _plain(_compose([], f"{group}/{name}")[group], resolve=False)
    except _COMPOSING as error:
        raise ConfigError(explain(error)) from None


def refuse_secrets(values: Iterable[tuple[str, str]]) -> None:
    """Raises ConfigError for a value (key, text) that holds a token, a key or a password: records and logs keep configs."""
    for key, text in values:
        if redacted(text) != text:
            raise ConfigError(f"{key} holds a secret (a token, a key, or a password in an address); give it in the environment")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value


def _check_recipe(name: str, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """A recipe says how long to train in epochs or in steps. (max_steps on the command line is a cap on either, and so is one
    that a search was given there.) Raises ConfigError where it says both, and where epochs are given on top of its steps, which
    a run ends after all the same."""
    train = whole("recipe", name).get("train") or {}
    steps = train.get("max_steps")
    if train.get("epochs") is not None and steps is not None and not str(steps).startswith("${oc.select:tuned."):
        raise ConfigError(f"conf/recipe/{name}.yaml: train.epochs and train.max_steps are both given; keep one")
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    if "train.epochs" not in given or "train.max_steps" in given or cfg.train.max_steps is None:
        return
    if _plain(cfg, resolve=False)["train"]["max_steps"] == steps:  # and not a scale's
        raise ConfigError(
            f"train.epochs: the recipe ends after {cfg.train.max_steps} steps; give train.max_steps=null with it "
            f"(conf/recipe/{name}.yaml)"
        )


def explain(error: Exception, entry: str = "run") -> str:
    """One line for what Hydra or OmegaConf says in several, of an entry of conf/."""
    text = str(error)
    if isinstance(error, yaml.YAMLError):
        return malformed(error)
    if isinstance(error, UnicodeDecodeError):
        return f"{', '.join(_not_utf8()) or 'an override'} is not UTF-8"
    if isinstance(error, (TypeError, AttributeError, AssertionError, RecursionError, KeyError)):
        return f"these overrides make no configuration ({' '.join(text.split())[:200] or type(error).__name__})"
    if isinstance(error, ValueError) and "Config group override" in text:
        return "a config group is chosen by name, such as train=default"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        key = unknown.group(1)
        parent, _, leaf = key.rpartition(".")
        if key in _PLACED:
            return f"{key} is chosen as {key}@{_PLACED[key]}=, one of {', '.join(choices(key))}"
        if leaf in _choosable() and not parent:
            return f"{key}: no such choice; allowed: {', '.join(choices(leaf))}"
        return f"{key} is not a key of the configuration; {_allowed(parent, entry)}"
    there = re.search(r"An item is already at '([^']+)'", text)
    if there:
        return f"{there.group(1)} has a value in the yaml already: give it without the +"
    launcher = re.search(r"(?:'hydra_plugins\.hydra_|Could not find 'hydra/launcher/)(joblib|submitit|ray)", text)
    if launcher:
        extra = {"submitit": "slurm"}.get(launcher.group(1), launcher.group(1))
        return f"hydra/launcher: its package is not installed; pip install -c constraints.txt -e '.[{extra}]'"
    sweep = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if sweep:
        key, _, value = sweep.group(1).partition("=")
        several = f"{key}={value} is a sweep over several values: train and answer take them with -m, other commands one"
        return f"{several}; for one value with a comma write \"{key}='{value}'\""
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


def _not_utf8() -> list[str]:
    """The yamls of conf/ that are in another encoding."""
    found = []
    for folder in conf_folders():
        for path in sorted(filter(Path.is_file, files_below(folder, ".yaml"))):
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                found.append(str(path.relative_to(folder.parent)))
    return found


def _choosable() -> list[str]:
    """The config groups that a command line chooses from."""
    return list(_groups(*conf_folders()))


@lru_cache(maxsize=4)
def _groups(*folders: Path) -> tuple[str, ...]:
    return tuple(sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()}))


def _allowed(parent: str, entry: str) -> str:
    if parent in GROUPS:
        keys = {str(key) for name in choices(parent) for key in own_values(parent, name)}
        whose = f"{parent} has" if len(choices(parent)) == 1 else f"the choices of {parent} have, between them"
    elif not parent:
        keys, whose = set(_compose([], entry)), "top level has"
    else:
        return f"{parent} has no such key"
    return f"{whose}: {', '.join(sorted(key for key in keys - {'defaults'} if not key.startswith('_')))}"
