"""Real text on two CPU cores: MiniLM-L6 on the four small GLUE tasks, a small budget of steps."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.engine.aggregate import Cells, cell_records, summarise, summarise_records
from experiments.engine.published import Statistic
from experiments.engine.render import DASH, INTERVAL, Table, interval, number

TASKS = {"rte": "RTE", "mrpc": "MRPC", "cola": "CoLA", "stsb": "STS-B"}
METHODS = {"lora": "LoRA r=8", "vera": "VeRA r=256"}


def build(cells: Cells, overrides: Sequence[str] = (), stat: Statistic | None = None) -> list[Table]:
    """One line for each task, method and metric."""
    rows, rules = [], []
    for task, task_label in TASKS.items():
        for method, label in METHODS.items():
            found = cell_records(cells, ["model=minilm", f"task={task}", f"method={method}", *overrides])
            if not found:
                rows.append([task_label, label, *[DASH] * 7])
                continue
            for metric in found[0].scores.best.metrics:
                best = summarise_records(found, metric)
                last = summarise_records(found, metric, "last")
                steps = sorted({record.cost.steps for record in found})
                rows.append(
                    [
                        task_label,
                        label,
                        f"{found[0].parameters.adapter:,}",
                        metric.replace("_", " "),
                        number(best, 100),
                        interval(best, 100),
                        number(last, 100),
                        "/".join(map(str, steps)),
                        f"{summarise([record.cost.seconds for record in found]).median:.0f}",
                    ]
                )
        rules.append(len(rows))
    columns = ["Task", "Method", "Trained", "Metric", "Best epoch", INTERVAL, "Last epoch", "Steps", "Seconds"]
    notes = [
        "MiniLM-L6 (BERT, d=384) on GLUE's official files. Median over seeds ± standard deviation, x 100. A short budget on "
        "two CPU cores shows that the way from text to table works; it is not a comparison at full training length.",
        "All metrics of a run are taken at the best epoch of the task's first metric.",
        "Seconds are those of a machine with other work on it.",
    ]
    return [Table("glue_minilm", "MiniLM on four GLUE tasks, small budget", columns, rows, notes, rules)]
