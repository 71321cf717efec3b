"""Real text on two CPU cores: MiniLM-L6 on the four small GLUE tasks, a small budget of steps."""

from __future__ import annotations

from experiments.engine.render import Table
from experiments.engine.rows import Asked, over_seeds, rows, scores, seconds, steps, trained

TASKS = {"rte": "RTE", "mrpc": "MRPC", "cola": "CoLA", "stsb": "STS-B"}
METHODS = {"lora": "LoRA r=8", "vera": "VeRA r=256"}


def build(asked: Asked) -> list[Table]:
    """One line for each task, method and metric."""
    columns = {"Trained": trained, "Metric": lambda entry: entry.metric.replace("_", " "), **scores(asked.stat)}
    columns |= {"Steps": steps, "Seconds": seconds}
    made, rules = [], []
    for task, label in TASKS.items():
        for method, method_label in METHODS.items():
            overrides = ["model=minilm", f"task={task}", f"method={method}"]
            found = asked.records(overrides)
            metrics = found[0].scores.best.metrics if found else [None]
            made += rows([asked.entry([label, method_label], overrides, metric=metric) for metric in metrics], columns)
        rules.append(len(made))
    notes = [
        f"MiniLM-L6 (BERT, d=384) on GLUE's official files. {over_seeds(asked.stat)}, x 100. A short budget on "
        "two CPU cores shows that the way from text to table works; it is not a comparison at full training length.",
        "All metrics of a run are taken at the best epoch of the task's first metric.",
        "Seconds are those of a machine with other work on it.",
    ]
    return [Table("glue_minilm", "MiniLM on four GLUE tasks, small budget", ["Task", "Method", *columns], made, notes, rules)]
