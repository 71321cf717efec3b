"""Values in nested mappings by dotted keys, such as train.lr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values that are no mappings, each with its key after `prefix`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get(tree: Mapping[str, Any], key: str) -> Any:
    """None where there is no such key; a number is a place in a list."""
    found: Any = tree
    for part in key.split("."):
        if isinstance(found, list):
            found = dict(enumerate(found)).get(int(part)) if part.isdecimal() else None
        else:
            found = found.get(part) if isinstance(found, dict) else None
    return found


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Makes the mappings on the way as far as they are missing."""
    *parents, leaf = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[leaf] = value
