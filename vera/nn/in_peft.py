"""PEFT users' way in: the fast evaluation without leaving PEFT."""

from __future__ import annotations

from torch import nn

from .errors import AdapterError


def accelerate(model: nn.Module) -> nn.Module:
    """Let PEFT's VeRA layers in a model compute with this library's functions, in place. Returns the model.

    model: a PeftModel, or any module with VeRA layers of PEFT's in it. Its parameters, adapters, files and calls stay PEFT's;
    whatever is unusual, and calls too small to gain, run PEFT's own forward. Layers that later adapters bring are accelerated,
    too. Raises AdapterError without peft, or where the model has no such layer.
    """
    try:
        from .peft_layers import AcceleratedLinear, AcceleratedModel, Linear, VeraModel
    except ImportError as error:
        raise AdapterError(f"accelerate needs peft with its VeRA layers: {error}") from None
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = AcceleratedLinear
        elif type(module) is VeraModel:
            module.__class__ = AcceleratedModel
    if not any(type(module) is AcceleratedLinear for module in model.modules()):
        raise AdapterError("accelerate found no VeRA layer of PEFT's in this model (peft.tuners.vera.layer.Linear)")
    return model
