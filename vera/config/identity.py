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
        neutral = values.pop("neutral", None) or {}
        for key, value in values.items():
            dotted = f"{group}.{key}"
            if dotted in OPERATIONAL or (key in neutral and neutral[key] == value):
                continue
            kept[dotted] = SEED_REFERENCE if dotted in follows_seed else _plain(value)
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


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
