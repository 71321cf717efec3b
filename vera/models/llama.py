"""Llama and Llama 2, with 4-bit frozen weights (NF4, Dettmers et al. 2023) through bitsandbytes, or without."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any, Literal

import torch
from transformers import BitsAndBytesConfig

from vera.config import Operational
from vera.errors import ConfigError
from vera.models.causal import CausalLM


class Llama(CausalLM):
    """quantisation            nf4: every linear map but the head in 4 bits, scales quantised once more, products in bf16;
                            none: bf16 weights. Either way what a method trains is float32, with method=full all.
    gradient_checkpointing  less memory for one more forward pass; the same numbers.
    """

    quantisation: Literal["nf4", "none"]
    gradient_checkpointing: Annotated[bool, Operational] = False

    def _load(self, source, outputs, where):
        if self.quantisation == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "model.quantisation=nf4 needs bitsandbytes (pip install -c constraints.txt -e '.[quantise]'); "
                "model.quantisation=none does without"
            )
        model, tokenizer, info = super()._load(source, outputs, where)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # Otherwise the first evaluation on such a CPU packs the frozen weights anew, in place.
                module.support_avx512bf16_for_cpu = False
                module.compute_type_is_set = False  # which the trial of `causal` leaves to the run's first pass
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model, tokenizer, info

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"dtype": torch.bfloat16}
        if self.quantisation == "nf4":
            settings["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        return settings
