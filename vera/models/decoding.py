"""Batched decoding: left padding, KV cache, n-gram blocking that spares the prompt, transformers' search or Hu et al.'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, NoRepeatNGramLogitsProcessor

from vera.config import Strict
from vera.errors import ConfigError, ModelError, one_line
from vera.models.attention import allow_cudnn
from vera.models.base import Backbone, positions
from vera.records import screen

TRIED = (3, 8)  # tokens of the prompts of a trial
NO_TOKEN = 2**31 - 1  # which ends no trial


class Decoding(Strict):
    """How text is written. All values go into a run's identity; a checkpoint's generation_config.json changes nothing.

    beams            width of the beam search; 1 is greedy.
    length_penalty   a finished beam scores its summed log-probability / length ** length_penalty, length without the prompt.
    no_repeat_ngram  no n-gram of this size twice in what is written (0: no such rule). The prompt does not count, as in LoRA's
                     decoder and unlike transformers' `no_repeat_ngram_size`, which forbids to copy a name out of the prompt.
    max_new_tokens   longest output.
    stop             texts that end an output, beside the model's end token. One that is a single token, and which that token
                     holds, ends the search there.
    search           transformers, or hu2022 (`_search_hu2022`); they differ with more than one beam.
    """

    beams: int = Field(ge=1)
    length_penalty: float
    no_repeat_ngram: int = Field(ge=0)
    max_new_tokens: int = Field(ge=1)
    stop: list[str] = []
    search: Literal["transformers", "hu2022"] = "transformers"


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


def check_room(model: nn.Module, prompts: Sequence[list[int]], decoding: Decoding, texts: Sequence[str] = ()) -> None:
    """Raises ConfigError when a prompt and max_new_tokens are more than the model can read. texts: what the prompts are of."""
    limit = positions(model)
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    needed = len(prompts[longest]) + decoding.max_new_tokens
    if limit is not None and needed > limit:
        which = f" ({texts[longest][:60]!r} ...)" if texts else ""
        raise ConfigError(
            f"the longest prompt{which} and max_new_tokens are {needed} tokens; this model reads {limit}: shorten it, or lower "
            "max_new_tokens"
        )


def check_search(
    backbone: Backbone, prompt: list[int], decoding: Decoding, key: str, instead: str, batch_size: int = 2
) -> None:
    """Raises ModelError where `generate_ids` fails with this model, or writes something else than its scores say, by a trial of
    two tokens after the end of a prompt. key: of `decoding`; instead: what helps where no simpler search does."""
    if any(parameter.is_meta for parameter in backbone.model.parameters()):
        return
    problem = _problem(backbone, prompt, decoding, batch_size)
    if problem is None:
        return
    for changes in ({"search": "transformers"}, {"beams": 1}, {"search": "transformers", "beams": 1}):
        simpler = decoding.model_copy(update=changes)
        if simpler != decoding and _problem(backbone, prompt, simpler, batch_size) is None:
            instead = " ".join(f"{key}.{name}={value}" for name, value in changes.items())
            break
    raise ModelError(
        f"{type(backbone.model).__name__} cannot be searched by {key}.search={decoding.search} with {key}.beams="
        f"{decoding.beams}: {problem}; take {instead}"
    )


def _problem(backbone: Backbone, prompt: list[int], decoding: Decoding, batch_size: int) -> str | None:
    """What is wrong with a search: it fails, or the scores that it sees differ from those of the same tokens read at once,
    alone and without a cache. The shorter one of two prompts is looked at, which is padded."""
    model = backbone.model
    given = [(prompt * size)[-size:] for size in TRIED][:batch_size]
    seen: list[tuple[int, Tensor]] = []

    def watch(module: nn.Module, args: Any, inputs: dict[str, Any], output: Any) -> None:
        seen.append((int(inputs["input_ids"][0, -1]), output.logits[0, -1].float()))

    training, watching = model.training, model.register_forward_hook(watch, with_kwargs=True)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):  # some draw in evaluation, too
            model.eval()
            inputs = _padded(backbone, given)
            _search(backbone, inputs, decoding.model_copy(update={"max_new_tokens": 2}), [NO_TOKEN], [])
            watching.remove()
            ids = torch.tensor([[*given[0], seen[1][0]]], device=model.device)
            wanted = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -2:].float()
    except torch.OutOfMemoryError:  # which says nothing of the search
        raise
    except Exception as error:  # of any family's own code
        return one_line(error)
    finally:
        watching.remove()
        model.train(training)
    found = torch.stack([scores for _, scores in seen[:2]])
    rounding = 0.01 if model.dtype == torch.float32 else 0.1  # at most, of what scores differ by
    wrong = (found - wanted).norm(dim=-1) > rounding * (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
    if wrong[0]:
        return "it reads the padding, so that a text would depend on its batch"
    return "it loses what it has read" if wrong[1] else None


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
    Raises ConfigError like `check_room`.
    """
    allow_cudnn(False)  # every token makes a new length
    tokenizer, model = backbone.preprocess, backbone.model
    check_room(model, prompts, decoding)
    ends = [tokenizer.eos_token_id]
    for text in decoding.stop:
        ids = tokenizer.encode(text, add_special_tokens=False)
        means_it = text in tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # some make a space of a line break
        ends += ids if len(ids) == 1 and means_it else []
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    written: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        screen.doing("writing texts", start, len(order))
        rows = order[start : start + batch_size]
        inputs = _padded(backbone, [prompts[row] for row in rows])
        found = _search(backbone, inputs, decoding, ends, [] if chosen_by is None else [chosen_by(rows)])
        for row, ids in zip(rows, found, strict=True):
            written[row] = ids[: min((ids.index(end) for end in ends if end in ids), default=len(ids))]
    return written


