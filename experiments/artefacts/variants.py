"""Tables 6 and 7 in miniature: VeRA with one component changed at a time, mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.engine import miniature
from experiments.engine.claims import Claim, by_seed, decides
from experiments.engine.published import Row, load
from experiments.engine.render import Table
from experiments.engine.rows import Asked, difference, n, over_seeds, rows, scores, trained
from experiments.engine.verdicts import Kind, Line, Part, decide

TABLES = {"table6_mini": ("table6a", "table6b", "table6c"), "table7_mini": ("table7",)}
DIFFERENCE_NOTE = "Difference to the part's first row, seed by seed, with the 95% interval of the mean (Student's t)."
RATES = "The learning rates are those chosen for the default and stay the same."


def build(asked: Asked) -> list[Table]:
    """The rows of the published tables, run on the digits ViT."""
    return [_table(name, parts, asked) for name, parts in TABLES.items()]


def _table(name: str, parts: Sequence[str], asked: Asked) -> Table:
    made, rules, columns = [], [], {}
    for part in parts:
        published = load(part)
        component = published.title.partition(" (")[0]
        entries = asked.alike(
            [asked.entry([component, row.label], [*miniature.OVERRIDES, *_choice(row)], stat="mean") for row in published.rows]
        )
        columns = {"Trained": trained, "n": n, **scores(asked.stat, intervals=False)}
        columns["Difference to the first [95%]"] = difference(entries[0])
        made += rows(entries, columns)
        rules.append(len(made))
    notes = [
        miniature.NOTE,
        miniature.SCORE,
        " ".join([f"{over_seeds(asked.stat, 'mean')}.", *asked.searched(RATES)]),
        DIFFERENCE_NOTE,
        "Over the seeds that all rows of a component have; the claims (claims.md) read more where there are more.",
    ]
    number = name.removeprefix("table").removesuffix("_mini")
    title = f"Table {number}, {miniature.LABEL}: one component of VeRA at a time"
    return Table(name, title, ["Component", "Variant", *columns], made, notes, rules)


def _choice(row: Row) -> list[str]:
    return [f"method={row.method}", *row.settings]


def _variants(claim: Claim, asked: Asked, table: str, kind: Kind, pairs: Sequence[tuple[int, int]]) -> list[Line]:
    """Rows of an ablation against each other, by their place in the table, at the paper's size and in miniature."""
    published = load(table)
    full, small, paper = [], [], []
    for first, second in pairs:
        ours, others = published.rows[first], published.rows[second]
        label = f"{ours.label} - {others.label}"
        for key, column in published.columns.items():
            found = by_seed(asked, ours.overrides(column.task), others.overrides(column.task), column.metric)
            full.append(Part(f"{column.label}, {label}", list(found.values())))
            paper.append(f"{column.label} {ours.cells[key]} against {others.cells[key]}")
        sides = ([*miniature.OVERRIDES, *_choice(row)] for row in (ours, others))
        small.append(Part(label, list(by_seed(asked, *sides).values())))
    text = "; ".join(paper)
    return [
        decide("RoBERTa-large (points)", text, full, kind, claim.margin or 0.0),
        miniature.decide(claim, small, kind, text),
    ]


@decides("both_vectors")
def _both_vectors(claim: Claim, asked: Asked) -> list[Line]:
    return _variants(claim, asked, "table6a", "better", [(0, 1), (0, 2)])


@decides("d_init")
def _d_init(claim: Claim, asked: Asked) -> list[Line]:
    return _variants(claim, asked, "table6c", "better", [(0, 2), (1, 2)])


@decides("shared")
def _shared(claim: Claim, asked: Asked) -> list[Line]:
    return _variants(claim, asked, "table7", "equal", [(0, 1)])
