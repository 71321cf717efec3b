"""The identity of a run: what it computes, hashed, without where, how fast and with which seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from vera.config.marks import Mark, marks

GROUPS = ("model", "task", "method", "train")
SEED_REFERENCE = "${seed}"

# A component is known by its name and version. The spelling of its class (`_target_`) is no part of the identity, so that a
# class may move; these are the spellings that were hashed before, and are still for the class of that name, wherever it is now,
# so that every record keeps its id. A renamed class takes its line along; a new class has none.
FIRST_SPELLINGS = {
    spelling.rpartition(".")[2]: spelling
    for spelling in (
        "vera.methods.adalora.AdaLora",
        "vera.methods.bitfit.BitFit",
        "vera.methods.bottleneck.BottleneckAdapters",
        "vera.methods.dylora.DyLora",
        "vera.methods.full.Full",
        "vera.methods.head.Head",
        "vera.methods.ia3.IA3",
        "vera.methods.lora.Lora",
        "vera.methods.lora_fa.LoraFA",
        "vera.methods.vera.Vera",
        "vera.models.digits.DigitsVit",
        "vera.models.gpt2.Gpt2",
        "vera.models.gpt2_mini.Gpt2Mini",
        "vera.models.image.ImageClassifier",
        "vera.models.llama.Llama",
        "vera.models.text.TextClassifier",
        "vera.tasks.alpaca.Alpaca",
        "vera.tasks.digits.Digits",
        "vera.tasks.e2e.E2E",
        "vera.tasks.glue.Glue",
        "vera.tasks.images.Images",
    )
}


def cell_id(config: dict[str, Any], follows_seed: Collection[str] = (), unhashed: Collection[str] = ()) -> str:
    """SHA-256, in hex, of what a run computes: the groups of `config` without seed, paths, device, launcher and tracker.

    Marked keys (vera.config.marks) and keys at their `neutral` value are left out, and so are those in `unhashed`, which are
    marked in a class that is not known here. Values named in `follows_seed` (dotted, at any depth) count as the word `${seed}`
    instead of a number, so that all seeds of a cell share one id. Nothing is imported.
    """
    kept = {}
    for group in GROUPS:
        values = hashed(group, config[group], follows_seed, unhashed)
        kept.update({f"{group}.{key}": value for key, value in values.items()})
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_all_seeds(config: Any, follows_seed: Collection[str], where: str = "") -> Any:
    """The config with `${seed}` in place of each value named in `follows_seed`: what the runs of a cell have in common."""
    if where in follows_seed:
        return SEED_REFERENCE
    below = f"{where}." if where else ""
    if isinstance(config, dict):
        return {key: of_all_seeds(value, follows_seed, f"{below}{key}") for key, value in config.items()}
    if isinstance(config, list):
        return [of_all_seeds(value, follows_seed, f"{below}{index}") for index, value in enumerate(config)]
    return config


def hashed(
    group: str, settings: dict[str, Any], follows_seed: Collection[str] = (), unhashed: Collection[str] = ()
) -> dict[str, Any]:
    """What of one group decides what a run computes; see `cell_id`."""
    values = dict(settings)
    target = str(values.pop("_target_", "TrainConfig" if group == "train" else ""))
    first = FIRST_SPELLINGS.get(target.rpartition(".")[2])
    kept = {} if first is None else {"_target_": first}
    known = marks(group, target)
    neutral = values.pop("neutral", None) or {}
    for key, value in without_neutral(values, neutral).items():
        if not counts(known.get(key), values) or f"{group}.{key}" in unhashed:
            continue
        kept[key] = _plain(value, f"{group}.{key}", follows_seed)
    return kept


def counts(mark: Mark | None, settings: dict[str, Any]) -> bool:
    """Whether a key with this mark is part of the identity."""
    return mark is None or (mark == "stand-in" and settings.get("size") != "full")


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


def _plain(value: Any, where: str, follows_seed: Collection[str]) -> Any:
    """1.0 and 1 are one value in a config, and so are tuples and lists."""
    if where in follows_seed:
        return SEED_REFERENCE
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item, f"{where}.{key}", follows_seed) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}.{index}", follows_seed) for index, item in enumerate(value)]
    return value
