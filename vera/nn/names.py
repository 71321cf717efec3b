"""Dotted names of modules and parameters, the shorter ones that people write for them, and wrappers, which are in no name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

# Where a wrapper keeps the module that it wraps: torch.compile, FSDP, activation checkpointing.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def matches(path: str, names: Iterable[str]) -> list[str]:
    """The names that mean this module: each is its dotted path, or whole components from the path's end."""
    return [name for name in names if path == name or path.endswith("." + name)]


def inside(path: str, names: Iterable[str]) -> bool:
    """Whether a module or a parameter is one that the names mean (as in `matches`) or lies below it."""
    return any(f".{name}." in f".{path}." for name in names)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module in torch.compile's, FSDP's, a data-parallel or a checkpointing wrapper, however many there are."""
    while True:
        inner = [module._modules[key] for key in _WRAPPED if key in module._modules]
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner.append(module.module)
        if not inner:
            return module
        module = inner[0]


def plain_path(path: str) -> str:
    """A dotted name without the parts that wrappers add to it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPED)
