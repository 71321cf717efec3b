"""A published table beside ours: every printed row, below it the runs that repeat it, and what a reviewer asks for."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from experiments.engine.accounting import trained
from experiments.engine.aggregate import (
    PAPER_SEEDS,
    WORKED,
    Cells,
    Summary,
    common,
    deviation_p,
    epoch_of,
    lost,
    paired,
    permutation_p,
    summarise_cost,
    summarise_records,
    unlike,
    whole,
)
from experiments.engine.judged import Judgements
from experiments.engine.published import Column, Published, Row, Statistic, load, number_in, run_of
from experiments.engine.render import DASH, INTERVAL, Sourced, Table, figure, interval, number, p_value, signed
from experiments.engine.rows import Asked, seeds_note
from vera.records.record import Record

STATS = {
    "median": "median over seeds of each run's best epoch",
    "mean": "mean over seeds of each run's best epoch",
    "last": "median over seeds of each run's last epoch",
    "best": "the best seed at its best epoch (what selection can do, not a result)",
}


def compare(name: str, asked: Asked) -> list[Table]:
    """results/paper/<name>.yaml against the records: the table, its cells one a line, and VeRA against LoRA seed by seed.

    The statistic is that of the row's own study, where its source says, or the paper's for this table, unless another is asked
    for. The second and third table appear with the first record. Raises ConfigError for a row that no config can produce and
    RecordError for a record without the metric.
    """
    published = load(name)
    stat = asked.stat or published.stat
    rows: list[list[str]] = []
    details: list[list[str]] = []
    rules: list[int] = []
    placed: list[list[Record]] = []
    averages = any(row.average for row in published.rows)
    for row in published.rows:
        group = published.models[row.model]
        if row.cells:
            printed = [_named(row.cells[key], row, key, published) for key in published.columns]
            rows.append(
                [group, row.label, published.source, row.params or DASH, *printed, *([row.average or DASH] if averages else [])]
            )
        if row.method is not None:
            found = {task: _records(name, row, task, asked) for task in published.tasks()}
            own = _like(published, row, asked.stat)
            rows.append(_ours(published, row, found, own, averages, asked.overrides))
            placed += [_scored(column, found[column.task], epoch_of(own)) for column in published.columns_of(row).values()]
            details += _details(published, row, found)
        elif untrained := _untrained(published, row, asked.cells, averages):
            rows.append(untrained)
        rules.append(len(rows))
    columns = ["Model", "Method", "Source", "Trained", *(c.label for c in published.columns.values()), *(["Avg."] * averages)]
    notes = [
        *published.notes,
        f"ours: {STATS[stat]} ± standard deviation; n is given where it is not 5; a dash is a cell that nobody has run, or "
        "whose runs have no such score.",
        f"Trained: parameters outside the head; {published.source} as printed, ours counted on the adapted model.",
    ]
    if isinstance(asked.cells, Judgements):
        notes += [note for column in published.columns.values() for note in asked.cells.notes.get(column.score, [])]
    if any(_like(published, row, asked.stat) != stat for row in published.rows if row.method):
        notes.append(f"A row whose source says what is printed has that in place of it ({name}_studies).")
    notes += seeds_note(placed)
    if any(column.cost for column in published.columns.values()):
        notes += [COST_NOTE] * (stat == "best")
        ran = [record for records in asked.shown.values() for record in records]
        if work := unlike(ran, (*WORKED, "threads")):
            notes.append(f"Time and memory are not like with like: {', '.join(work)}.")
        if len(whole(ran)) < len(ran):
            notes.append("A run that collapsed counts for no cost.")
    tables = [Table(name, published.heading, columns, rows, notes, rules)]
    if details:
        heads = [*DETAILS, published.source.capitalize()]
        tables.append(Table(f"{name}_cells", f"{published.called}, cell by cell", heads, details, [SELECTION]))
    tests = _tests(name, published, asked, stat)
    if tests:
        tables.append(
            Table(
                f"{name}_tests",
                f"{published.called}: VeRA against LoRA, seed by seed",
                TESTS,
                tests,
                [TEST_NOTE.format(epoch_of(stat))],
            )
        )
    return tables


STUDIES = ["Model", "Method", "Trained", "Run by", "Seeds", "Printed", "Epoch", "Ours beside it"]
STUDY_NOTE = "A dash: the source does not say, or was not to be had."
BRIEF = {"median": "median, best epoch", "mean": "mean, best epoch", "last": "median, last epoch", "best": "best seed"}
DETAILS = [
    "Model",
    "Method",
    "Column",
    "n",
    "Median best",
    INTERVAL,
    "Mean best",
    "Std",
    "Median last",
    "Selection",
]
SELECTION = "Selection: median best minus median last epoch, what choosing the epoch on the evaluation set adds to a score."
TESTS = ["Model", "Column", "n", "Mean difference [95%]", "p"]
TEST_NOTE = (
    "VeRA - LoRA over common seeds at the {} epoch, with Student's interval, and a sign-flip permutation test, two-sided. Five "
    "pairs cannot give less than p = 0.0625."
)
COST_NOTE = "A cost has no best epoch and no best seed: it is the median over seeds."


def _records(name: str, row: Row, task: str, asked: Asked) -> list[Record]:
    run_of(name, row, task, asked.overrides)  # names file and row when it cannot be composed
    return asked.records(row.overrides(task))


def _like(published: Published, row: Row, asked: Statistic | None) -> Statistic:
    """The statistic of ours that is compared with a row."""
    own = None if published.scored or row.study is None else row.study.stat
    return asked or own or published.stat


def _comparable(published: Published, row: Row) -> bool:
    """Whether ours can be of the same epoch, and over the seeds as what is printed is."""
    study = row.study
    return study is None or not (study.unlike or (published.scored == "last" and study.epoch == "best"))


def _named(text: str, row: Row, key: str, published: Published) -> str:
    """A figure with its metric, where that is not the column's."""
    metric = row.metrics.get(key)
    also = published.columns[key].also
    return f"{text} {also[metric]}" if metric in also and text != DASH else text


