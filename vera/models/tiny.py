"""Tiny random checkpoints of every family, saved in transformers' own format and loaded like any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    ViTConfig,
    ViTImageProcessor,
)
from typing_extensions import TypedDict

from vera.errors import ConfigError
from vera.io.cache import make_folder
from vera.seeds import forked

CONFIGS = {"roberta": RobertaConfig, "bert": BertConfig, "vit": ViTConfig, "gpt2": GPT2Config, "llama": LlamaConfig}
CAUSAL = {"gpt2", "llama"}
END = "<|endoftext|>"


class Pretraining(TypedDict):
    """AdamW with a one-cycle schedule up to `lr`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    seed: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]


def tiny_checkpoint(settings: dict[str, Any], cache_dir: Path) -> Path:
    """A folder with a random model of `settings["family"]` and its tokenizer or image processor, made once and cached."""
    settings = dict(settings)
    family = settings.pop("family", None)
    _config_class(family, "model.tiny.family")
    check_keys(family, settings, "model.tiny")
    key = hashlib.sha256(json.dumps([family, settings], sort_keys=True).encode()).hexdigest()[:8]

    def make(folder: Path) -> None:
        with forked(0, "tiny"):
            if family == "vit":
                _image(settings, folder)
            else:
                _text(family, settings, folder)

    return make_folder(Path(cache_dir) / "tiny" / f"{family}-{key}", "config.json", make)


def check_keys(family: str, settings: dict[str, Any], key: str) -> None:
    """Raises ConfigError for a size that the family does not have; transformers would keep any and read it nowhere."""
    config = CONFIGS[family]
    known = config().to_dict().keys() | config.attribute_map.keys() | {"family"}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"{key}.{unknown[0]} is not a key of transformers' {config.__name__}")


def architecture(settings: dict[str, Any]) -> PretrainedConfig:
    """The transformers configuration that `settings` (family and its own keys) describe. Raises ConfigError."""
    settings = dict(settings)
    family = settings.pop("family", None)
    config = _config_class(family, "model.full.family")
    check_keys(family, settings, "model.full")
    return config(**settings)


def _config_class(family: Any, key: str) -> type[PretrainedConfig]:
    if family not in CONFIGS:
        raise ConfigError(f"{key} must be one of {', '.join(CONFIGS)}; got {family!r}")
    return CONFIGS[family]


def _text(family: str, settings: dict[str, Any], folder: Path) -> None:
    causal = family in CAUSAL
    tokenizer = causal_tokenizer(bytes_of([END])) if causal else byte_tokenizer()
    config = CONFIGS[family](
        vocab_size=len(tokenizer),
        max_position_embeddings=1024 if causal else 514,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )
    kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = kind.from_config(config)
    (model if causal else model.base_model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _image(settings: dict[str, Any], folder: Path) -> None:
    config = ViTConfig(**settings)
    AutoModelForImageClassification.from_config(config).base_model.save_pretrained(folder)
    image_processor(config).save_pretrained(folder)


def image_processor(config: ViTConfig) -> ViTImageProcessor:
    """Scale to the model's image size and to [-1, 1], one channel or three."""
    return ViTImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        image_mean=[0.5] * config.num_channels,
        image_std=[0.5] * config.num_channels,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with RoBERTa's special tokens at RoBERTa's ids: reads any text without training."""
    tokenizer = bytes_of(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    )


def causal_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """With one special token that begins, ends and pads, as GPT-2 has; nothing is added to a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=1024
    )


def bytes_of(special: list[str]) -> Tokenizer:
    """One token a byte, after the special tokens."""
    vocabulary = {token: index for index, token in enumerate(special)}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