def _padded(backbone: Backbone, prompts: list[list[int]]) -> dict[str, Tensor]:
    batch = {"input_ids": prompts}
    return backbone.preprocess.pad(batch, padding_side="left", return_tensors="pt", verbose=False).to(backbone.model.device)


def _search(
    backbone: Backbone, inputs: dict[str, Tensor], decoding: Decoding, ends: list[int], last: list[LogitsProcessor]
) -> list[list[int]]:
    """What the search that `decoding` names writes after each left-padded prompt."""
    if decoding.search == "hu2022":
        return _search_hu2022(backbone, inputs, decoding, ends)
    return _search_transformers(backbone, inputs, decoding, ends, last)


def _search_transformers(
    backbone: Backbone, inputs: dict[str, Tensor], decoding: Decoding, ends: list[int], last: list[LogitsProcessor]
) -> list[list[int]]:
    """What transformers' own search writes after each left-padded prompt, padding included; `last` changes its scores last."""
    tokenizer, width = backbone.preprocess, inputs["input_ids"].shape[1]
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
    processors = []
    if decoding.no_repeat_ngram:
        processors.append(_WrittenOnly(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram), width))
    model = backbone.model
    of_checkpoint, model.generation_config = model.generation_config, settings  # of which transformers takes what is not set
    try:
        found = model.generate(**inputs, generation_config=settings, logits_processor=[*processors, *last])
    finally:
        model.generation_config = of_checkpoint
    return found[:, width:].tolist()


def _search_hu2022(backbone: Backbone, inputs: dict[str, Tensor], decoding: Decoding, ends: list[int]) -> list[list[int]]:
    """The best sequence for each left-padded prompt by the rules of Hu et al.'s decoder (microsoft/LoRA, NLG, gpt2_beam.py):

    - A step keeps the `beams` best continuations of all living beams, by summed log-probability, also where some of them end
      (transformers looks for `beams` that go on).
    - The n-gram ban comes before the softmax, so that what is left sums to one.
    - A kept continuation that ends competes at once, with sum / length ** length_penalty, its end token counted. Its place
      stays empty: the next step continues the others alone.
    - There are max_new_tokens steps; the beams that live then compete as they are. Of equal scores the first counts.

    A prompt is left as soon as no living beam could still win, which changes nothing in what is written.
    """
    model = backbone.model
    beams, penalty, steps = decoding.beams, decoding.length_penalty, decoding.max_new_tokens
    ban = NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram) if decoding.no_repeat_ngram else None
    mask, tokens = inputs["attention_mask"], inputs["input_ids"]
    prompts, device = len(tokens), tokens.device
    first = torch.arange(prompts, device=device).unsqueeze(1) * beams  # the first place of each prompt
    ending = torch.tensor(ends, device=device)
    sums = torch.full((prompts, beams), -torch.inf, device=device)
    sums[:, 0] = 0.0  # the places of a prompt begin alike: one lives
    written = tokens.new_empty((prompts * beams, 0))
    best: list[tuple[float, list[int]]] = [(-torch.inf, [])] * prompts
    cache = DynamicCache(config=model.config)
    for length in range(1, steps + 1):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        logits = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if length == 1:
            logits, mask = logits.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0)
            cache.batch_repeat_interleave(beams)
        logits = logits.float() if ban is None else ban(written, logits.float())
        scores = sums.unsqueeze(-1) + logits.log_softmax(-1).view(prompts, beams, -1)
        sums, chosen = scores.flatten(1).topk(beams)
        place = (first + chosen // scores.shape[-1]).flatten()
        tokens = (chosen % scores.shape[-1]).view(-1, 1)
        written = torch.cat((written[place], tokens), 1)
        ended = torch.isin(tokens, ending).view(prompts, beams) if length < steps else torch.ones_like(sums, dtype=torch.bool)
        for prompt, beam in (ended & sums.isfinite()).nonzero().tolist():
            score = sums[prompt, beam].item() / length**penalty
            if score > best[prompt][0]:
                best[prompt] = (score, written[prompt * beams + beam].tolist())
        sums = sums.masked_fill(ended, -torch.inf)
        reachable = sums.max(1).values / (steps**penalty if penalty > 0 else (length + 1) ** penalty)
        if not any(possible > score for possible, (score, _) in zip(reachable.tolist(), best, strict=True)):
            break
        cache.reorder_cache(place)
        mask = torch.cat((mask[place], mask.new_ones((len(place), 1))), 1)
    return [ids for _, ids in best]


def text_of(backbone: Backbone, ids: list[int], stop: list[str]) -> str:
    """What `generate_ids` wrote as text, cut before the first of `stop`."""
    text = backbone.preprocess.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[: min((text.index(mark) for mark in stop if mark in text), default=len(text))]
