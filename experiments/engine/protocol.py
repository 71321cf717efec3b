"""Every key of a recipe with its value, its source, and what other sources print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from experiments.engine.published import FOLDER, Runs, rows_of
from experiments.engine.render import DASH, Table, markdown
from vera.config import GROUPS, RunConfig, Strict, checked, dotted, recipe
from vera.config.components import bases, own_values
from vera.config.identity import hashed
from vera.config.memory import composed
from vera.errors import ConfigError

OURS = "ours"
NAMED = {  # what a run is of, no setting
    *("_target_", "name", "version", "subset", "splits", "train_splits", "eval_splits", "classes", "repository"),
    *("image_column", "label_column", "prompt", "prompt_input", "primary", "synthetic"),
}
EVERY = "*"  # in a recipe's sources: every key that is in none of the others
ARTEFACTS = ("table2", "table3", "table4", "table5")
WHERE = "results/paper/settings.yaml"


class Source(Strict):
    """A place where settings are printed. printed: by recipe and key, in this project's keys.

    A value may be a mapping by task, model or printed size; {one_of: [...]} is a search range; "=key" is the value of that key.
    """

    cite: str
    printed: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """One key of the runs of a row. values and other: by task. source: who says so, or why it is ours."""

    key: str
    values: dict[str, Any]
    source: str
    other: dict[str, dict[str, Any]]


@lru_cache(maxsize=4)
def sources(folder: Path = FOLDER) -> dict[str, Source]:
    """results/paper/settings.yaml by name. Raises ConfigError."""
    loaded = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    return {name: checked(Source, values, f"{WHERE}: {name}") for name, values in loaded.items()}


def statements(name: str) -> dict[str, list[str]]:
    """What a recipe says of each of its keys: names of sources, or "ours: why"; of those that it leaves to a shared one, what
    that one says. Raises ConfigError naming file and key."""
    held, where = own_values("recipe", name), f"conf/recipe/{name}.yaml"
    shared = {key: told for base in bases(held) for key, told in statements(base).items()}
    keys = [key for group in GROUPS for key, value in dotted.leaves(held.get(group) or {}, f"{group}.") if value is not None]
    said: dict[str, list[str]] = {}
    rest = None
    for source, named in (held.get("sources") or {}).items():
        if source.partition(":")[0] != OURS and source not in sources():
            raise ConfigError(f"{where}.sources: {source!r} is not in {WHERE}; there are {', '.join(sources())}, 'ours: why'")
        if source.partition(":")[0] == OURS and not source.partition(":")[2].strip():
            raise ConfigError(f"{where}.sources: {source!r} says not why; write 'ours: why'")
        if named == EVERY:
            rest = source
            continue
        for key in named:
            if key not in keys:
                raise ConfigError(f"{where}.sources.{source}: {key} is not a key of this recipe")
            said.setdefault(key, []).append(source)
    for key in keys:
        if key not in said:
            if rest is None:
                raise ConfigError(f"{where}: {key} has no source; name one under `sources`")
            said[key] = [rest]
    return {**shared, **said}


def settings(row: Runs, tasks: Sequence[str]) -> list[Setting]:
    """The keys of a row's runs: those of its recipe and variant, and others that a source prints. Raises ConfigError."""
    name = recipe(row.method, row.model)
    said, runs = statements(name), {task: composed(row.overrides(task)) for task in tasks}
    printing = {source: found.printed[name] for source, found in sources().items() if name in found.printed}
    lines = []
    for key in dict.fromkeys([*said, *row.variant, *(key for printed in printing.values() for key in printed)]):
        values = {task: dotted.get(run.scientific, key) for task, run in runs.items()}
        if all(value is None for value in values.values()):
            continue
        found = {source: {t: _printed(of, key, row, t, run) for t, run in runs.items()} for source, of in printing.items()}
        by_size = any(row.params in of[key] for of in printing.values() if isinstance(of.get(key), dict))
        ours = [source for source in said.get(key, ()) if source not in sources()]
        agreeing = [source for source, of in found.items() if all(_agrees(values[task], of[task]) for task in tasks)]
        if key in row.variant and not by_size:
            named = ours or ["this row"]  # what a row is about counts more than its recipe
        elif key in said:
            named = [_stated(f"conf/recipe/{name}.yaml", key, t, value, said[key], found) for t, value in values.items()]
        else:
            named = agreeing[:1] or [f"ours: the default of conf/{key.partition('.')[0]}"]
        other = {
            sources()[source].cite: {t: v for t, v in printed.items() if v is not None and not _agrees(values[t], v)}
            for source, printed in found.items()
        }
        cites = [sources()[source].cite if source in sources() else source for source in dict.fromkeys(named)]
        lines.append(Setting(key, values, "; ".join(cites), {cite: differ for cite, differ in other.items() if differ}))
    return lines


