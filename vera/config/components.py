"""The choices of conf/ and the classes that they name; nothing else is ever imported."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vera.config.identity import beside
from vera.config.marks import Fields, Mark, marked, table
from vera.config.schema import Name, Strict, checked, shown
from vera.config.values import fields_of, values_model
from vera.errors import ConfigError
from vera.io.files import files_below, write_atomic
from vera.project import project

CONF_DIR = Path(__file__).resolve().parent.parent.parent / "conf"


def conf_folders() -> list[Path]:
    """conf/ of this repository, and of the project. Raises ConfigError for a project's yaml that would be passed over."""
    there = project()
    return [CONF_DIR, *([_own_folder(there / "conf")] if there and (there / "conf").is_dir() else [])]


@lru_cache(maxsize=8)
def _own_folder(folder: Path) -> Path:
    for path in sorted(files_below(folder, ".yaml", ".yml")):
        inside = path.relative_to(folder)
        if path.suffix == ".yml":
            raise ConfigError(f"{path}: only files called .yaml are read; call it {path.stem}.yaml")
        if (CONF_DIR / inside).is_file():
            place = (Path("conf") / inside.parent).as_posix()
            raise ConfigError(f"{path}: {place} has a {path.stem} already; give this one a name of its own")
    return folder


def own_conf() -> Path:
    """Where a command writes its yamls: conf/ of the project, which may not be there yet, or else of this repository."""
    there = project()
    return there / "conf" if there else CONF_DIR


def conf_files(group: str) -> dict[str, Path]:
    """The yamls of one config group by name."""
    return _files(group, *conf_folders())


