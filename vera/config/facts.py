"""How many rows a run takes, known from its settings alone: without the data, and without torch."""

from __future__ import annotations

from typing import Any


def row_counts(task: dict[str, Any]) -> tuple[int, int]:
    """Rows that a run trains on, and that it evaluates, by its task's `facts` and keys; 0 where they do not say."""
    facts = task.get("facts") or {}
    train, scored = facts.get("train_rows", 0), facts.get("eval_rows", 0)
    if task.get("train_per_class"):
        classes = task["classes"]
        drawn = task["train_per_class"] * (classes if isinstance(classes, int) else len(classes))
        return drawn, scored if task.get("eval_splits") else max(0, train + scored - drawn)  # else all that is not drawn
    return min(train, task.get("rows") or train), task.get("held_out") or scored
