"""A merged model is written as the plain model that it computes like.

transformers' `save_pretrained` writes a state_dict, and `from_pretrained` draws at random what it does not find there by the
plain model's names. So while a model is merged, its `save_pretrained` writes it with bare layers: W0 + dW, rounded to the dtype
of W0, and the head that is in the model. `state_dict` is the same whether merged or not: W0, b, d and all heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn

from . import heads
from .linear import VeraLinear

_NAME = "save_pretrained"


def install(model: nn.Module) -> None:
    """Let every part of a merged model that can be written so be written as a plain one."""
    for module in model.modules():
        if hasattr(type(module), _NAME):
            module.__dict__[_NAME] = MethodType(save_pretrained, module)


def remove(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module.__dict__.get(_NAME), "__func__", None) is save_pretrained:
            del module.__dict__[_NAME]


def save_pretrained(model: nn.Module, *args, **kwargs):
    """The model's own save_pretrained, with the merged layers bare meanwhile."""
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
    aside = model.__dict__.pop(heads._HEADS, None)
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
            model.__dict__[heads._HEADS] = aside
