"""A run's configuration from conf/ without Hydra, for a machine that has none: model, task, method and their recipe, with the
values that refer to others filled in. (What needs more, such as another scale, is for vera.config.compose.)"""

from __future__ import annotations

import re
from typing import Any

from vera.config import RunConfig, beside, normalised
from vera.config.components import recipe, whole

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def run_of(model: str, task: str, method: str, **changes: Any) -> RunConfig:
    """The run of `model=M task=T method=X`, changed like `train__epochs=1`. No path is set: nothing is read but conf/."""
    places = {"results_dir": "results", "work_dir": "work", "cache_dir": ".cache"}
    tree: dict[str, Any] = {
        **places,
        "seed": 0,
        "model": whole("model", model),
        "task": whole("task", task),
        "method": whole("method", method),
        "train": whole("train", "default"),
        "tracker": whole("tracker", "none"),
    }
    tree = beside(whole("recipe", recipe(method, model)), tree)
    for key, value in changes.items():
        group, _, name = key.partition("__")
        tree[group] = {**tree[group], name: value}
    follows = [f"{group}.{key}" for group in ("model", "task", "method") for key, v in tree[group].items() if v == "${seed}"]
    groups = {group: _resolved(tree[group], tree) for group in ("model", "task", "method", "train", "tracker")}
    for group in ("model", "task", "method", "tracker"):
        groups[group] = normalised(groups[group], group)
    return RunConfig(
        **groups,
        **places,
        seed=0,
        device="auto",
        progress=False,
        claim_timeout=300,
        follows_seed=follows,
    )


def _resolved(value: Any, tree: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, tree) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, tree) for item in value]
    while isinstance(value, str) and (found := _REFERENCE.search(value)):
        if ":" in found[1] or found[1].startswith("."):  # a resolver: a path, which is not set, or a part of one
            filled: Any = ""
        else:
            filled = tree
            for part in found[1].split("."):
                filled = filled[part]
        if found[0] == value:
            return _resolved(filled, tree) if filled != "" else None
        value = value.replace(found[0], str(filled))
    return value