@lru_cache(maxsize=64)
def _files(group: str, *folders: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        found |= {path.stem: path for path in (folder / group).glob("*.yaml")}
    return dict(sorted(found.items()))


def conf_file(group: str, name: str) -> Path:
    """Where a yaml is, or would be if there were one."""
    return conf_files(group).get(name, CONF_DIR / group / f"{name}.yaml")


def check_free(group: str, name: str) -> None:
    """Raises ConfigError for a name that is none, or is taken."""
    checked(_Named, {"name": name}, "NAME")
    if name in conf_files(group):
        raise ConfigError(f"conf/{group}/{name}.yaml is there already; choose another name or remove it")


def new_yaml(group: str, name: str, text: str) -> Path:
    """Write a yaml of one's own, into the project if there is one; where it is. Raises ConfigError for a name that is taken."""
    check_free(group, name)
    path = own_conf() / group / f"{name}.yaml"
    write_atomic(path, text)
    return path


class _Named(Strict):
    name: Name


def build(settings: dict[str, Any], where: str) -> Any:
    """The object that a group's `_target_` names, from the group's other keys. Raises ConfigError."""
    values = {key: value for key, value in settings.items() if key != "_target_"}
    return checked(component(settings, where), values, where)


def component(settings: dict[str, Any], where: str) -> type[Any]:
    """The class that a group's `_target_` names: one that a yaml of conf/<where> names too. Raises ConfigError.

    Nothing else is ever imported, wherever the settings come from.
    """
    target = _allowed(settings, where)
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{where}._target_: {target} cannot be imported: {error}") from None


def normalised(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """A group's settings with every value in the type of its field: what `build` would take them for. Raises ConfigError for a
    key or a value that the class does not take.

    The class is imported only where components.json does not list it, or not the key.
    """
    values = {key: value for key, value in settings.items() if key != "_target_"}
    target = _allowed(settings, where)
    made = checked(values_model(target, fields(settings, where)), values, where)
    return {"_target_": target, **made.model_dump(exclude_unset=True)}


def check_modality(model: dict[str, Any], task: dict[str, Any]) -> None:
    """Raises ConfigError for a task that the model cannot read. (Imports both classes.)"""
    reads, needs = component(model, "model").modality, component(task, "task").modality
    if reads != needs:
        raise ConfigError(f"task={task['name']} needs a model for {needs}, model={model['name']} is one for {reads}")


def fields(settings: dict[str, Any], where: str) -> Fields:
    """The fields of a group's class. Raises ConfigError for a class that conf/ does not name."""
    known = table().get(_allowed(settings, where))
    if known is None or settings.keys() - known.keys() - {"_target_"}:
        return fields_of(component(settings, where))
    return known


def group_marks(settings: dict[str, Any], where: str) -> dict[str, Mark]:
    """The marked keys of a group's class (vera.config.marks). Raises ConfigError for a class that conf/ does not name."""
    return marked(fields(settings, where))


def _allowed(settings: dict[str, Any], where: str) -> str:
    target = settings.get("_target_")
    allowed = targets(where)
    if not isinstance(target, str) or target not in allowed:
        raise ConfigError(f"{where}._target_: {shown(target)} is not a component; allowed: {', '.join(sorted(allowed))}")
    return target


@lru_cache(maxsize=16)
def targets(group: str) -> frozenset[str]:
    """The classes that the yamls of one config group name. A malformed yaml names none; whoever chooses it is told."""
    return frozenset(target for name in choices(group) if (target := own_target(group, name)) is not None)


def own_target(group: str, name: str) -> str | None:
    """The class that one yaml names, or one that it is built upon."""
    target = whole(group, name).get("_target_")
    return None if target is None else str(target)


def own_values(group: str, name: str) -> dict[str, Any]:
    """What one yaml says itself, as it is written; nothing of one that is malformed or not there."""
    path = conf_file(group, name)
    try:
        return read_yaml(path)
    except ConfigError:
        return {}


def read_yaml(path: Path) -> dict[str, Any]:
    """One yaml as it is written, not to be changed. Raises ConfigError naming the file."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except yaml.YAMLError as error:
        raise ConfigError(malformed(error)) from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


@lru_cache(maxsize=512)
def _read(path: Path, changed: int) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        values = yaml.safe_load(file)
    if not isinstance(values or {}, dict):
        raise ValueError("not a mapping")
    return values or {}


def malformed(error: yaml.YAMLError) -> str:
    """One line for a yaml that cannot be parsed, with its file and line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML").split())
    path = Path(mark.name if mark is not None else getattr(error, "name", ""))
    where = path.relative_to(CONF_DIR.parent) if path.is_relative_to(CONF_DIR.parent) else path
    return f"{where}{'' if mark is None else f', line {mark.line + 1}'}: {problem}"


def choices(group: str) -> list[str]:
    """The yamls of one config group."""
    return list(conf_files(group))


def recipe(method: str, model: str) -> str:
    """Which yaml of conf/recipe holds a method's settings on a model.

    <method>_<model>; or <model>, which then has those of every method; or <method>_<family>, where the family is the module of
    the model's class, for a model that can be trained (GPT-3 has no checkpoint, it is counted alone). The first of them, which
    does not exist, where none does.
    """
    own = whole("model", model)
    family = str(own.get("_target_")).split(".")[-2:-1] if own.get("checkpoint") else []
    names = (f"{method}_{model}", model, *(f"{method}_{name}" for name in family))
    return next((name for name in names if conf_file("recipe", name).is_file()), names[0])


def bases(values: dict[str, Any]) -> list[str]:
    """The yamls of its group that one is built upon, by its `defaults`."""
    return [base for base in values.get("defaults") or () if isinstance(base, str) and base != "_self_"]


def whole(group: str, name: str, *above: str) -> dict[str, Any]:
    """What one yaml says, and those that it is built upon, as they are written; nothing where there is no such yaml. (Of yamls
    built upon each other, which Hydra refuses, each counts once.)"""
    own = dict(own_values(group, name))
    for base in reversed(bases(own)):
        own = beside(own, whole(group, base, name, *above) if base not in (name, *above) else {})
    return {key: value for key, value in own.items() if key != "defaults"}
