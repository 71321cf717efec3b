"""Language models that write text: GPT-2 and its kin. They bring their own head, which no task replaces or trains apart."""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vera.models.base import Model


class CausalLM(Model):
    """A model of transformers' causal family with its tokenizer, which pads on the left, as batched decoding needs.

    `head` is empty in the yaml: the output layer belongs to the backbone. A tokenizer without a padding token pads with its
    end token; attention masks and labels hide what is padded.
    """

    modality: ClassVar[str] = "generation"

    def _load(self, source, outputs, where):
        tokenizer = AutoTokenizer.from_pretrained(source, **where, padding_side="left")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            **where,
            use_safetensors=True,
            **{"dtype": torch.float32, **self.settings, **self.config},
            output_loading_info=True,
        )
        return model, tokenizer, info

    def _from_config(self, config, outputs):
        return AutoModelForCausalLM.from_config(config)
