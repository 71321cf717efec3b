"""Table 7: one pair of frozen matrices for all layers, or one for each."""

from __future__ import annotations

from collections.abc import Sequence

from experiments import variants
from experiments.render import Table
from vera.record import Record


def build(cells: dict[str, list[Record]], overrides: Sequence[str] = ()) -> list[Table]:
    """RoBERTa-large on four GLUE tasks beside the printed numbers, and the same variants in miniature."""
    return variants.tables("table7", cells, overrides)
