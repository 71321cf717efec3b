"""Dotted names of modules and parameters, and the shorter ones that people write for them."""

from __future__ import annotations

from collections.abc import Iterable


def matches(path: str, names: Iterable[str]) -> list[str]:
    """The names that mean this module: each is its dotted path, or whole components from the path's end."""
    return [name for name in names if path == name or path.endswith("." + name)]


def inside(path: str, names: Iterable[str]) -> bool:
    """Whether a module or a parameter is one that the names mean (as in `matches`) or lies below it."""
    return any(f".{name}." in f".{path}." for name in names)
