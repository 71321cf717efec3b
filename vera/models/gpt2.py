"""GPT-2, whose fused attention projection becomes three linear maps, so that methods meet `query` and `value` as usual."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from vera.models.base import Layout
from vera.models.causal import CausalLM


class Gpt2(CausalLM):
    """dropout  of embeddings, attention and residuals alike. LoRA's E2E set-up, which the paper follows, has none."""

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("transformer.h", "attn.resid_dropout", "mlp.dropout", output="", contraction="mlp.c_proj"),
    )

    dropout: float = Field(ge=0, lt=1)

    def _load(self, source, outputs, where):
        model, tokenizer, info = super()._load(source, outputs, where)
        return split_attention(model), tokenizer, info

    def _from_config(self, config, outputs):
        return split_attention(super()._from_config(config, outputs))

    def _settings(self) -> dict[str, Any]:
        return {"embd_pdrop": self.dropout, "attn_pdrop": self.dropout, "resid_pdrop": self.dropout}


class SplitProjection(nn.Module):
    """c_attn of one block as three linear maps; [..., d] -> [..., 3d], laid out as before."""

    def __init__(self, fused: nn.Module):
        super().__init__()
        d_in, d_out = fused.weight.shape[0], fused.weight.shape[1] // 3  # Conv1D keeps its weight as [d_in, 3 d_out]
        for index, name in enumerate(("query", "key", "value")):
            part = slice(index * d_out, (index + 1) * d_out)
            linear = nn.Linear(d_in, d_out, device="meta")
            linear.weight = nn.Parameter(fused.weight.detach()[:, part].t().contiguous())
            linear.bias = nn.Parameter(fused.bias.detach()[part].clone())
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)


def split_attention(model: nn.Module) -> nn.Module:
    """Split every self-attention's fused projection, in place. Returns the model; its logits differ by rounding alone."""
    for module in model.modules():
        if isinstance(module, GPT2Attention) and not module.is_cross_attention:
            module.c_attn = SplitProjection(module.c_attn)
    return model
