"""A sweep as a list of runs: the rows of published tables and figures, or else the product of its axes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from pydantic import Field

from experiments.engine.published import names, rows_of, stands_for
from vera.config import GROUPS, RunConfig, Strict, checked, choices, conf_file, dotted, explain, run_name
from vera.config.components import read_yaml
from vera.config.marks import marks
from vera.config.memory import compose_all, composed
from vera.errors import ConfigError
from vera.project import project

AXES = ("model", "task", "method")
INERT = {"hydra", "artefacts", "scales", "results_dir", "seed"}  # what in a sweep's yaml says nothing about one of its runs


class Sweep(Strict):
    """What is read of a yaml in conf/sweep, and what is asked of it beside.

    artefacts  the tables and figures of results/paper whose rows are its runs, and which they fill; [] for our own.
    scales     other scales (conf/scale) at which its runs are this project's own.
    params     values of the axes: of model, task and method, which choose among the rows, and of any other key.
    results_dir  where its runs go, if the yaml says so.
    seed       of its runs where params and the command line give none.
    plain      its runs follow from their overrides alone, so that they compose (and are remembered) like a table's rows.
    given      overrides that narrow it.
    """

    name: str
    artefacts: list[str]
    scales: list[str]
    params: dict[str, Any] = Field(min_length=1)
    plain: bool
    results_dir: str | None
    seed: int = 0
    given: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As it is given to `python scripts/train.py sweep=`."""
        return " ".join([self.name, *self.given])


@dataclass
class Cell:
    """One configuration and the seeds that a sweep wants of it. overrides: what composes it, seed left out."""

    sweep: str
    overrides: tuple[str, ...]
    run: RunConfig
    seeds: tuple[int, ...]

    def names(self, run: RunConfig | None = None) -> list[str]:
        """The run names, one a seed."""
        run = run or self.run
        return [run_name(run.model["name"], run.task["name"], run.method["name"], run.cell_id, seed) for seed in self.seeds]


class _Line(NamedTuple):
    """A row for one task. variant: each key with its override."""

    model: str
    task: str
    method: str
    variant: tuple[tuple[str, str], ...]


def read_sweep(name: str) -> Sweep:
    """conf/sweep/<name>.yaml. Raises ConfigError naming file and key."""
    loaded, where = _loaded(name), f"conf/sweep/{name}.yaml"
    try:
        params = loaded["hydra"]["sweeper"]["params"]
    except (KeyError, TypeError):
        raise ConfigError(f"{where}: no hydra.sweeper.params") from None
    values = {key: loaded.get(key, []) for key in ("artefacts", "scales")}
    if values["artefacts"]:
        _check_rows_alone(loaded, params, where)
    values |= {"name": name, "params": params, "plain": loaded.keys() <= INERT, "results_dir": loaded.get("results_dir")}
    values |= {"seed": loaded.get("seed", 0)}
    made = checked(Sweep, values, where)
    if loaded["hydra"].get("mode") != "MULTIRUN":
        raise ConfigError(f"{where}: hydra.mode is not MULTIRUN, so that sweep={name} would be one run")
    return made


def _loaded(name: str) -> dict[str, Any]:
    """A sweep's yaml. Raises ConfigError for a key at its top that no run has and that nothing there refers to."""
    loaded = read_yaml(conf_file("sweep", name))
    for key in loaded.keys() - {*RunConfig.model_fields, *INERT, "answers", "defaults"}:
        if f"${{{key}" not in str(loaded):
            raise ConfigError(f"conf/sweep/{name}.yaml: nothing reads {key}; a sweep has artefacts, scales, and keys of a run")
    return loaded


def _check_rows_alone(loaded: dict[str, Any], params: Any, where: str) -> None:
    """Raises ConfigError for a setting that would make other runs of the rows than those that their tables look for."""
    own = [key for group in GROUPS for key, _ in dotted.leaves(loaded.get(group) or {}, f"{group}.")]
    for key in [*own, *(str(key).lstrip("+") for key in params or ())]:
        group, _, name = key.partition(".")
        if name and group in GROUPS and name.partition(".")[0] not in marks(group, "TrainConfig" if group == "train" else ""):
            raise ConfigError(
                f"{where}: {key} would make other runs than those that the tables of its artefacts look for; put it into the "
                "rows' `variant` (where their table is written) or into a recipe"
            )


