"""LoRA (Hu et al. 2022) through PEFT: h = W0 x + (alpha / rank) B A x."""

from __future__ import annotations

from peft import LoraConfig
from pydantic import Field

from vera.methods.peft import PeftMethod


class Lora(PeftMethod):
    """rank r, scaling alpha / r, dropout on the adapter's input."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)

    def peft_config(self, backbone, model_config):
        modules = self.modules(backbone, model_config)
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(modules))
