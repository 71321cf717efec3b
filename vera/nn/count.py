"""Closed-form counts of trained parameters and stored bytes (paper, section 3.2 and Table 1).

`shapes` is one (d_out, d_in) for each adapted matrix. For square d x d matrices the paper's formulas follow: VeRA
L (d + r), LoRA 2 L d r, where L counts matrices (two a block for query and value), not blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

BYTES_PER_VALUE = 4  # the paper stores single precision

Shape = tuple[int, int]


def vera_parameters(shapes: Iterable[Shape], rank: int, train: str = "both") -> int:
    """Trained entries of b (d_out a matrix) and d (rank a matrix)."""
    b = train in ("both", "only_b")
    d = train in ("both", "only_d")
    return sum(b * d_out + d * rank for d_out, _ in shapes)


def lora_parameters(shapes: Iterable[Shape], rank: int) -> int:
    """Entries of LoRA's two matrices, rank x d_in and d_out x rank."""
    return sum(rank * (d_out + d_in) for d_out, d_in in shapes)


def stored_bytes(parameters: int) -> int:
    """Bytes of that many values in single precision, file header not counted."""
    return BYTES_PER_VALUE * parameters