def sweeps(artefact: str | None = None) -> list[Sweep]:
    """The sweeps of the paper, or of the project, one entry for each table or figure; or those of one artefact, or of those
    whose names go on from it (table6: table6a, table6b; not table1: table12), or one sweep.

    Raises ConfigError where nothing is called like that.
    """
    every = _readable(artefact)
    there = project()
    if artefact is None and there:
        return [part for sweep in every if conf_file("sweep", sweep.name).is_relative_to(there) for part in _parts(sweep)]
    if artefact is None:
        return [part for sweep in every for part in _parts(sweep) if part.artefacts]

    def asked(part: Sweep) -> bool:
        rests = (name.removeprefix(artefact) for name in part.artefacts if name.startswith(artefact))
        return part.name == artefact or any(not rest[:1].isdigit() for rest in rests)

    found = [part for sweep in every for part in _parts(sweep) if asked(part)]
    found = found or [sweep for sweep in _own(every) if sweep.label == artefact]
    if not found:
        known = sorted({name for sweep in every for name in (sweep.name, *sweep.artefacts)})
        raise ConfigError(f"nothing that has runs is called {artefact!r}; there are {', '.join(known)}")
    return found


def own_sweeps() -> list[Sweep]:
    """What the paper does not have: our own sweeps, and the paper's at another scale; in a project none, whose `sweeps` are
    all its own."""
    return [] if project() else _own(_readable())


def _readable(artefact: str | None = None) -> list[Sweep]:
    """Every sweep; one that cannot be read is told and left out where an artefact is asked for, or another sweep."""
    found = []
    for name in choices("sweep"):
        try:
            found.append(read_sweep(name))
        except ConfigError as error:
            if artefact in (None, name):
                raise
            print(f"note: left out: {error}", file=sys.stderr)
    return found


def _own(every: Sequence[Sweep]) -> list[Sweep]:
    scaled = [
        part.model_copy(update={"given": (*part.given, f"scale={scale}")})
        for sweep in every
        for scale in sweep.scales
        for part in _parts(sweep)
    ]
    return [sweep for sweep in every if not sweep.artefacts] + scaled


def _parts(sweep: Sweep) -> list[Sweep]:
    if len(sweep.artefacts) < 2:
        return [sweep]
    return [sweep.model_copy(update={"artefacts": [a], "given": (f"artefacts={a}",)}) for a in sweep.artefacts]


def prepare() -> None:
    """Compose the cells of every sweep and table on all cores, which is most of the work when nothing is remembered yet."""
    every = [_composed_by(sweep, chosen) for sweep in [*sweeps(), *own_sweeps()] for chosen in _seeds_by_cell(sweep, ())]
    tables = [rows_of(name) for name in names()]
    compose_all([*every, *(row.overrides(task) for rows, tasks in tables for row in rows if row.method for task in tasks)])


def cells(sweep: Sweep, overrides: Sequence[str] = ()) -> list[Cell]:
    """Every cell of a sweep. `overrides` are what one would add to its command line."""
    found = _seeds_by_cell(sweep, overrides).items()
    return [Cell(sweep.name, chosen, composed(_composed_by(sweep, chosen)), tuple(seeds)) for chosen, seeds in found]


def folder(sweep: Sweep, found: Sequence[Cell]) -> str:
    """Where the runs of a sweep's cells go, by the yaml of the sweep or of its scale."""
    return sweep.results_dir or str(found[0].run.results_dir)


def looked_in(given: Path | None, wanted: Sequence[tuple[Sweep, Sequence[Cell]]]) -> Path:
    """The folder that is given, else where all these runs go, else results, and what does not go there is said."""
    there = {sweep.label: folder(sweep, found) for sweep, found in wanted if found}
    if given or len(set(there.values())) == 1:
        return given or Path(there.popitem()[1])
    if elsewhere := [f"{label} ({place})" for label, place in there.items() if place != "results"]:
        print(f"note: looked for in results, where their runs do not go: {', '.join(elsewhere)}; name one", file=sys.stderr)
    return Path("results")


def _composed_by(sweep: Sweep, chosen: tuple[str, ...]) -> tuple[str, ...]:
    return chosen[1:] if sweep.plain else chosen


