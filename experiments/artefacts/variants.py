"""Tables 6 and 7 in miniature: VeRA with one component changed at a time, mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.engine import miniature
from experiments.engine.aggregate import Cells, cell_records, paired_records, summarise_records
from experiments.engine.claims import Claim, by_seed, decides
from experiments.engine.published import Row, Statistic, load
from experiments.engine.render import DASH, Table, number, signed
from experiments.engine.verdicts import Line, Part, decide
from vera.runs.record import Record

TABLES = {"table6_mini": ("table6a", "table6b", "table6c"), "table7_mini": ("table7",)}
DIFFERENCE_NOTE = "Difference to the part's first row, seed by seed, with the 95% interval of the mean (Student's t)."


def build(cells: Cells, overrides: Sequence[str] = (), stat: Statistic | None = None) -> list[Table]:
    """The rows of the published tables, run on the digits ViT."""
    return [_table(name, parts, cells, overrides, stat or "mean") for name, parts in TABLES.items()]


def _table(name: str, parts: Sequence[str], cells: Cells, overrides: Sequence[str], stat: Statistic) -> Table:
    rows, rules = [], []
    for part in parts:
        published = load(part)
        component = published.title.partition(" (")[0]
        default: list[Record] = []
        for row in published.rows:
            found = cell_records(cells, [*miniature.OVERRIDES, *_choice(row), *overrides])
            first = row is published.rows[0]
            default = found if first else default
            if not found:
                rows.append([component, row.label, *[DASH] * 5])
                continue
            best, last = summarise_records(found), summarise_records(found, select="last")
            rows.append(
                [
                    component,
                    row.label,
                    f"{found[0].parameters.adapter:,}",
                    str(best.n),
                    number(best, 100, stat=stat),
                    number(last, 100, stat=stat),
                    DASH if first else signed(paired_records(found, default), 100),
                ]
            )
        rules.append(len(rows))
    columns = ["Component", "Variant", "Trained", "n", "Best epoch", "Last epoch", "Difference to the first [95%]"]
    notes = [
        miniature.NOTE,
        miniature.SCORE,
        "Mean ± standard deviation over seeds. The learning rates are those chosen for the default and stay the same.",
        DIFFERENCE_NOTE,
    ]
    number_of = name.removeprefix("table").removesuffix("_mini")
    return Table(name, f"Table {number_of}, {miniature.LABEL}: one component of VeRA at a time", columns, rows, notes, rules)


def _choice(row: Row) -> list[str]:
    return [f"method={row.method}", *(f"{key}={value}" for key, value in row.variant.items())]


def _variants(cells: Cells, table: str, kind: str, margin: float, pairs: Sequence[tuple[int, int]]) -> list[Line]:
    """Rows of an ablation against each other, by their place in the table, at the paper's size and in miniature."""
    published = load(table)
    full, small, paper = [], [], []
    for first, second in pairs:
        ours, others = published.rows[first], published.rows[second]
        label = f"{ours.label} - {others.label}"
        for key, column in published.columns.items():
            found = by_seed(cells, ours.overrides(column.task), others.overrides(column.task), column.metric)
            full.append(Part(f"{column.label}, {label}", list(found.values())))
            paper.append(f"{column.label} {ours.cells[key]} against {others.cells[key]}")
        sides = ([*miniature.OVERRIDES, *_choice(row)] for row in (ours, others))
        small.append(Part(label, list(by_seed(cells, *sides).values())))
    text = "; ".join(paper)
    return [
        decide("RoBERTa-large (points)", text, full, kind, margin),
        decide(miniature.SOURCE, text, small, kind, margin, miniature=True),
    ]


@decides("both_vectors")
def _both_vectors(claim: Claim, cells: Cells) -> list[Line]:
    return _variants(cells, "table6a", "better", 0.0, [(0, 1), (0, 2)])


@decides("d_init")
def _d_init(claim: Claim, cells: Cells) -> list[Line]:
    return _variants(cells, "table6c", "better", 0.0, [(0, 2), (1, 2)])


@decides("shared")
def _shared(claim: Claim, cells: Cells) -> list[Line]:
    return _variants(cells, "table7", "equal", claim.margin, [(0, 1)])
