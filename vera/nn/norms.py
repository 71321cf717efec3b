"""Norms with running statistics (BatchNorm), frozen with the backbone: an adapter's file does not hold the statistics, so that
those of the backbone must serve in training as they do after it. Copies in modules_to_save bring their own, and train them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_NAME = "train"


def freeze(model: nn.Module, but: Iterable[nn.Module]) -> None:
    """Put every norm that tracks statistics into evaluation, where `train()` leaves it, but for those in some modules."""
    for _, module in loose(model, but):
        module.eval()
        module.__dict__[_NAME] = partial(_stay, module)


def loose(model: nn.Module, but: Iterable[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The norms that track statistics and are not frozen, by name, but for those in some modules."""
    left = {part for module in but for part in module.modules()}
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats and module not in left and not frozen(module)
    ]


def frozen(module: nn.Module) -> bool:
    """Whether `freeze` has taken hold of a module."""
    return getattr(module.__dict__.get(_NAME), "func", None) is _stay


def release(model: nn.Module) -> None:
    """Let `train()` reach them again."""
    for module in model.modules():
        if frozen(module):
            del module.__dict__[_NAME]
            module.train(model.training)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
