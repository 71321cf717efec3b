"""Language models that write text: GPT-2 and its kin. They bring their own head, which no task replaces or trains apart."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from vera.errors import ModelError, one_line
from vera.models.base import Model, mask_padding

CROSS = ("encoder_attn", "crossattention")  # what transformers calls attention to an encoder
CAUSAL = {
    "is_decoder": True,
    "causal": True,
    "use_bidirectional_attention": False,
}  # what a configuration has of a causal model
TRIED = 6  # tokens of a trial
NOISE = 1e-6  # a smaller part of the largest gradient counts as none


class CausalLM(Model):
    """A model of transformers' causal family with its tokenizer, which pads on the left, as batched decoding needs.

    `head` is empty in the yaml: the output layer belongs to the backbone. A tokenizer without a padding token pads with its
    end token; attention masks and labels hide what is padded.
    """

    modality: ClassVar[str] = "generation"
    kind: ClassVar[Any] = AutoModelForCausalLM

    def _load(self, source, outputs, where):
        tokenizer = AutoTokenizer.from_pretrained(source, **where, padding_side="left")
        if tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has no end token, by which a model learns to stop; give it an eos_token")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model, info = self._pretrained(source, where, **self.settings)
        mask_padding(tokenizer, model)
        return causal(model), tokenizer, info

    def _from_config(self, config, outputs):
        return causal(self.kind.from_config(config))


def causal(model: PreTrainedModel) -> PreTrainedModel:
    """The model. Raises ModelError for what transformers makes a language model of and is none: an encoder, which sees what it
    is to predict, and the decoder of an encoder-decoder, whose attention to the encoder nothing calls. Without weights (on the
    meta device) an encoder is known by its family alone."""
    family, keys = model.config.model_type, model.config.to_dict()
    if family in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or any(name.endswith(CROSS) for name, _ in model.named_modules()):
        raise ModelError(f"{family} is the decoder of an encoder-decoder here, whose attention to the encoder nothing calls")
    key = next((key for key, value in CAUSAL.items() if key in keys and bool(keys[key]) is not value), None)
    if (key and family in MODEL_FOR_MASKED_LM_MAPPING_NAMES) if model.device.type == "meta" else looks_ahead(model):
        hint = f"; model.config.{key}={str(CAUSAL[key]).lower()} makes it causal" if key else ""
        raise ModelError(f"{family} is no causal language model: the scores of a token depend on those behind it{hint}")
    return model


def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether the scores of tokens depend on the token behind them: whether they have a gradient by its embedding, to which
    what a causal mask hides adds exactly nothing, in any precision and however tokens are routed to experts.

    Raises ModelError for a model that cannot be called with tokens alone.
    """
    embedded: list[Tensor] = []

    def watch(module: Any, given: Any, output: Tensor) -> Tensor | None:
        if embedded:
            return None
        embedded.append(output.detach().requires_grad_())
        return embedded[0].clone()  # which some families change in place

    training = model.training
    try:
        embeddings = model.get_input_embeddings()
        size = embeddings.weight.shape[0]
        ids = torch.arange(size // 2, size // 2 + TRIED, device=embeddings.weight.device)[
            None
        ]  # special tokens are at the ends
        watching = embeddings.register_forward_hook(watch)
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):  # some draw in evaluation, too
                logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
                (gradient,) = torch.autograd.grad(logits[:, :-1].float().square().sum(), embedded)
        finally:
            watching.remove()
            model.train(training)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any family's own code
        raise ModelError(f"{type(model).__name__} cannot be called with tokens alone: {one_line(error)}") from None
    by_token = gradient.float().abs().flatten(0, -2).amax(-1)
    return bool(by_token[-1] > NOISE * by_token.max())
