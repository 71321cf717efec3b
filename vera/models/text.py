"""Text encoders with a classification or regression head: RoBERTa, MiniLM and their kin."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vera.models.base import Layout, Model

# Their layers mix a row's tokens with the padding of its batch: without a mask, or by a convolution over it.
MIX_PADDING = {"fnet": "FNet", "convbert": "ConvBERT"}


def agree_on_padding(tokenizer: Any, model: nn.Module) -> None:
    """Give a classifier and its tokenizer one padding token, on the right, so that no row's scores depend on its batch.

    A language model finds a row's last token by its configuration's id, and GPT-2 counts positions from the left, padding
    included. XLNet, whose positions are relative and whose last place is read, keeps its side.

    Raises ValueError for a tokenizer with neither a padding nor an end token, and for MIX_PADDING.
    """
    if (kind := model.config.model_type) in MIX_PADDING:
        raise ValueError(f"a row's scores in {MIX_PADDING[kind]} depend on the padding of its batch, and so on batch sizes")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has neither a padding nor an end token; give it a pad_token")
    if model.config.model_type != "xlnet":
        tokenizer.padding_side = "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def reads_last_token(model: nn.Module) -> bool:
    """Whether a classifier scores the last token that is not padding, as transformers' language models do."""
    return hasattr(model, "score") or model.config.model_type in ("ctrl", "modernbert-decoder")


class TextClassifier(Model):
    """A model of transformers' sequence-classification family with its tokenizer."""

    modality: ClassVar[str] = "text"
    known_layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("encoder.layer", "attention.output.dropout", "output.dropout", "output.LayerNorm", "output.dense"),
    )

    def _load(self, source, outputs, where):
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            **where,
            use_safetensors=True,
            num_labels=outputs,
            problem_type="regression" if outputs == 1 else "single_label_classification",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **self.config,
        )
        agree_on_padding(tokenizer, model)
        return model, tokenizer, info

    def _from_config(self, config, outputs):
        config.num_labels = outputs
        return AutoModelForSequenceClassification.from_config(config)
