"""VeRA (the paper, section 3), as vera.nn implements it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Literal

from pydantic import Field

from vera.methods.base import TargetedMethod, mergeable
from vera.nn import VeraConfig, attach, load_adapter, merge, save_adapter, unmerge
from vera.nn.inject import vera_layers


class Vera(TargetedMethod):
    """Keys as in vera.nn.VeraConfig; `projection_seed` follows the run's seed unless it is given."""

    rank: int = Field(ge=1)
    d_init: float
    init: Literal["kaiming_uniform", "kaiming_normal", "uniform_0_0.1"]
    sharing: Literal["shared", "unique"]
    train: Literal["both", "only_b", "only_d"]
    dropout: float = Field(ge=0, lt=1)
    projection_seed: int = Field(ge=0)

    def attach(self, backbone, model_config):
        config = VeraConfig(
            rank=self.rank,
            targets=self.modules(backbone, model_config),
            projection_seed=self.projection_seed,
            d_init=self.d_init,
            init=self.init,
            sharing=self.sharing,
            train=self.train,
            dropout=self.dropout,
            modules_to_save=backbone.head if self.train_head else (),
        )
        attach(backbone.model, config)

    @contextmanager
    def merged(self, backbone):
        if not all(mergeable(layer.weight) for _, layer in vera_layers(backbone.model)):
            yield
            return
        try:
            merge(backbone.model)
            yield
        finally:
            unmerge(backbone.model)

    def load(self, backbone, model_config, folder):
        load_adapter(backbone.model, folder)

    def save(self, backbone, folder):
        save_adapter(backbone.model, folder)
