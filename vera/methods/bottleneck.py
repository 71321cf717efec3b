"""Bottleneck adapters: a small two-layer network with a residual connection at chosen places of every transformer block.

Houlsby et al. 2019 (two a block, before each residual connection), Lin et al. 2020 (one a block, with a LayerNorm of its own),
Pfeiffer et al. 2021 (one a block, in the feed-forward sublayer's Add&Norm), Rücklé et al. 2021 (none in the lower blocks).
conf/method/adapter_{h,l,p,d}.yaml are these four.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vera.errors import ConfigError
from vera.methods.base import Method, is_norm

ACTIVATIONS = {"relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu}


class Bottleneck(nn.Module):
    """delta(x) = W_up act(W_down norm(x) + c) + e for x [..., d]: 2 d size + size + d parameters, and 2 d with a LayerNorm.

    W_up starts at zero, so that a new adapter changes nothing.
    """

    def __init__(self, width: int, size: int, activation: str, layer_norm: bool, device: torch.device):
        super().__init__()
        self.norm = nn.LayerNorm(width, device=device) if layer_norm else nn.Identity()
        self.down = nn.Linear(width, size, device=device)
        self.up = nn.Linear(size, width, device=device)
        self.activation = activation
        nn.init.normal_(self.down.weight, std=0.02)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(self.down.weight.dtype)  # a half-precision backbone's; what is trained is float32
        return self.up(ACTIVATIONS[self.activation](self.down(self.norm(wide)))).to(x.dtype)

    def after(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        """A forward hook: x + delta(x) for what `module` returns."""
        return output + self(output)

    def within(self, norm: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        """A forward hook on a norm: norm(h + delta(norm(h))) for its input h."""
        return norm.forward(arguments[0] + self(output))


class BottleneckAdapters(Method):
    """Trains one Bottleneck at each of `places` in each block, and the head.

    places       attention, feedforward: the sublayer's output, before the residual connection; output: the block's output,
                 which is after Add&Norm in a post-norm model (BERT) and after the residual sum in a pre-norm one (GPT-2, ViT);
                 add_norm: inside the block's last Add&Norm, norm(h + delta(norm(h))) for the residual sum h, as AdapterHub and
                 microsoft/LoRA build Pfeiffer's; a pre-norm block ends with the sum: h + delta(h), as in AdapterHub.
    size         width of the bottleneck.
    layer_norm   whether each adapter has a trained LayerNorm before its bottleneck.
    drop         part of the blocks, from the first one on, that get none, in training and in inference; to the nearest number.
    """

    places: list[Literal["attention", "feedforward", "output", "add_norm"]] = Field(min_length=1)
    size: int = Field(ge=1)
    activation: Literal["relu", "gelu", "silu"]
    layer_norm: bool
    drop: float = Field(ge=0, lt=1)

    def attach(self, backbone, model_config):
        model = backbone.model
        model.requires_grad_(False)
        blocks = model_config.blocks(model)
        blocks = blocks[round(self.drop * len(blocks)) :]
        if not blocks:
            raise ConfigError(f"method.drop={self.drop} leaves {model_config.name} no adapter")
        device = next(model.parameters()).device
        for places in blocks:
            for place in dict.fromkeys(self.places):
                adapter = Bottleneck(model.config.hidden_size, self.size, self.activation, self.layer_norm, device)
                model.get_submodule(places["block"]).add_module(f"adapter_{place}", adapter)
                module = model.get_submodule(places["output" if place == "add_norm" else place])
                inside = place == "add_norm" and is_norm(module)
                module.register_forward_hook(adapter.within if inside else adapter.after)
        self._train_head(backbone)
