"""Text encoders with a classification or regression head: RoBERTa, MiniLM and their kin."""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vera.models.base import Layout, Model


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
        if tokenizer.pad_token_id is None:  # language models as classifiers
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer, info

    def _from_config(self, config, outputs):
        config.num_labels = outputs
        return AutoModelForSequenceClassification.from_config(config)