def studies(name: str, stat: Statistic | None = None) -> list[Table]:
    """Who ran which row of a published table and how, and what of ours is beside it; [] where no row says so."""
    published = load(name)
    lines = [_study(published, row, stat) for row in published.rows if row.study]
    title = f"{published.called}: who ran which row"
    return [Table(f"{name}_studies", title, STUDIES, lines, [STUDY_NOTE])] if lines else []


def _study(published: Published, row: Row, asked: Statistic | None) -> list[str]:
    study, ours = row.study, BRIEF[_like(published, row, asked)]
    if not _comparable(published, row):
        ours += ": not like with like, not compared"
    elif study.stat is None:
        ours += "; theirs is not known"
    known = [str(study.seeds) if study.seeds else DASH, study.over or DASH, study.epoch or DASH]
    return [published.models[row.model], row.label, row.params or DASH, study.by, *known, ours if row.method else DASH]


def _summary(column: Column, records: Sequence[Record], select: str) -> Summary | None:
    records = _scored(column, records, select)
    if not records:
        return None
    return summarise_cost(records, column.cost) if column.cost else summarise_records(records, column.score, select)


def _scored(column: Column, records: Sequence[Record], select: str) -> list[Record]:
    """The records with something in this column: runs are judged later than they are made, if at all, and a test set is not
    scored at the last epoch. A cost is of the whole run."""
    if column.judged:
        return [r for r in records if r.has(column.score, select)]
    return list(records) if column.cost or all(r.reported(select) for r in records) else []


