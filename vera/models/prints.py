"""Fingerprints of what decides a backbone's numbers beside the bytes of its weights: configuration, tokenizer, image processor.

They are of what a folder means, not of how it is written: a copy that save_pretrained made, or another release of transformers,
has other keys and other files, and the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from transformers import PretrainedConfig

# Keys of config.json that change no number here: what it is called and by whom it was written, what a run decides in its place
# (dtype and labels), what a forward pass keeps. Those that begin with "_" are of this kind, too.
NEUTRAL = {"transformers_version", "name_or_path", "architectures", "auto_map", "custom_pipelines", "task_specific_params"}
NEUTRAL |= {"tokenizer_class", "processor_class", "finetuning_task", "dtype", "torch_dtype"}
NEUTRAL |= {"num_labels", "id2label", "label2id", "problem_type", "use_cache", "gradient_checkpointing"}

TEXTS = [
    "The quick brown fox can't jump over 12,345.67 lazy dogs!  Déjà-vu: naïve Straße, \u4f60\u597d, \U0001f642.",
    "New line\n\ttab <b>x</b> #1 @home -- e.g. UPPER lower mIxEd , spaced . punctuation ?",
]


def configuration(found: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Of a configuration as transformers reads it, with every key: those but for NEUTRAL ones that its family's `defaults`
    have otherwise."""

    def deciding(found: Mapping[str, Any], usual: Any) -> dict[str, Any]:
        usual = usual if isinstance(usual, Mapping) else {}
        return {
            key: deciding(value, usual.get(key)) if isinstance(value, Mapping) else value
            for key, value in found.items()
            if not (key in NEUTRAL or key.startswith("_")) and (key == "model_type" or usual.get(key) != value)
        }

    return digest(deciding(found, usual))


def defaults(config: PretrainedConfig) -> dict[str, Any]:
    """The configuration that a family has by default; of one that has none, such as a pair of two models, nothing."""
    try:
        return type(config)().to_dict()
    except (TypeError, ValueError, KeyError, AttributeError):
        return {}


def tokens(tokenizer: Any) -> str:
    """Of a tokenizer: its vocabulary, its special tokens, and what it makes of texts, pairs of them and truncated ones, among
    them a part of its vocabulary (which shows in what order symbols are merged), and of their tokens again. Remembered of the
    fast ones, for the runs of a sweep: all that decides is in the backend's JSON and the attributes."""
    if not tokenizer.is_fast:
        return _tokens(tokenizer)
    own = {key: value for key, value in vars(tokenizer).items() if key != "_tokenizer"}
    told = hashlib.sha256(f"{type(tokenizer)} {own} {tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()
    if told not in _KNOWN:
        _KNOWN[told] = _tokens(tokenizer)
    return _KNOWN[told]


_KNOWN: dict[str, str] = {}


def _tokens(tokenizer: Any) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items())
    some = " ".join(token for token, _ in vocabulary[:: len(vocabulary) // 512 + 1])
    roles = [getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "cls", "sep", "unk", "mask")]
    special = tokenizer.convert_ids_to_tokens([each for each in roles if each is not None])
    texts = [*TEXTS, some, " x ".join(special)]
    with _as_it_was(tokenizer):
        whole, pairs = tokenizer(texts, verbose=False), tokenizer(texts, texts[::-1], verbose=False)
        cut = tokenizer(texts, texts[::-1], truncation=True, max_length=16)
        written = [tokenizer.decode(ids, skip_special_tokens=skip) for ids in whole["input_ids"] for skip in (True, False)]
    return digest([vocabulary, roles, *(dict(sorted(made.items())) for made in (whole, pairs, cut)), written])


@contextmanager
def _as_it_was(tokenizer: Any) -> Iterator[None]:
    """A call leaves its truncation and padding in a fast tokenizer, and save_pretrained would write them to tokenizer.json."""
    if not tokenizer.is_fast:
        yield
        return
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
        backend.no_padding() if padding is None else backend.enable_padding(**padding)


def pixels(processor: Any) -> str:
    """Of an image processor (vera.models.image.Pixels): the pixels that it makes of an image, and how they are scaled."""
    y, x = np.indices((67, 91))
    image = Image.fromarray(np.stack([(3 * x + y) % 256, (x * y) % 256, (5 * y) % 256], axis=-1).astype(np.uint8))
    sized = np.asarray(processor.resize(image))
    scale = [[f"{value:.5f}" for value in tensor.flatten().tolist()] for tensor in (processor.offset, 255 * processor.factor)]
    return digest([list(sized.shape), hashlib.sha256(sized.tobytes()).hexdigest(), scale])


def digest(content: Any) -> str:
    """SHA-256, first 16 hex digits, of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
