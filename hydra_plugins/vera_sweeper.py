"""Hydra's own sweeper, which does not compose the runs that are finished. Hydra looks for plugins in packages of this name."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from vera.runs import sweep


class VeraSweeper(BasicSweeper):
    """The product of all swept keys, in Hydra's order, without the jobs that `vera.runs.sweep.skip` knows to be done.

    Hydra composes every job twice, which takes a hundred times longer than reading its record.
    """

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        if sweep.skip is None:
            return batches
        left = [[job for job in batch if not sweep.skip(job)] for batch in batches]
        return [batch for batch in left if batch]
