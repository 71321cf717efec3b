"""What Tables 6 and 7 share: VeRA with one component changed at a time, mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments import miniature
from experiments.aggregate import cell_records, paired_records, summarise_records
from experiments.render import DASH, Table, number, signed
from vera.record import Record

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper"
DIFFERENCE_NOTE = "Difference to the part's first row, seed by seed, with the 95% interval of the mean (Student's t)."

Cells = dict[str, list[Record]]


def tables(name: str, cells: Cells, overrides: Sequence[str]) -> list[Table]:
    """The table at the paper's size beside the printed numbers, and in miniature."""
    published = yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))
    return [_full(name, published, cells, overrides), _miniature(name, published, cells, overrides)]


def _choice(row: dict, *more: str) -> list[str]:
    return [f"method={row['run']['method']}", *row["run"].get("overrides", ()), *more]


def _full(name: str, published: dict, cells: Cells, overrides: Sequence[str]) -> Table:
    rows, rules, scale = [], [], published["scale"]
    for row in published["rows"]:
        part = published["parts"][row["part"]]
        found = {
            task: cell_records(cells, [f"model={published['model']}", f"task={task}", *_choice(row, *overrides)])
            for task in published["columns"]
        }
        ours = [number(summarise_records(records), scale, centre="mean") if records else DASH for records in found.values()]
        counts = sorted({record.parameters.adapter for records in found.values() for record in records})
        rows.append([part, row["label"], "paper", DASH, *(row["cells"][task] for task in published["columns"])])
        rows.append([part, row["label"], "ours", " / ".join(f"{count:,}" for count in counts) or DASH, *ours])
        rules.append(len(rows))
    columns = ["Component", "Variant", "Source", "Trained", *published["columns"].values()]
    notes = [
        "RoBERTa-large, score x 100 (accuracy; Matthews correlation for CoLA; Pearson correlation for STS-B): mean ± standard "
        "deviation over seeds of each run's best epoch, as in the paper; a dash is a cell that nobody has run. Trained "
        "parameters without the head.",
        "All other settings are those of the main experiments.",
    ]
    return Table(name, f"Table {published['table']}: {published['title']}", columns, rows, notes, rules)


def _miniature(name: str, published: dict, cells: Cells, overrides: Sequence[str]) -> Table:
    rows, rules = [], []
    defaults: dict[str, list[Record]] = {}
    for row in published["rows"]:
        part = row["part"]
        found = cell_records(cells, [*miniature.OVERRIDES, *_choice(row, *overrides)])
        first = part not in defaults
        default = defaults.setdefault(part, found)
        if first and rows:
            rules.append(len(rows))
        line = [published["parts"][part], row["label"]]
        if not found:
            rows.append([*line, *[DASH] * 5])
            continue
        best, last = summarise_records(found), summarise_records(found, select="last")
        rows.append(
            [
                *line,
                f"{found[0].parameters.adapter:,}",
                str(best.n),
                number(best, 100, centre="mean"),
                number(last, 100, centre="mean"),
                DASH if first else signed(paired_records(found, default), 100),
            ]
        )
    columns = ["Component", "Variant", "Trained", "n", "Best epoch", "Last epoch", "Difference to the first [95%]"]
    notes = [
        miniature.NOTE,
        miniature.SCORE,
        "Mean ± standard deviation over seeds. The learning rates are those chosen for the default and stay the same.",
        DIFFERENCE_NOTE,
    ]
    title = f"Table {published['table']}, {miniature.LABEL}: {published['title']}"
    return Table(f"{name}_mini", title, columns, rows, notes, rules)
