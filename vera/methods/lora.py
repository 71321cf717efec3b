"""LoRA (Hu et al. 2022) through PEFT: h = W0 x + (alpha / rank) B A x."""

from __future__ import annotations

import json
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from safetensors.torch import save as safetensors_bytes

from vera.files import write_atomic
from vera.methods.base import TargetedMethod


class Lora(TargetedMethod):
    """rank r, scaling alpha / r, dropout on the adapter's input. Adapter files are PEFT's."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)

    def peft_config(self, modules: tuple[str, ...]) -> LoraConfig:
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(modules))

    def attach(self, backbone, model_config):
        backbone.model.requires_grad_(False)
        inject_adapter_in_model(self.peft_config(self.modules(backbone, model_config)), backbone.model)
        self._train_head(backbone)

    @contextmanager
    def merged(self, backbone):
        layers = [module for module in backbone.model.modules() if isinstance(module, LoraLayer)]
        originals = [layer.get_base_layer().weight.data for layer in layers]
        try:
            with torch.no_grad():
                for layer, original in zip(layers, originals, strict=True):
                    layer.get_base_layer().weight.data = original.clone()
                    layer.merge()
            yield
        finally:
            for layer, original in zip(layers, originals, strict=True):
                layer.get_base_layer().weight.data = original  # PEFT's unmerge subtracts, which loses bits
                layer.merged_adapters.clear()

    def save(self, backbone, folder):
        tensors = {f"base_model.model.{name.replace('.default.', '.')}": t for name, t in self.trained(backbone).items()}
        layers = [name for name, module in backbone.model.named_modules() if isinstance(module, LoraLayer)]
        config = self.peft_config(tuple(layers)).to_dict()
        config.update(
            inference_mode=True, target_modules=sorted(layers), modules_to_save=list(backbone.head) if self.train_head else None
        )
        write_atomic(folder / "adapter_model.safetensors", safetensors_bytes(tensors, {"format": "pt"}))
        write_atomic(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
