"""What `save_pretrained` of an adapted model writes.

transformers' `save_pretrained` writes a state_dict, and `from_pretrained` draws at random what it does not find there by the
plain model's names. So a merged model is written with bare layers: W0 + dW, rounded to the dtype of W0, and the head that is in
the model. One that is not merged is written with adapted layers, as transformers' Trainer needs it for its checkpoints, and a
warning says so. A model in a bank is refused. `state_dict` is the same whether merged or not: W0, b, d and all heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from . import heads
from .errors import AdapterError
from .linear import VeraLinear

BANK = "vera_bank"  # in every layer that an AdapterBank has wrapped
_NAME = "save_pretrained"


def in_bank(model: nn.Module) -> bool:
    return any(BANK in vars(module) for module in model.modules())


def install(model: nn.Module) -> None:
    """Put our save_pretrained before the own one of every part of an adapted model that has one."""
    for module in model.modules():
        if hasattr(type(module), _NAME):
            module.__dict__[_NAME] = partial(save_pretrained, module)  # a bound method would be pickled as the model's own


def remove(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module.__dict__.get(_NAME), "func", None) is save_pretrained:
            del module.__dict__[_NAME]


def save_pretrained(model: nn.Module, *args, **kwargs):
    """The model's own save_pretrained, with the merged layers bare meanwhile. Raises AdapterError for a model in a bank."""
    if in_bank(model):
        raise AdapterError("the model is in an AdapterBank, whose layers nothing else reads; close the bank first")
    layers = [module for module in model.modules() if isinstance(module, VeraLinear)]
    if layers and all(layer.merged is None for layer in layers):
        warnings.warn(
            "save_pretrained writes adapted layers, which from_pretrained does not read: it would draw weights at random. "
            "save_adapter writes the adapter; merge, then save_pretrained, a plain model",
            stacklevel=2,
        )
        return type(model).save_pretrained(model, *args, **kwargs)
    given = kwargs.get("state_dict", args[2] if len(args) > 2 else None)
    if layers and given is not None and any(".base_layer." in f".{key}" for key in given):
        raise AdapterError(
            "save_pretrained of a merged model writes W0 + dW by itself: leave state_dict out, or take it of a model after "
            "merge_and_unload"
        )
    with _plain(model):
        return type(model).save_pretrained(model, *args, **kwargs)


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    places = [
        (parent, attribute, child)
        for parent in model.modules()
        for attribute, child in parent._modules.items()
        if isinstance(child, VeraLinear)
    ]
    aside = model.__dict__.pop(heads.HEADS, None)
    own = {module: module.__dict__.pop(_NAME) for module in list(model.modules()) if _NAME in module.__dict__}
    try:
        for parent, attribute, layer in places:
            parent._modules[attribute] = layer.bare()
        yield
    finally:
        for parent, attribute, layer in places:
            parent._modules[attribute] = layer
        for module, method in own.items():
            module.__dict__[_NAME] = method
        if aside is not None:
            model.__dict__[heads.HEADS] = aside
