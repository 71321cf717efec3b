"""The method of the paper by itself: needs torch and safetensors, nothing else of this project.

from vera.nn import VeraConfig, attach, merge, unmerge, save_adapter, load_adapter, AdapterBank
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vera.errors import AdapterError
from vera.nn.bank import AdapterBank
from vera.nn.checkpoint import load_adapter, save_adapter
from vera.nn.config import VeraConfig
from vera.nn.inject import attach, merge, set_adapter, unmerge, vera_layers
from vera.nn.linear import VeraLinear
from vera.nn.projection import Projection

__all__ = [
    "AdapterBank",
    "Projection",
    "VeraConfig",
    "VeraLinear",
    "accelerate",
    "attach",
    "load_adapter",
    "merge",
    "save_adapter",
    "set_adapter",
    "unmerge",
    "vera_layers",
]

if TYPE_CHECKING:
    from torch import nn


def accelerate(model: nn.Module) -> nn.Module:
    """Let PEFT's VeRA layers in a model compute with this library's functions, in place. Returns the model.

    model: a PeftModel, or any module with VeRA layers of PEFT's in it. Its parameters, adapters, files and calls stay PEFT's;
    whatever is unusual, and calls too small to gain, run PEFT's own forward. Layers that later adapters bring are accelerated,
    too. What differs: second derivatives through an accelerated layer raise. Raises AdapterError without peft or such a layer.
    """
    try:
        from vera.nn import in_peft
    except ImportError as error:
        raise AdapterError(f"accelerate needs peft with its VeRA layers: {error}") from None
    return in_peft.accelerate(model)
