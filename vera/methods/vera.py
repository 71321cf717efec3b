"""VeRA (the paper, section 3), as vera.nn implements it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import ClassVar, Literal

from pydantic import Field

from vera.io.files import write_atomic
from vera.methods.base import TargetedMethod, mergeable
from vera.models.gpt2 import SplitProjection
from vera.nn import VeraConfig, attach, load_adapter, merge, save_adapter, unmerge
from vera.nn.base_layer import obstacle
from vera.nn.inject import vera_layers
from vera.nn.linear import VeraLinear
from vera.nn.projection import INITS

SPLIT = """This VeRA adapter is for GPT-2 with its attention split: query, key and value are linear maps of their own
(vera.models.gpt2.split_attention), each with its own d and the first rows of B. PEFT's VeRA on the fused c_attn has one d for
all three and other rows of B, so it cannot say the same, and refuses this folder. As a LoRA it fits plain transformers and PEFT
exactly:

    python scripts/export.py RUN_FOLDER OUT --to lora
"""


class VeraLike(TargetedMethod):
    """VeRA or a variant of it. Keys as in vera.nn.VeraConfig; `projection_seed` follows the run's seed unless it is given.

    layer: the adapted layer; a variant has a subclass.
    """

    layer: ClassVar[type[VeraLinear]] = VeraLinear

    rank: int = Field(ge=1)
    d_init: float
    init: Literal[tuple(INITS)]  # type: ignore[valid-type]
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
        attach(backbone.model, config, layer=self.layer)

    @contextmanager
    def merged(self, backbone):
        layers = [layer.base_layer for _, layer in vera_layers(backbone.model)]
        if not all(obstacle(layer) is None and mergeable(layer.weight) for layer in layers):
            yield
            return
        try:
            merge(backbone.model)
            yield
        finally:
            unmerge(backbone.model)


class Vera(VeraLike):
    """The method of the paper, kept in PEFT's format."""

    def load(self, backbone, model_config, folder):
        load_adapter(backbone.model, folder)

    def save(self, backbone, folder):
        save_adapter(backbone.model, folder)
        if any(isinstance(module, SplitProjection) for module in backbone.model.modules()):
            write_atomic(folder / "README.md", SPLIT)
