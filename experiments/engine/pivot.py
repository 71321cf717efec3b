"""A table of any records without a module of its own: one key down, one across, a metric over the seeds of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from experiments.engine.published import Statistic
from experiments.engine.render import DASH, Table
from experiments.engine.rows import OVER_SEEDS, Entry, epoch_of, seeds_note, unlike_notes
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.records.frame import leaves, varying
from vera.records.record import Record

NAMED = ("model", "task", "method")


def pivot(
    records: Sequence[Record],
    rows: Sequence[str],
    columns: Sequence[str],
    metric: str | None = None,
    where: Sequence[str] = (),
    recipes: bool = False,
    stat: Statistic = "median",
) -> Table:
    """The records by the values of their keys (model, task, method, seed excepted, or a dotted one such as method.rank).

    metric: None for each task's first. where: key=value that a record must have. recipes: only cells that model, task and
    method alone make. A place holds the seeds of one cell: several in one place are refused with the keys that tell them apart.
    A setting that is each run's own seed is ${seed}. Raises ConfigError.
    """
    if not records:
        raise ConfigError("there are no records in this results folder; run something first")
    chosen = [record for record in records if all(_text(_value(record, key)) in meant for key, meant in map(_pair, where))]
    if recipes:
        chosen = [record for record in chosen if record.run.cell_id == _of_recipe(record)]
    known = {key for record in records for key in (*NAMED, *_settings(record))}
    for key in [*rows, *columns, *(key for key, _ in map(_pair, where))]:
        if key not in known:
            raise ConfigError(
                f"{key} is no key of these records; there are {', '.join(NAMED)} and settings such as method.rank"
            )
    if not chosen:
        values = {key: sorted({_text(_value(record, key)) for record in records}, key=_order) for key, _ in map(_pair, where)}
        there = "; there is ".join(["", *(f"{key}={' '.join(_cut(of))}" for key, of in values.items())])
        raise ConfigError(f"there are no records{' with ' * bool(where)}{' '.join(where)}{there}")
    metrics = sorted({name for record in chosen for name in record.reported(epoch_of(stat))})
    if metric is not None and metric not in metrics:
        there = (
            f"there are {', '.join(metrics)}" if metrics else f"their {epoch_of(stat)} epoch has none: test rows have the best"
        )
        raise ConfigError(f"{metric} is no metric of these records; {there}")
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Record]] = {}
    for record in chosen:
        down, across = (tuple(_text(_value(record, key)) for key in part) for part in (rows, columns))
        places.setdefault((down, across), []).append(record)
    for (down, across), found in places.items():
        _one_cell(found, " ".join([*down, *across]))
    entries = {place: Entry(place[0], found, stat, metric) for place, found in places.items()}
    shown = {place: entry.printed() for place, entry in entries.items()}
    heads = sorted({place[1] for place in places}, key=_order)
    made = []
    for down in sorted({place[0] for place in places}, key=_order):
        made.append([*down, *(shown.get((down, part), DASH) for part in heads)])
    titles = [", ".join(part) for part in heads] if columns else [metric or "score"]
    what = metric or "each task's first metric"
    epoch = f"at the {epoch_of(stat)} epoch; test rows where a record has them"
    with_score = [entry.records for entry in entries.values() if entry.has()]
    notes = [f"{OVER_SEEDS[stat].capitalize()} ± standard deviation of {what} x 100, {epoch}."]
    notes += [*unlike_notes(record for records in with_score for record in records), *seeds_note(with_score)]
    title = f"{', '.join(rows)} by {', '.join(columns)}" if columns else ", ".join(rows)
    return Table("pivot", title + (f" where {' '.join(where)}" if where else ""), [*rows, *titles], made, notes)


def _one_cell(found: Sequence[Record], place: str) -> None:
    cells = {record.run.cell_id: record for record in found}
    if len(cells) > 1:
        keys = [*NAMED, *varying([record.run.of_all_seeds for record in cells.values()])[0]]
        values = {key: sorted({_text(_value(record, key)) for record in cells.values()}, key=_order) for key in keys}
        apart = [f"{key}: {', '.join(_cut(of))}" for key, of in values.items() if len(of) > 1]
        told = "; ".join(_cut(apart)) or ", ".join(sorted(cell[:8] for cell in cells))
        raise ConfigError(
            f"{place}: {len(cells)} cells in one place ({told}); add a key to --rows or --columns, choose with "
            "--where KEY=VALUE, or take the recipes' cells alone with --recipes"
        )


def _cut(words: Sequence[str]) -> list[str]:
    """The first of many words, and a sign that there are more."""
    return [*words[:6], *(["…"] if len(words) > 6 else [])]


def _of_recipe(record: Record) -> str | None:
    run = record.run
    try:
        return composed([f"model={run.model}", f"task={run.task}", f"method={run.method}"]).cell_id
    except ConfigError:
        return None


def _value(record: Record, key: str) -> Any:
    return getattr(record.run, key) if key in NAMED else _settings(record).get(key)


def _settings(record: Record) -> dict[str, Any]:
    return dict(leaves(record.run.of_all_seeds))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return DASH if value is None else short if not isinstance(value, float) or float(short) == value else repr(value)


def _pair(word: str) -> tuple[str, set[str]]:
    """A key, and as what its value may stand in records: as it is written, and but for names as what YAML reads in it."""
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"--where {word!r} is not KEY=VALUE")
    if key in NAMED:
        return key, {value}
    try:
        meant = yaml.safe_load(value)
        return key, {value, _text(float(meant) if isinstance(meant, str) else meant)}  # to YAML 1e-3 is a text
    except (ValueError, yaml.YAMLError):
        return key, {value}


def _order(part: Any) -> Any:
    """Numbers by value, words after them."""
    words = part if isinstance(part, tuple) else (part,)
    return [(0, float(word), "") if _number(word) else (1, 0.0, word) for word in words]


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
