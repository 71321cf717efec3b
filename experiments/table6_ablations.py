"""Table 6: which vectors are trained, how the frozen matrices are drawn, where d starts."""

from __future__ import annotations

from collections.abc import Sequence

from experiments import variants
from experiments.render import Table
from vera.record import Record


def build(cells: dict[str, list[Record]], overrides: Sequence[str] = ()) -> list[Table]:
    """RoBERTa-large on MRPC and RTE beside the printed numbers, and the same variants in miniature."""
    return variants.tables("table6", cells, overrides)
