"""Table 2: GLUE with RoBERTa, each published row above ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments.aggregate import cell_records, summarise_records
from experiments.render import DASH, Table, interval, number
from vera.record import Record

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "paper" / "table2.yaml"
MODELS = {"roberta_base": "Base", "roberta_large": "Large"}


def build(cells: dict[str, list[Record]], overrides: Sequence[str] = ()) -> list[Table]:
    """The table, and the same cells one a line with everything that a reviewer asks for. `overrides` apply to every run."""
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    tasks, scale = published["columns"], published["scale"]
    rows: list[list[str]] = []
    details: list[list[str]] = []
    rules: list[int] = []
    for row in published["rows"]:
        label, model = row["label"], row["model"]
        rows.append([MODELS[model], label, "paper", row["params"], *(row["cells"][task] for task in tasks), row["average"]])
        if "run" in row:
            rows.append(_ours(cells, row, model, tasks, scale, overrides, details))
        rules.append(len(rows))
    columns = ["Model", "Method", "Source", "Trained", *tasks.values(), "Avg."]
    notes = [
        "Score x 100: accuracy; Matthews correlation (CoLA); Pearson correlation (STS-B). Trained parameters without the head.",
        "ours: median over seeds of each run's best epoch ± standard deviation; n is given where it is not 5; "
        "a dash is a cell that nobody has run.",
        "paper: as printed. The spread of its VeRA rows is not defined there. The RoBERTa-base LoRA row starts MRPC, RTE and "
        "STS-B from MNLI; ours does not.",
    ]
    table = Table("table2", "Table 2: " + published["title"], columns, rows, notes, rules)
    if not details:
        return [table]
    header = ["Model", "Method", "Task", "n", "Median best", "95% interval", "Mean", "Std", "Median last", "Paper"]
    return [table, Table("table2_cells", "Table 2, cell by cell", header, details)]


def _ours(cells, row, model, tasks, scale, overrides, details) -> list[str]:
    method = row["run"]["method"]
    found: dict[str, list[Record]] = {}
    for task in tasks:
        choice = [f"model={model}", f"task={task}", f"method={method}", *row["run"].get("overrides", ()), *overrides]
        found[task] = cell_records(cells, choice)
    values, medians = [], []
    for task, records in found.items():
        if not records:
            values.append(DASH)
            continue
        best = summarise_records(records)
        last = summarise_records(records, select="last")
        medians.append(best.median)
        values.append(number(best, scale))
        details.append(
            [
                MODELS[model],
                row["label"],
                tasks[task],
                str(best.n),
                f"{scale * best.median:.1f}",
                interval(best, scale),
                f"{scale * best.mean:.1f}",
                DASH if best.std is None else f"{scale * best.std:.1f}",
                f"{scale * last.median:.1f}",
                row["cells"][task],
            ]
        )
    counts = {record.parameters.adapter for records in found.values() for record in records}
    trained = " / ".join(f"{count:,}" for count in sorted(counts)) or DASH
    average = f"{scale * statistics.fmean(medians):.1f}" if len(medians) == len(tasks) else DASH
    return [MODELS[model], row["label"], "ours", trained, *values, average]
