"""Whether a checkpoint has the sizes that a model's yaml states, so that no record is filed under another model's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIT = "give the folder of that model, or a name of its own and its sizes (model.name=mine model.full.KEY=...)"

# transformers' other names for the same sizes.
_ALIASES = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
_ALIASES |= {"n_positions": "max_position_embeddings", "n_inner": "intermediate_size", "family": "model_type"}


def misfit(model: Mapping[str, Any], config: Mapping[str, Any], where: str) -> str | None:
    """One line on what a transformers configuration and `full` of a model's settings do not have in common; None when it fits.

    `architecture` stands for `full` where a model is made here. Keys that `config` does not have are passed over.
    """
    stated = model.get("full") or model.get("architecture") or {}
    found = {_ALIASES.get(key, key): value for key, value in config.items()}
    differing = {
        key: found[name] for key, value in stated.items() if (name := _ALIASES.get(key, key)) in found and found[name] != value
    }
    if not differing:
        return None
    group = "full" if model.get("full") else "architecture"
    sizes = ", ".join(f"{key} {value} where model.{group} says {stated[key]}" for key, value in differing.items())
    return f"{where} is another model than {model.get('name')}: its config.json has {sizes}"


def misfit_of_path(model: Mapping[str, Any]) -> str | None:
    """The same for the folder in `model.path`; None where none is read, or its config.json cannot be."""
    if model.get("path") is None or model.get("size") == "tiny":
        return None
    try:
        config = json.loads((Path(model["path"]) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return misfit(model, config, f"model.path={model['path']}") if isinstance(config, dict) else None
