"""Language models that write text: GPT-2 and its kin. They bring their own head, which no task replaces or trains apart."""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from vera.errors import ModelError
from vera.models.base import Model, check_padding


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
        check_padding(tokenizer, model)
        return causal(model), tokenizer, info

    def _from_config(self, config, outputs):
        return causal(AutoModelForCausalLM.from_config(config))


def causal(model: PreTrainedModel) -> PreTrainedModel:
    """Raises ModelError for families that transformers makes another language model of than they are: an encoder, which then
    sees what it is to predict, and the decoder of an encoder-decoder, whose attention to the encoder nothing calls."""
    family = model.config.model_type
    if family in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{family} is an encoder-decoder, of which a language model has the decoder alone")
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model.config, "is_decoder", False):
        raise ModelError(f"{family} is an encoder, which sees what comes next; model.config.is_decoder=true makes it causal")
    return model