def unnamed(row: Runs, tasks: Sequence[str], listed: Sequence[str]) -> str:
    """What else of task, method and train decides the row's runs, as overrides: keys beside those of `settings`."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        run = composed(row.overrides(task))
        for group in ("task", "method", "train"):
            deciding = hashed(group, run.scientific[group], run.follows_seed, run.unhashed)
            for key, value in dotted.leaves({key: deciding[key] for key in deciding.keys() - NAMED}, f"{group}."):
                headless = key.startswith("train.head_") and not run.model["head"]
                if value is not None and key not in listed and not headless:
                    found.setdefault(key, {})[task] = value
    return ", ".join(f"{key}={_text(values)}" for key, values in sorted(found.items()))


def _stated(where: str, key: str, task: str, value: Any, said: list[str], found: dict[str, dict[str, Any]]) -> str:
    """Which of the stated sources has the value."""
    for source in said:
        printed = found.get(source, {}).get(task)
        if source not in sources():
            return source
        if printed is not None and not _agrees(value, printed):
            other = f"its source {source} ({sources()[source].cite}) prints {_shown(printed)}"
            raise ConfigError(f"{where}: {key} is {_shown(value)} on {task}, but {other}")
        if printed is not None:
            return source
    raise ConfigError(f"{where}.sources: {WHERE} has no {key} on {task} in {', '.join(said)}")


def _printed(printed: dict[str, Any], key: str, row: Runs, task: str, run: RunConfig) -> Any:
    value = printed.get(key)
    while isinstance(value, dict) and "one_of" not in value:
        value = next((value[name] for name in (row.params, task, row.model) if name in value), None)
    return dotted.get(run.scientific, value[1:]) if isinstance(value, str) and value.startswith("=") else value


def _agrees(value: Any, printed: Any) -> bool:
    return value in printed["one_of"] if isinstance(printed, dict) else value == printed


def table(name: str) -> Table:
    """Every row of a published table, key by key. Raises ConfigError where a recipe contradicts the source that it names."""
    lines, rules = [], []
    rows, tasks = rows_of(name)
    for row in rows:
        if row.method is None:
            continue
        label = " ".join(filter(None, [row.label, row.params, f"({row.model})"]))
        listed = settings(row, tasks)
        for setting in listed:
            differing = [f"{cite}: {_text(found)}{_how(setting.key, found)}" for cite, found in setting.other.items()]
            lines.append([label, setting.key, _text(setting.values), setting.source, "; ".join(differing) or DASH])
        rest = unnamed(row, tasks, [setting.key for setting in listed])
        lines.append([label, "all others", rest, "conf/: no source is named", DASH])
        rules.append(len(lines))
    columns = ["Row", "Key", "Value", "Source", "What other sources print"]
    notes = [f"Several values: {', '.join(tasks)}."] if len(tasks) > 1 else []
    return Table(f"{name}_protocol", f"The settings of {name}, row by row", columns, lines, notes, rules)


def page() -> str:
    """docs/protocol.md."""
    lead = (
        "# Where every setting comes from\n\nMade by `python scripts/protocol.py --write` from conf/recipe (values and the "
        "sources that they name), results/paper/settings.yaml\n(what the sources print) and the rows of results/paper; "
        "`make check` compares. `make protocol ARTEFACT=table2` prints one of them.\n\n"
    )
    return lead + "\n".join(markdown(table(name)) for name in ARTEFACTS)


def _override(key: str, value: Any) -> str:
    return f"{key}={_shown(value)}"


def _how(key: str, found: dict[str, Any]) -> str:
    """The override that takes the other side, where it is the same for all tasks."""
    (first, *rest) = found.values()
    return f" ({_override(key, first)})" if not isinstance(first, dict) and all(value == first for value in rest) else ""


def _text(values: dict[str, Any]) -> str:
    texts = [_shown(value) for value in values.values()]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"one of {', '.join(map(_shown, value['one_of']))}"
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if isinstance(value, str) and value.isspace():
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else DASH if value is None else str(value)
