"""Adapters of GPT-2 as PEFT and transformers know that model: with query, key and value in one matrix, c_attn.

A method adapts the three maps of a `SplitProjection` one by one. On the fused matrix the same is one adapter of the joint
rank: the parts' A (and AdaLoRA's E) below one another, the parts' B as blocks, each in its own rows and columns. IA3's vectors
follow one another, with ones where a part is not adapted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import ModelError
from vera.models.gpt2 import PARTS, SplitProjection

_STACKED = ("lora_A.weight", "lora_A", "lora_E")  # LoRA's and AdaLoRA's names
_BLOCKS = ("lora_B.weight", "lora_B")
_SCALES = ("ia3_l",)


def splits(model: nn.Module) -> dict[str, tuple[SplitProjection, list[str]]]:
    """The split projections by name, each with its adapted parts; those without any are left out."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitProjection):
            parts = [part for part in PARTS if hasattr(getattr(module, part), "base_layer")]
            if parts:
                found[name] = (module, parts)
    return found


def together(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by stored name, with those of a split projection's parts as the fused matrix has them."""
    rest = dict(tensors)
    for name, (module, parts) in splits(model).items():
        for kind in (*_STACKED, *_BLOCKS, *_SCALES):
            keys = [f"{name}.{part}.{kind}" for part in parts]
            if keys[0] not in rest:
                continue
            values = dict(zip(parts, (rest.pop(key) for key in keys), strict=True))
            if kind in _STACKED:
                rest[f"{name}.{kind}"] = torch.cat(list(values.values()))
            elif kind in _BLOCKS:
                rest[f"{name}.{kind}"] = _blocks(module, values)
            else:
                shape = next(iter(values.values())).shape
                rest[f"{name}.{kind}"] = torch.cat([values.get(part, torch.ones(shape)) for part in PARTS])
    return rest


def apart(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The inverse of `together`; tensors that are not of a fused matrix stay. Raises ModelError for what no parts make."""
    rest = dict(tensors)
    for name, (module, parts) in splits(model).items():
        for kind in (*_STACKED, *_BLOCKS, *_SCALES):
            key = f"{name}.{kind}"
            if key not in rest:
                continue
            whole = rest.pop(key)
            if kind in _STACKED:
                values = dict(zip(parts, whole.chunk(len(parts)), strict=False))
            elif kind in _BLOCKS:
                columns = dict(zip(parts, whole.chunk(len(parts), dim=1), strict=False))
                values = {part: block[module.rows(part)] for part, block in columns.items()}
            else:
                values = {part: whole[module.rows(part)] for part in PARTS}
            values = {part: value.contiguous() for part, value in values.items()}
            used = {f"{name}.{part}.{kind}": value for part, value in values.items() if part in parts}
            if not torch.equal(together(model, used).get(key, whole[:0]), whole):
                raise ModelError(f"{path}: {key} is not what adapters of {', '.join(parts)} apart make")
            rest |= used
    return rest


def plain_config(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """PEFT's config of the same adapter on the fused matrices."""
    found = splits(model)
    if not found:
        return config
    config = {**config, "fan_in_fan_out": True}
    inside = {f"{name}.{part}": name for name, (_, parts) in found.items() for part in parts}
    others = [name for name in config["target_modules"] if name not in inside]
    config["target_modules"] = sorted({inside.get(name, name) for name in config["target_modules"]})
    count = max(len(parts) for _, parts in found.values())
    if config["peft_type"] == "LORA":
        config["rank_pattern"] = dict.fromkeys(others, config["r"])
        config["alpha_pattern"] = dict.fromkeys(others, config["lora_alpha"])
        config |= {"r": count * config["r"], "lora_alpha": count * config["lora_alpha"]}
    elif config["peft_type"] == "ADALORA":
        if others:
            raise ModelError(
                f"AdaLoRA's file has one rank for all: {others[0]} and the attention's maps cannot be in it together"
            )
        rank = config["init_r"]
        scale = (count * rank + 1e-5) / (rank + 1e-5)  # PEFT divides by the rank and 1e-5
        config |= {"init_r": count * rank, "target_r": count * config["target_r"], "lora_alpha": scale * config["lora_alpha"]}
    return config


def _blocks(module: SplitProjection, values: dict[str, Tensor]) -> Tensor:
    """B [3 d, sum of r] of the parts' B [d, r]."""
    first = next(iter(values.values()))
    whole = first.new_zeros(module.width, sum(value.shape[1] for value in values.values()))
    start = 0
    for part, value in values.items():
        whole[module.rows(part), start : start + value.shape[1]] = value
        start += value.shape[1]
    return whole