def _ours(published: Published, row: Row, found: Cells, stat: Statistic, averages: bool, given: Sequence[str]) -> list[str]:
    columns = published.columns_of(row)
    summaries = {k: _summary(c, found[c.task], epoch_of(stat)) for k, c in columns.items()}
    stats: dict[str, Statistic] = {k: "median" if c.cost and stat == "best" else stat for k, c in columns.items()}
    texts = {k: _named(number(summaries[k], c.scale, c.digits, stats[k]), row, k, published) for k, c in columns.items()}
    printed = row.cells if _comparable(published, row) else {}
    seeds = (row.study and row.study.seeds) or PAPER_SEEDS
    values = [_beside(texts[k], summaries[k], printed.get(k), c, stats[k], seeds) for k, c in columns.items()]
    counts = {record.parameters.adapter for records in found.values() for record in records} or trained(row, given)
    line = [published.models[row.model], row.label, "ours", " / ".join(f"{n:,}" for n in sorted(counts)) or DASH, *values]
    if averages:
        whole = None not in summaries.values()
        centres = [c.scale * summaries[k].centre(stats[k]) for k, c in published.columns.items()] if whole else []
        line.append(figure(statistics.fmean(centres)) if whole else DASH)
    return line


def _beside(text: str, summary: Summary | None, printed: str | None, column: Column, stat: Statistic, seeds: int) -> str:
    """Our figure with its deviation from the printed one, whose ± is over `seeds` runs, where there is one to compare with.

    A best seed is not tested: tests compare means."""
    if summary is None or summary.collapsed:
        return text
    theirs = None if printed is None else number_in(printed)
    if theirs is None:
        return Sourced(text, summary.cell)
    value, beside = theirs
    centre, spread = value / column.scale, None if beside is None else beside / column.scale
    deviation = column.scale * summary.centre(stat) - value
    p = deviation_p(summary.values, centre, spread, seeds) if stat != "best" else None
    return Sourced(text, summary.cell, deviation, p)


def _untrained(published: Published, row: Row, cells: Cells, averages: bool) -> list[str] | None:
    """What judges say of a backbone as it is; None when they have not been asked."""
    bare = cells.bare if isinstance(cells, Judgements) else {}
    scores = [(column, bare.get((row.model, column.score))) for column in published.columns.values()]
    if all(score is None for _, score in scores):
        return None
    values = [DASH if score is None else f"{c.scale * score:.{c.digits}f} (n=1)" for c, score in scores]
    return [published.models[row.model], row.label, "ours", DASH, *values, *([DASH] if averages else [])]


def _details(published: Published, row: Row, found: Cells) -> list[list[str]]:
    lines = []
    for key, column in published.columns_of(row).items():
        best, last = (_summary(column, found[column.task], select) for select in ("best", "last"))
        if best is None:
            continue

        def text(value: float | None, column=column) -> str:
            return DASH if value is None else figure(column.scale * value, column.digits)

        lines.append(
            [
                published.models[row.model],
                row.label,
                _named(column.label, row, key, published),
                str(best.n),
                text(best.median),
                interval(best, column.scale, column.digits),
                text(best.mean),
                text(best.std),
                text(last and last.median),
                text(last and best.median - last.median),
                row.cells.get(key, DASH),
            ]
        )
    return lines


def _tests(name: str, published: Published, asked: Asked, stat: Statistic) -> list[list[str]]:
    lines = []
    for model, label in published.models.items():
        ours, others = ([row for row in published.rows if (row.model, row.method) == (model, m)] for m in ("vera", "lora"))
        both = list(itertools.product(ours, others))
        for (vera, lora), column in itertools.product(both, published.columns.values()):
            if column.score is None:
                continue
            epoch = epoch_of(stat)
            one, other = (_scored(column, _records(name, row, column.task, asked), epoch) for row in (vera, lora))
            sides = common(one, other, column.score, epoch)
            which = label if len(both) == 1 and not (vera.variant or lora.variant) else f"{label}, {vera.label} - {lora.label}"
            if why := lost(one, other):
                lines.append([which, column.label, DASH, why, DASH])
            elif sides[0]:
                difference = signed(paired(*sides), column.scale, column.digits)
                lines.append([which, column.label, str(len(sides[0])), difference, p_value(permutation_p(*sides))])
    return lines
