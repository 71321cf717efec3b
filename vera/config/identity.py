"""The identity of a run: what it computes, hashed, without where, how fast and with which seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

GROUPS = ("model", "task", "method", "train")

# Keys that change where and how fast a run goes, and keys that describe what others decide (a checkpoint's architecture and the
# size of a data set, for counts and estimates). They stay out of a run's identity.
OPERATIONAL = frozenset(
    {
        "model.data_dir",
        "model.full",
        "model.gradient_checkpointing",
        "model.path",
        "task.cache_dir",
        "task.data_dir",
        "task.facts",
        "task.workers",
        "train.checkpoint_seconds",
        "train.eval_batch_size",
        "train.micro_batch_size",
        "train.micro_batch_tokens",
        "train.save",
    }
)
UNHASHED = frozenset({"tiny", "neutral"})  # of every group, beside these
SEED_REFERENCE = "${seed}"


def cell_id(config: dict[str, Any], follows_seed: Sequence[str] = ()) -> str:
    """SHA-256, in hex, of what a run computes: the groups of `config` without seed, paths, device, launcher and tracker.

    Keys in OPERATIONAL and keys at their `neutral` value are left out; leaves named in `follows_seed` count as the word
    `${seed}` instead of a number, so that all seeds of a cell share one id.
    """
    kept: dict[str, Any] = {}
    for group in GROUPS:
        values = dict(config[group])
        if group == "model" and values.get("size") == "full":
            values.pop("tiny", None)  # the rehearsal's stand-in says nothing about the real model
        for key, value in without_neutral(values, values.pop("neutral", None) or {}).items():
            dotted = f"{group}.{key}"
            if dotted not in OPERATIONAL:
                kept[dotted] = SEED_REFERENCE if dotted in follows_seed else _plain(value)
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def without_neutral(values: dict[str, Any], neutral: dict[str, Any]) -> dict[str, Any]:
    """The values that are not neutral; of a mapping of which `neutral` names a part, those of its keys."""
    kept = {}
    for key, value in values.items():
        if key not in neutral:
            kept[key] = value
        elif neutral[key] != value:
            nested = isinstance(value, dict) and isinstance(neutral[key], dict)
            kept[key] = without_neutral(value, neutral[key]) if nested else value
    return kept


def younger(values: dict[str, Any], neutral: dict[str, Any]) -> dict[str, Any]:
    """The neutral keys that the values of an older configuration lack."""
    nested = {
        key: younger(values[key], part)
        for key, part in neutral.items()
        if isinstance(part, dict) and isinstance(values.get(key), dict)
    }
    return {**{key: part for key, part in neutral.items() if key not in values}, **{k: v for k, v in nested.items() if v}}


def beside(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`values`, and of `more` what they lack, in mappings within as well."""
    nested = {k: beside(v, more[k]) for k, v in values.items() if isinstance(v, dict) and isinstance(more.get(k), dict)}
    return {**more, **values, **nested}


def run_name(model: str, task: str, method: str, cell: str, seed: int) -> str:
    """The stem of a run's files: <model>--<task>--<method>--<cell8>--s<seed>."""
    return f"{model}--{task}--{method}--{cell[:8]}--s{seed}"


def _plain(value: Any) -> Any:
    """1.0 and 1 are one value in a config, and so are tuples and lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
