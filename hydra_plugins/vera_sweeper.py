"""Hydra's own sweeper, over rows of published tables and less the finished runs. Hydra looks for plugins in this package."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from experiments.engine.sweeps import jobs
from vera.records import screen, sweep


class VeraSweeper(BasicSweeper):
    """The runs of `artefacts` (`experiments.engine.sweeps.jobs`), without those that `vera.records.sweep.skip` knows as done.

    Hydra composes every job, which takes a hundred times longer than reading its record.
    """

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        left = jobs(overrides, OmegaConf.select(self.config, "artefacts") or [])
        if sweep.skip is not None:
            left = [job for job in left if not sweep.skip(job)]
        screen.expect(len(left))
        return list(self.split_overrides_to_chunks(left, max_batch_size)) if left else []

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes every job once more than it is composed to run; `skip` has done so for each cell, where it is asked."""
        if sweep.skip is None:
            super().validate_batch_is_legal(batch)
