"""GPT-2, whose fused attention projection becomes three linear maps, so that methods meet `query` and `value` as usual."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.pytorch_utils import Conv1D

from vera.models.causal import CausalLM
from vera.models.layout import Layout


class Gpt2(CausalLM):
    """dropout  of embeddings, attention and residuals alike. LoRA's E2E set-up, which the paper follows, has none."""

    known_layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            blocks="transformer.h",
            attention="attn.resid_dropout",
            feedforward="mlp.dropout",
            output="",
            contraction="mlp.c_proj",
        ),
    )

    dropout: float = Field(ge=0, lt=1)

    def _load(self, source, outputs, where):
        model, tokenizer, info = super()._load(source, outputs, where)
        return split_attention(model), tokenizer, info

    def _from_config(self, config, outputs):
        return split_attention(super()._from_config(config, outputs))

    @property
    def settings(self) -> dict[str, Any]:
        return {"embd_pdrop": self.dropout, "attn_pdrop": self.dropout, "resid_pdrop": self.dropout}


PARTS = ("query", "key", "value")


class SplitProjection(nn.Module):
    """c_attn of one block as three linear maps; [..., d] -> [..., 3d], laid out as before.

    width: 3 d, the fused output; `rows` says which of it a part has.
    """

    def __init__(self, fused: nn.Module):
        super().__init__()
        d_in, self.width = fused.weight.shape  # Conv1D keeps its weight as [d_in, 3 d_out]
        for name in PARTS:
            part = self.rows(name)
            linear = nn.Linear(d_in, self.width // len(PARTS), device="meta")
            linear.weight = nn.Parameter(fused.weight.detach()[:, part].t().contiguous())
            linear.bias = nn.Parameter(fused.bias.detach()[part].clone())
            setattr(self, name, linear)

    def rows(self, part: str) -> slice:
        d_out = self.width // len(PARTS)
        index = PARTS.index(part)
        return slice(index * d_out, (index + 1) * d_out)

    def joined(self) -> Conv1D:
        """The fused projection again, as transformers has it."""
        parts = [getattr(self, name) for name in PARTS]
        fused = Conv1D(self.width, parts[0].in_features)
        fused.weight = nn.Parameter(torch.cat([part.weight.detach().t() for part in parts], dim=1))
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
        return fused

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)


def split_attention(model: nn.Module) -> nn.Module:
    """Split every self-attention's fused projection, in place. Returns the model; its logits differ by rounding alone."""
    for module in model.modules():
        if isinstance(module, GPT2Attention) and not module.is_cross_attention:
            module.c_attn = SplitProjection(module.c_attn)
    return model


def join_attention(model: nn.Module) -> nn.Module:
    """Undo `split_attention`, in place. Returns the model."""
    for module in model.modules():
        if isinstance(module, GPT2Attention) and isinstance(module.c_attn, SplitProjection):
            module.c_attn = module.c_attn.joined()
    return model
