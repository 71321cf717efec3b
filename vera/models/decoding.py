"""Batched decoding with transformers' own beam search: left padding, KV cache, and n-gram blocking that spares the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from transformers import GenerationConfig, LogitsProcessor, NoRepeatNGramLogitsProcessor

from vera.config import Strict
from vera.errors import ConfigError
from vera.models.base import Backbone


class Decoding(Strict):
    """How text is written. All values go into a run's identity.

    beams            width of the beam search; 1 is greedy.
    length_penalty   a finished beam scores its summed log-probability / length ** length_penalty, length without the prompt.
    no_repeat_ngram  no n-gram of this size twice in what is written (0: no such rule). The prompt does not count, as in LoRA's
                     decoder and unlike transformers' `no_repeat_ngram_size`, which forbids to copy a name out of the prompt.
    max_new_tokens   longest output.
    stop             texts that end an output, beside the model's end token. One that is a single token ends the search there.
    """

    beams: int = Field(ge=1)
    length_penalty: float
    no_repeat_ngram: int = Field(ge=0)
    max_new_tokens: int = Field(ge=1)
    stop: list[str] = []


class _WrittenOnly(LogitsProcessor):
    """Another processor, shown the tokens after the prompt alone."""

    def __init__(self, inner: LogitsProcessor, prompt_length: int):
        self.inner, self.prompt_length = inner, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return self.inner(input_ids[:, self.prompt_length :], scores)


class Draws(LogitsProcessor):
    """Lets a greedy search draw each text from softmax(logits / temperature) among the `top_k` likeliest tokens (0: all): the
    largest of logits / temperature + Gumbel noise is such a draw.

    One temperature and one CPU generator a text, so that its noise depends neither on the batch it is in nor on the device. At
    temperature 0 the likeliest token is taken.
    """

    def __init__(self, temperatures: Sequence[float], generators: Sequence[torch.Generator], top_k: int):
        self.temperatures, self.generators, self.top_k = temperatures, generators, top_k

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        drawn = scores.clone()
        for row, (temperature, generator) in enumerate(zip(self.temperatures, self.generators, strict=True)):
            if temperature > 0:
                likeliest = scores[row].topk(min(self.top_k or scores.shape[1], scores.shape[1]))
                waits = torch.empty(len(likeliest.values)).exponential_(generator=generator)
                noise = -waits.clamp_min(torch.finfo(waits.dtype).tiny).log().to(scores.device)
                drawn[row] = -torch.inf
                drawn[row, likeliest.indices] = likeliest.values.float() / temperature + noise
        return drawn


def generate(backbone: Backbone, prompts: list[list[int]], decoding: Decoding, batch_size: int) -> list[str]:
    """One text for each prompt (token ids), in their order, each cut before the first of `decoding.stop`.

    Raises ConfigError like `generate_ids`.
    """
    return [text_of(backbone, ids, decoding.stop) for ids in generate_ids(backbone, prompts, decoding, batch_size)]


@torch.inference_mode()
def generate_ids(
    backbone: Backbone,
    prompts: list[list[int]],
    decoding: Decoding,
    batch_size: int,
    chosen_by: Callable[[list[int]], LogitsProcessor] | None = None,
) -> list[list[int]]:
    """What is written after each prompt, up to and without the token that ends it; `batch_size` prompts at a time, by length.

    chosen_by: from the indices of the prompts of a batch to what changes their scores last (Draws); greedy search only.
    Raises ConfigError when a prompt and max_new_tokens are more than the model can read.
    """
    tokenizer, model = backbone.preprocess, backbone.model
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prompts)) + decoding.max_new_tokens
    if limit is not None and longest > limit:
        raise ConfigError(f"the longest prompt and max_new_tokens are {longest} tokens; this model reads {limit}")
    ends = [tokenizer.eos_token_id]
    for text in decoding.stop:
        ids = tokenizer.encode(text, add_special_tokens=False)
        ends += ids if len(ids) == 1 else []
    settings = GenerationConfig(
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        early_stopping=False,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    written: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenizer.pad(
            {"input_ids": [prompts[row] for row in rows]}, padding_side="left", return_tensors="pt", verbose=False
        ).to(model.device)
        width = inputs["input_ids"].shape[1]
        processors = []
        if decoding.no_repeat_ngram:
            processors.append(_WrittenOnly(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram), width))
        if chosen_by is not None:
            processors.append(chosen_by(rows))
        found = model.generate(**inputs, generation_config=settings, logits_processor=processors)[:, width:].tolist()
        for row, ids in zip(rows, found, strict=True):
            written[row] = ids[: min((ids.index(end) for end in ends if end in ids), default=len(ids))]
    return written


def text_of(backbone: Backbone, ids: list[int], stop: list[str]) -> str:
    """What `generate_ids` wrote as text, cut before the first of `stop`."""
    text = backbone.preprocess.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[: min((text.index(mark) for mark in stop if mark in text), default=len(text))]
