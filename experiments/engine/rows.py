"""From records to rows: what a table or figure is asked for, and the columns that show a cell's seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import RESULTS
from experiments.engine.aggregate import (
    COMPARED,
    Cells,
    Summary,
    cell_records,
    common,
    epoch_of,
    paired,
    summarise,
    summarise_cost,
    summarise_records,
    unlike,
    whole,
)
from experiments.engine.published import Statistic, stands_for
from experiments.engine.render import DASH, INTERVAL, interval, number, signed
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.records.record import Record

OVER_SEEDS = {"median": "median over seeds", "mean": "mean over seeds", "last": "median over seeds", "best": "best seed"}


@dataclass(frozen=True)
class Asked:
    """What scripts/tables.py was asked for.

    overrides: apply to every run (--with); stat: None for the artefact's own; results: the folder of records and measurements;
    shown: the records that were taken, by their overrides; said: what a table has to say of them.
    """

    cells: Cells
    overrides: Sequence[str] = ()
    stat: Statistic | None = None
    results: Path = RESULTS
    shown: dict[tuple[str, ...], list[Record]] = field(default_factory=dict, repr=False)
    said: list[str] = field(default_factory=list, repr=False)
    _idle: dict[str, bool] = field(default_factory=dict, repr=False)  # whether a key given decides none of the rows so far
    _found: dict[tuple[str, ...], list[Record]] = field(default_factory=dict, repr=False)

    def records(self, overrides: Sequence[str]) -> list[Record]:
        """Of the cell that these overrides and those of --with make, by seed; [] when nobody has run it, and where --with gives
        another value to a setting that the row is about."""
        key = (*overrides, *self.overrides)
        own, given = (dict(word.lstrip("+").partition("=")[::2] for word in words) for words in (overrides, self.overrides))
        other = [f"{name}={own[name]}" for name in own.keys() & given.keys() if _value(own[name]) != _value(given[name])]
        if other:
            self.said.append(f"A row of {' '.join(sorted(other))} has no runs with {' '.join(self.overrides)}.")
        if key not in self._found:
            self._found[key] = [] if other else self._of_cell(key, given)
        self.shown[key] = self._found[key]
        return self._found[key]

    def _of_cell(self, overrides: Sequence[str], given: dict[str, str]) -> list[Record]:
        run = composed(overrides)
        for key in given:
            if key in ("seed", "device"):
                raise ConfigError(f"{key}= is no part of a cell, and chooses none of its records; leave it out")
            if key == "scale" and stands_for(given[key]):
                raise ConfigError(
                    f"scale={given[key]} runs a table's rows on a small model in place of theirs; these "
                    "runs are in the tables of the miniatures (of table6b: table6_mini)"
                )
            # How fast, or from where: a command line as the runs had it.
            self._idle[key] = self._idle.get(key, True) and not run.decides(key)
        return cell_records(self.cells, overrides)

    @property
    def named(self) -> str:
        """Those of `overrides` that choose the runs, once rows have been asked for."""
        return " ".join(word for word in self.overrides if not self._idle.get(word.lstrip("+").partition("=")[0]))

    def gives(self, *keys: str) -> bool:
        """Whether --with gives one of these keys."""
        return any(word.lstrip("+").partition("=")[0] in keys for word in self.overrides)

    def searched(self, *notes: str) -> list[str]:
        """What is said of how the recipes' learning rates were chosen; nothing where --with gives others."""
        return [] if self.gives("train.lr", "train.head_lr") else list(notes)

    def entry(self, labels: Sequence[str], overrides: Sequence[str], **shown) -> Entry:
        """One row's labels and runs. shown: what else an Entry has, with `stat` as the artefact's own choice."""
        return Entry(labels, self.records(overrides), **{**shown, "stat": self.stat or shown.get("stat", "median")})

    def alike(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries with the runs of those seeds that every one of them has that has any: a seed also draws the training
        rows, so that rows over unlike seeds say less about methods than about seeds. A lack of such a seed is `said`."""
        seeds = {_called(entry): {record.run.seed for record in entry.records} for entry in entries if entry.records}
        shared = set.intersection(*seeds.values()) if seeds else set()
        if seeds and not shared:
            each = "; ".join(f"{name}: {', '.join(map(str, sorted(of)))}" for name, of in seeds.items())
            self.said.append(f"There are runs, but no seed has one in every row, so that none is shown (seeds of {each}).")
        return [replace(entry, records=[record for record in entry.records if record.run.seed in shared]) for entry in entries]


def _value(text: str) -> float | str:
    """A setting as it compares: 1e-3 and 0.001 are one."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Entry:
    """The runs behind one row. metric: None for the task's first; scale, digits: how it is printed."""

    labels: Sequence[str]
    records: Sequence[Record]
    stat: Statistic = "median"
    metric: str | None = None
    scale: float = 100.0
    digits: int = 1

    def summary(self, select: str | None = None) -> Summary:
        """Of the best or the last epoch; default: the one that `stat` reads."""
        return summarise_records(self.records, self.metric, select or epoch_of(self.stat))

    @property
    def parameters(self) -> int:
        """Trained, outside the head."""
        return self.records[0].parameters.adapter

    def scaled(self) -> Summary:
        """Of the best epoch, as pictures show it."""
        return summarise([self.scale * record.score(self.metric) for record in self.records])

    def has(self, select: str | None = None) -> bool:
        """Whether every run has the metric at that epoch: a test set, say, is not scored at the last one."""
        return all(record.has(self.metric, select or epoch_of(self.stat)) for record in self.records)

    def printed(self, select: str | None = None) -> str:
        return number(self.summary(select), self.scale, self.digits, self.stat) if self.has(select) else DASH


def _called(entry: Entry) -> str:
    return " ".join(entry.labels) or entry.records[0].run.method


def unlike_notes(records: Iterable[Record]) -> list[str]:
    """A note for each model and task whose records among these were not made alike."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.run.model, record.run.task), []).append(record)
    notes = []
    for (model, task), of in sorted(groups.items()):
        found = unlike(of, (*COMPARED, "precision"))
        still = ", but differences are over unlike precision" * any(part.startswith("precision (") for part in found)
        if found:
            notes.append(
                f"Not like with like on {model}, {task}: {', '.join(found)}. No front and no difference is taken over unlike "
                f"backbones, data or versions{still}."
            )
    return notes


def tested_note(records: Iterable[Record]) -> list[str]:
    """A note where scores are of a test set."""
    return [TEST_ROWS] * any(record.scores.test is not None for record in records)


TEST_ROWS = "Scores are of the test rows of runs that have some; the best epoch is that of the rows that chose it."
UNLIKE_SEEDS = "Cells are over unlike seeds; a seed also draws what a run is trained on where data are drawn."


def seeds_note(cells: Iterable[Sequence[Record]]) -> list[str]:
    """A note where cells of one table have runs of unlike seeds."""
    found = {frozenset(record.run.seed for record in records) for records in cells if records}
    return [UNLIKE_SEEDS] * (len(found) > 1)


def given(asked: Asked) -> list[str]:
    """A note where the runs are others than those that the table is about by itself."""
    return [f"Every run with {asked.named}."] if asked.named else []


Column = Callable[[Entry], str]


def trained(entry: Entry) -> str:
    return f"{entry.parameters:,}"


def steps(entry: Entry) -> str:
    return "/".join(map(str, sorted({record.cost.steps for record in whole(entry.records)}))) or DASH


def seconds(entry: Entry) -> str:
    """The median over the whole runs; n where some collapsed and count for no cost."""
    took = summarise_cost(entry.records, "seconds")
    return DASH if took is None else f"{took.median:.0f}" + f" (n={took.n})" * (took.n < len(entry.records))


def n(entry: Entry) -> str:
    return str(len(entry.records))


def score(metric: str, scale: float, digits: int) -> Column:
    """One metric at the epoch that `stat` reads; a dash where a run does not have it."""

    return lambda entry: replace(entry, metric=metric, scale=scale, digits=digits).printed()


def scores(stat: Statistic | None, intervals: bool = True) -> dict[str, Column]:
    """Best epoch, its interval, last epoch; with --stat last that epoch alone."""
    title = "Last epoch" if stat == "last" else "Best epoch"
    columns: dict[str, Column] = {title: Entry.printed}
    if intervals:
        columns[INTERVAL] = lambda entry: interval(entry.summary(), entry.scale, entry.digits) if entry.has() else DASH
    return {**columns, "Last epoch": lambda entry: entry.printed("last")} if stat != "last" else columns


def difference(reference: Entry) -> Column:
    """To another entry, seed by seed, with the interval of the mean."""

    def shown(entry: Entry) -> str:
        sides = _pairs(entry, reference)
        return signed(paired(*sides), entry.scale, entry.digits) if sides[0] else DASH

    return shown


def _pairs(entry: Entry, reference: Entry) -> tuple[list[float], list[float]]:
    if entry is reference or not (entry.has() and reference.has()):
        return [], []
    return common(entry.records, reference.records, entry.metric, epoch_of(entry.stat))


def rows(entries: Sequence[Entry], columns: dict[str, Column]) -> list[list[str]]:
    """One row an entry: its labels, then each column; dashes for what nobody has run."""
    return [[*e.labels, *(column(e) if e.records else DASH for column in columns.values())] for e in entries]


def over_seeds(stat: Statistic | None, usual: Statistic = "median") -> str:
    """How a note says what the numbers are: Median over seeds ± standard deviation."""
    return f"{OVER_SEEDS[stat or usual].capitalize()} ± standard deviation"
