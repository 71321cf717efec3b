"""Closed-form counts of trainable parameters and stored bytes (paper, section 3.2 and Table 1).

`shapes` is one (d_out, d_in) for each adapted matrix. For square d x d matrices the paper's formula follows: L (d + r), where
L counts matrices (two a block for query and value), not blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

BYTES_PER_VALUE = 4  # the paper stores single precision

Shape = tuple[int, int]


def vera_parameters(shapes: Iterable[Shape], rank: int) -> int:
    """Entries of b (d_out a matrix) and d (rank a matrix)."""
    return sum(d_out + rank for d_out, _ in shapes)


def stored_bytes(parameters: int) -> int:
    """Bytes of that many values in single precision, file header not counted."""
    return BYTES_PER_VALUE * parameters
