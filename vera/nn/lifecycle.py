"""An adapter's way out of a model: unloaded, merged for good, deleted, or disabled for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from . import heads, norms, saving
from .errors import AdapterError
from .inject import CONFIGS, active_adapter, check_root, configs, merge, replace_module, set_adapter, unmerge, vera_layers
from .linear import VeraLinear
from .names import unwrapped


def unload(model: nn.Module) -> nn.Module:
    """Take every adapter off, in place: the bare layers, with W0 bit for bit, and the backbone's own head. Returns the model.

    Parameters stay frozen, as `attach` has left them.
    """
    check_root(model)
    unmerge(model)
    set_adapter(model, None)
    return _strip(model)


def merge_and_unload(model: nn.Module, name: str | None = None) -> nn.Module:
    """Put W0 + dW of an adapter (default: the active one) into the bare layers for good, and its head into the model.

    Returns the model, a plain one again: `save_pretrained` writes it and `from_pretrained` reads it. Sums are formed in float32
    at least and rounded once, to the dtype of W0. A copy of the layer gets the sum: where the model has the layer
    under another name, without the adapter, it stays as it is. Raises AdapterError, with the model as it was, where `merge`
    does, and when there is no such adapter.
    """
    check_root(model)
    before = active_adapter(model)
    if name is None and before is None:
        raise AdapterError(
            f"no adapter is active, so there is nothing to merge; attached: {', '.join(configs(model)) or 'none'}"
        )
    if name is not None and name != before:
        set_adapter(model, name)
    try:
        merge(model)
    except AdapterError:
        if name is not None and name != before:
            set_adapter(model, before)
        raise
    return _strip(model)


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Forget one adapter, its vectors and its modules_to_save, in place. Returns the model.

    When it was the active one the bare backbone is active then. A layer that no other adapter is on is bare again. Raises
    AdapterError for a name that is not attached, and while the adapter is merged.
    """
    attached = configs(model)
    if name not in attached:
        raise AdapterError(f"no adapter is called {name!r}; attached: {', '.join(attached) or 'none'}")
    if any(layer.merged == name for _, layer in vera_layers(model)):
        raise AdapterError(f"adapter {name!r} is merged; unmerge the model before deleting it")
    if active_adapter(model) == name:
        set_adapter(model, None)
    heads.drop(unwrapped(model), name)
    for _, layer in vera_layers(model):
        if name in layer.vectors:
            del layer.vectors[name], layer.projections[name]
    setattr(unwrapped(model), CONFIGS, {other: config for other, config in attached.items() if other != name})
    if len(attached) == 1:
        return _strip(model)
    return _bare(model, [layer for _, layer in vera_layers(model) if not layer.vectors])


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside: the bare backbone with its own head, unmerged. After, and after an exception: the adapter that was active (merged
    if it was) and every parameter's requires_grad. Calls may be nested."""
    check_root(model)
    before, merged = active_adapter(model), any(layer.merged is not None for _, layer in vera_layers(model))
    unmerge(model)
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        set_adapter(model, None)
        yield model
    finally:
        unmerge(model)
        set_adapter(model, before if before in configs(model) else None)
        for parameter, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
        if merged and active_adapter(model) is not None:
            merge(model)


def _strip(model: nn.Module) -> nn.Module:
    """Take off all wrappers and all that `attach` has noted; what is in the layers and in the model's head now stays."""
    inner = unwrapped(model)
    heads.release(inner)
    saving.remove(inner)
    norms.release(inner)
    if hasattr(inner, CONFIGS):
        delattr(inner, CONFIGS)
    return _bare(model, [layer for _, layer in vera_layers(model)])


def _bare(model: nn.Module, layers: list[VeraLinear]) -> nn.Module:
    """Put these layers' base layers, with W where merged, in their places, under every name they have."""
    bare: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        bare[layer] = layer.bare()
        layer.unmerge()
    for path, module in list(unwrapped(model).named_modules(remove_duplicate=False)):
        if module in bare:
            replace_module(unwrapped(model), path, bare[module])
    return model