def _seeds_by_cell(sweep: Sweep, overrides: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    texts = [f"{key}={value}" for key, value in sweep.params.items()] + [*sweep.given, *overrides]
    try:
        parsed = OverridesParser.create().parse_overrides(texts)
        listed = jobs(parsed, sweep.artefacts)
    except (HydraException, ValueError) as error:
        raise ConfigError(f"sweep {sweep.name}: {explain(error)}") from None
    found: dict[tuple[str, ...], list[int]] = {}
    for job in listed:
        seed = next((part.removeprefix("seed=") for part in job if part.startswith("seed=")), str(sweep.seed))
        if not seed.isdecimal():
            raise ConfigError(f"sweep {sweep.name}: seed={seed}: seeds are whole numbers")
        cell = (f"sweep={sweep.name}", *(part for part in job if not part.startswith("seed=")))
        found.setdefault(cell, []).append(int(seed))
    return found


def jobs(overrides: Sequence[Override], artefacts: Sequence[str]) -> list[list[str]]:
    """The overrides of each run: rows of the artefacts (or, without one, all values of the axes) x all values of other keys.

    model, task and method choose among the rows; a value that no row has takes their place, so that a method without a row runs
    once on each model and task of the rows. Any other key that is given counts more than a row's variant. `artefacts=`
    among the overrides counts more than `artefacts`. Raises ConfigError.
    """
    given = {override.get_key_element(): override for override in overrides}  # as in Hydra, the last one of a key counts
    if "sweep" in given and given["sweep"].is_sweep_override():
        raise ConfigError(f"{given['sweep'].input_line}: one sweep at a time")
    _check_one_place(given)
    for name in _values(given["sweep"]) if "sweep" in given else ():
        if name in choices("sweep"):
            _loaded(name)
            _ = artefacts and read_sweep(name)
    if "artefacts" in given:
        artefacts = _names(given.pop("artefacts"))
    if not artefacts:
        return _product([override for override in overrides if override.get_key_element() != "artefacts"])
    axes = {axis: _values(given.pop(axis)) for axis in AXES if axis in given}
    scales = _values(given["scale"]) if "scale" in given else ["paper"]
    if len(scales) > 1:
        raise ConfigError(f"scale={','.join(scales)}: a sweep over rows has one scale")
    lines = _choose(_lines(artefacts, scales[0], axes), axes)
    rest = _product([override for override in overrides if override.get_key_element() in given])
    tasks = [*axes.get("task", []), *(line.task for line in lines)]  # task by task: its data are read once
    every = [
        (
            *(f"{axis}={getattr(line, axis)}" for axis in AXES),
            *(setting for key, setting in line.variant if key not in given),
            *other,
        )
        for line in sorted(lines, key=lambda line: tasks.index(line.task))
        for other in rest
    ]
    return [list(job) for job in dict.fromkeys(every)]


def narrowing(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[int], list[str]]:
    """What of a command line chooses among rows (the values of each axis that is given), its seeds, and the rest. Raises
    ConfigError."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(explain(error)) from None
    given = {override.get_key_element(): override for override in parsed}
    axes = {axis: _values(given[axis]) for axis in AXES if axis in given}
    seeds = _values(given["seed"]) if "seed" in given else ["0"]
    if not all(seed.isdecimal() for seed in seeds):
        raise ConfigError(f"{given['seed'].input_line}: seeds are whole numbers")
    rest = [override.input_line or "" for override in parsed if override.get_key_element() not in (*AXES, "seed")]
    return axes, list(dict.fromkeys(map(int, seeds))), rest


def _check_one_place(given: dict[str, Override]) -> None:
    """Raises ConfigError where a sweep's yaml and a scale's both say where records go: the sweep's would count, although a
    rehearsal's are none of its."""
    if "sweep" not in given or "scale" not in given or "results_dir" in given:
        return
    there = [(group, name) for group in ("sweep", "scale") for name in _values(given[group]) if name in choices(group)]
    placed = [f"{group}={name}" for group, name in there if read_yaml(conf_file(group, name)).get("results_dir")]
    if len(placed) > 1 and placed[0].startswith("sweep="):
        raise ConfigError(f"{' and '.join(placed)} both say where records go: give results_dir=")


def _lines(artefacts: Sequence[str], scale: str, axes: dict[str, list[str]]) -> list[_Line]:
    """The rows at a scale, where others stand for their models and tasks if its yaml says so."""
    other, lines = stands_for(scale), []
    for artefact in artefacts:
        rows, tasks = rows_of(artefact)
        for row in rows:
            if row.method is None or row.scale not in (None, scale if other else "paper"):
                continue
            for task in tasks:
                here = {"model": row.model, "task": task}
                if other:
                    here = {axis: other[axis].get(value, value if axis in axes else None) for axis, value in here.items()}
                    missing = [name for axis, name in (("model", row.model), ("task", task)) if here[axis] is None]
                    if missing:
                        raise ConfigError(f"conf/scale/{scale}.yaml.stands_for: nothing stands for {missing[0]} of {artefact}")
                lines.append(_Line(**here, method=row.method, variant=tuple(zip(row.variant, row.settings, strict=True))))
    if other:
        for axis in axes.keys() & other.keys():
            axes[axis] = [other[axis].get(value, value) for value in axes[axis]]
    return lines


def _choose(lines: list[_Line], axes: dict[str, list[str]]) -> list[_Line]:
    for axis, values in axes.items():
        has = {getattr(line, axis) for line in lines}
        dropped = {"variant": ()} if axis == "method" else {}
        others = [line._replace(**{axis: value}, **dropped) for value in values if value not in has for line in lines]
        lines = [line for line in lines if getattr(line, axis) in values] + others
    return list(dict.fromkeys(lines))


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    every = BasicSweeper.split_arguments(list(overrides), None)[0]
    return [list(job) for job in dict.fromkeys(map(tuple, every))]


def _values(override: Override) -> list[str]:
    swept = override.is_sweep_override()
    return list(override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]


def _names(override: Override) -> list[str]:
    value = None if override.is_sweep_override() else override.value()
    return [str(name) for name in value] if isinstance(value, list) else _values(override)
