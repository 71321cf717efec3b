"""Reproducible experiments for VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def frame(results_dir: str | Path = "results", history: bool = False) -> pandas.DataFrame:
    """The records of a results folder as a pandas DataFrame: a row a run, or with `history` a row an evaluated epoch.

    vera.records.frame says what the columns are. Raises RecordError.
    """
    from vera.records.frame import frame as made  # vera.nn, which stands alone, is imported through this package

    return made(results_dir, history)
