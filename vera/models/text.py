"""Text encoders with a classification or regression head: RoBERTa, MiniLM and their kin."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from vera.models.base import Model, mask_padding
from vera.models.layout import Layout

TEXTS = ["a", "a cat", "a cat sees the dog"]


def agree_on_padding(tokenizer: Any, model: nn.Module) -> None:
    """Give a classifier and its tokenizer one padding token, on the right, so that no row's scores depend on its batch.

    A language model finds a row's last token by its configuration's id, and GPT-2 counts positions from the left, padding
    included. XLNet, whose positions are relative and whose last place is read, is padded on the left.

    Raises ValueError for a tokenizer with neither a padding nor an end token, and for a model that reads its padding, or whose
    attention follows from the longest row of a batch.
    """
    if getattr(model.config, "attention_type", None) == "block_sparse":  # BigBird's
        raise ValueError("sparse attention ends for good at a batch of short rows; model.config.attention_type=original_full")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has neither a padding nor an end token; give it a pad_token")
    mask_padding(tokenizer, model)
    tokenizer.padding_side = "left" if model.config.model_type == "xlnet" else "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    if reads_padding(tokenizer, model):
        raise ValueError(f"a row's scores in {type(model).__name__} depend on the padding of its batch, and so on batch sizes")


def reads_padding(tokenizer: Any, model: nn.Module) -> bool:
    """Whether a row's scores depend on its padding: on its length, as in Funnel and CANINE, which pool tokens, or on the tokens
    under it, as in FNet, which has no mask, and in ConvBERT, Nystromformer and MobileBERT, which look at neighbours."""
    if model.config.model_type in ("funnel", "canine"):
        return True
    words = tokenizer(TEXTS[-1], add_special_tokens=False)["input_ids"]
    if reads_last_token(model) or not words:  # which comes before the padding, and sees none of it
        return False
    rows = tokenizer(TEXTS, return_attention_mask=True)
    longest = max(map(len, rows["input_ids"]))
    batch = tokenizer.pad(
        rows, padding="max_length", max_length=longest + 8, return_attention_mask=True, return_tensors="pt", verbose=False
    )
    others = batch["input_ids"].where(batch["attention_mask"].bool(), words[0])
    taken = inspect.signature(model.forward).parameters
    training = model.training
    scores = []
    for ids in (batch["input_ids"], others):
        given = {key: value for key, value in {**batch, "input_ids": ids}.items() if key in taken}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some draw in evaluation, too
            scores.append(model.eval()(**given).logits)
    model.train(training)
    return not torch.equal(*scores)


def reads_last_token(model: nn.Module) -> bool:
    """Whether a classifier scores the last token that is not padding, as transformers' language models do."""
    return hasattr(model, "score") or model.config.model_type in ("ctrl", "modernbert-decoder")


class TextClassifier(Model):
    """A model of transformers' sequence-classification family with its tokenizer."""

    modality: ClassVar[str] = "text"
    kind: ClassVar[Any] = AutoModelForSequenceClassification
    known_layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            blocks="encoder.layer",
            attention="attention.output.dropout",
            feedforward="output.dropout",
            output="output.LayerNorm",
            contraction="output.dense",
        ),
    )

    def _load(self, source, outputs, where):
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        problem = "regression" if outputs == 1 else "single_label_classification"
        head = {"num_labels": outputs, "problem_type": problem, "ignore_mismatched_sizes": True}
        model, info = self._pretrained(source, where, **head)
        agree_on_padding(tokenizer, model)
        return model, tokenizer, info
