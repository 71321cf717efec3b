"""What is found in a model that no yaml describes: attention's maps, linear layers, the head, a small one of its kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from vera.nn.base_layer import is_linear
from vera.nn.names import inside, matches

# What attention's maps are called, the commonest first; the last part of their dotted names.
QUERY = ("query", "q_proj", "q_lin", "query_proj", "q", "wq", "to_q")
KEY = ("key", "k_proj", "k_lin", "key_proj", "k", "wk", "to_k")
VALUE = ("value", "v_proj", "v_lin", "value_proj", "v", "wv", "to_v")
FUSED = ("Wqkv", "query_key_value", "qkv", "qkv_proj", "c_attn", "self.in_proj")  # all three in one matrix; DeBERTa's

# The sizes of a small model, by what the families call them.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "dim", "d_model", "n_embd", "embedding_size", "pooler_hidden_size", "embed_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads", "n_head", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_decoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "n_inner": None,
}


@dataclass(frozen=True)
class Targets:
    """Names of query, key and value as the model's modules end, all one where they are fused."""

    query: str
    key: str
    value: str

    @property
    def fused(self) -> bool:
        return self.query == self.value


def linear(model: nn.Module, head: Iterable[str]) -> list[str]:
    """Dotted names of the linear layers outside the head and the output embeddings."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name for name, module in model.named_modules() if is_linear(module) and module is not output and not inside(name, head)
    ]


def attention(names: list[str]) -> Targets | None:
    """The attention's maps among dotted names of linear layers; None where none are called like one."""

    def first(candidates: tuple[str, ...]) -> str | None:
        return next((word for word in candidates if any(matches(name, [word]) for name in names)), None)

    query, key, value = map(first, (QUERY, KEY, VALUE))
    if query and key and value:
        return Targets(query, key, value)
    fused = first(FUSED)
    return Targets(fused, fused, fused) if fused else None


def endings(names: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def head(model: nn.Module, new: Iterable[str] = ()) -> list[str]:
    """The modules outside transformers' base model that have parameters; of them those with `new` ones, which the checkpoint
    lacks, where there are any: what it has stays, such as ModernBERT's dense layer before its classifier. A pooler in the base
    model that the checkpoint lacks, as a BERT that was saved as a masked language model does, is a part of it. A classifier
    that holds its base model in parts or by another name, as CLIP's does, has a head behind the largest of its parts."""
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    outside = [name for name, size in sizes.items() if size and name != model.base_model_prefix]
    if model.base_model_prefix not in sizes:
        outside = outside[outside.index(max(outside, key=sizes.__getitem__)) + 1 :]
    new = set(new)
    fresh = [name for name in outside if any(inside(parameter, [name]) for parameter in new)]
    pooler = f"{model.base_model_prefix}.pooler"
    whole = {name for name, _ in model.named_parameters() if inside(name, [pooler])}
    return [*([pooler] if whole and whole <= new else []), *(fresh or outside)]


def small(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with small sizes, in place; lists with a value a layer are cut to two."""
    known = config.to_dict()
    layers = next((known[key] for key in ("num_hidden_layers", "n_layers", "num_layers", "n_layer") if key in known), None)
    for key, value in known.items():
        if key in SMALL and value is not None:
            setattr(config, key, [SMALL[key]] * len(value) if isinstance(value, list) else SMALL[key])
        elif isinstance(value, list) and layers and len(value) == layers:
            setattr(config, key, value[:2])
    return config
