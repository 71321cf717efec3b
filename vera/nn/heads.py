"""Modules that travel with an adapter (modules_to_save), such as a classification head: one copy for each adapter.

The backbone keeps its own. The active adapter's copies stand in the model under the backbone's names, so that parameters,
optimisers, hooks and files see one ordinary head; those of the others and the backbone's own are kept aside, out of
`model.parameters()`, and take the device, dtype and training mode of the one they replace when their turn comes. A copy is a
module of its own, buffers included: a head that shares a weight with another module (lm_head and embeddings) no longer does.

`state_dict` holds all of them: the active copies under the model's own names, the others under
"vera_heads.backbone.<path>" and "vera_heads.adapter.<name>.<path>".
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from . import norms
from .errors import AdapterError, one_line
from .linear import VeraLinear
from .names import matches, plain_path

HEADS = "vera_heads"
_ACTIVE = "vera_head_of"  # in a state dict's metadata: whose head has the model's own names


class _Heads:
    """Whose modules are in the model (None: the backbone's own) and those that are aside, owner -> path -> module."""

    def __init__(self) -> None:
        self.active: str | None = None
        self.aside: dict[str | None, dict[str, nn.Module]] = {}
        self.hooks: list = []


def find(modules: Iterable[tuple[str, nn.Module]], names: Iterable[str]) -> dict[str, nn.Module]:
    """Those of a model's `named_modules` that modules_to_save names, by path: whole components from its end, outermost alone.

    Raises AdapterError for a name that fits no module.
    """
    found: dict[str, nn.Module] = {}
    unused = set(names)
    modules = list(modules)
    for path, module in modules:
        fitting = set(matches(plain_path(path), names))
        unused -= fitting
        known = any(module is other or f"{path}.".startswith(f"{outer}.") for outer, other in found.items())
        if fitting and not known:
            found[path] = module
    if unused:
        name = min(unused)
        if any(f".{path}.{own}".endswith(f".{name}") for path, module in modules for own in module._parameters):
            raise AdapterError(f"modules_to_save names {name!r}, a parameter; name the module that holds it")
        raise AdapterError(f"modules_to_save names {name!r}, which this model does not have")
    return found


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """What an adapter file holds of a module: parameters and persistent buffers, not detached.

    Raises AdapterError where the module's state is more than tensors.
    """
    state = module.state_dict(keep_vars=True)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise AdapterError(f"{type(module).__name__} keeps {key!r}, which is no tensor: an adapter file cannot hold it")
    return state


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Copies of the backbone's own modules, for an adapter that is to be added; the model stays as it is.

    Raises AdapterError for modules that cannot be copied, trained or saved, or that hold adapted layers.
    """
    if not names:
        return {}
    heads, made = _of(model), {}
    active = heads.active
    _put(model, heads, None)
    try:
        found = find(model.named_modules(remove_duplicate=False), names)
        for path, module in found.items():
            if any(isinstance(part, VeraLinear) for part in module.modules()):
                raise AdapterError(f"modules_to_save names {path!r}, which an attached adapter adapts")
            for key, value in tensors(module).items():
                if isinstance(value, nn.Parameter) and not value.is_floating_point():
                    kind = str(value.dtype).removeprefix("torch.")
                    raise AdapterError(f"modules_to_save names {path!r}, whose {key} is {kind} and cannot be trained")
                if hasattr(value, "full_tensor"):
                    raise AdapterError(f"modules_to_save names {path!r}, which is in parts (fully_shard): attach before that")
            for part, key, name, other in _shared(model, found.values()):
                if any(part is own for own in module.modules()) and type(other) is type(part):
                    raise AdapterError(
                        f"modules_to_save names {path!r}, whose {key} is also that of {name}, which would keep the old one; "
                        f"name {name}, too"
                    )
            check_offload(path, module)
            try:
                with torch.inference_mode(False):  # to be trained later
                    made[path] = copy.deepcopy(module)
                norms.release(made[path])
            except (RuntimeError, TypeError) as error:
                raise AdapterError(f"{path!r} in modules_to_save cannot be copied: {one_line(error)}") from None
    finally:
        _put(model, heads, active)
    return made


def check_offload(path: str, module: nn.Module) -> None:
    """Raises AdapterError for a module whose values accelerate brings from elsewhere at each call: a copy of it, and a bank's
    exchange, would compute with the backbone's own."""
    for part in module.modules():
        if hasattr(part, "_hf_hook") and any(value.is_meta for value in [*part.parameters(False), *part.buffers(False)]):
            raise AdapterError(f"{path!r} in modules_to_save is offloaded; keep it on a device (device_map), or offload after")


def add(model: nn.Module, name: str, modules: dict[str, nn.Module]) -> None:
    """Keep an adapter's `copies` aside; `put` brings them in."""
    if not modules:
        return
    heads = _of(model)
    if not heads.hooks:
        setattr(model, HEADS, heads)
        heads.hooks = [
            model.register_state_dict_post_hook(_write_state),
            model.register_load_state_dict_pre_hook(_read_state),
        ]
    heads.aside[name] = modules


def put(model: nn.Module, name: str | None) -> None:
    """Put an adapter's copies in the place of the backbone's modules, or (None, or an adapter without any) the backbone's own.

    What is aside then is frozen.
    Raises AdapterError, with the model as it was, for a module that has no values (meta device) where the model has.
    """
    heads = _of(model)
    _put(model, heads, name if name in heads.aside or name == heads.active else None)
    for modules in heads.aside.values():
        for module in modules.values():
            module.requires_grad_(False)


def of(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """An adapter's own modules by path, in the model or aside; none for an adapter without modules_to_save."""
    heads = _of(model)
    if name is not None and name == heads.active:
        found = {path: model.get_submodule(path) for path in heads.aside[None]}
        for _, key, other, _ in _shared(model, found.values()):
            raise AdapterError(
                f"the {key} of adapter {name!r} in modules_to_save has become that of {other}: something has tied them "
                "again, as tie_weights and resize_token_embeddings do"
            )
        return found
    return dict(heads.aside.get(name, {}))


def owner(model: nn.Module, path: str) -> str | None:
    """An adapter whose copies hold the module of this path, if there is one."""
    heads = _of(model)
    names = [name for name in (heads.active, *heads.aside) if name is not None]
    return next((name for name in names if any(f"{path}.".startswith(f"{plain_path(own)}.") for own in of(model, name))), None)


def drop(model: nn.Module, name: str) -> None:
    """Forget an adapter's copies; the backbone's own modules are in the model then, if the adapter's were."""
    heads = _of(model)
    if name == heads.active:
        _put(model, heads, None)
    heads.aside.pop(name, None)


def release(model: nn.Module) -> None:
    """Forget all modules that are not in the model: what is in it stays, the active adapter's copies or the backbone's own."""
    for hook in _of(model).hooks:
        hook.remove()
    if hasattr(model, HEADS):
        delattr(model, HEADS)


def _of(model: nn.Module) -> _Heads:
    return getattr(model, HEADS, None) or _Heads()


def _put(model: nn.Module, heads: _Heads, name: str | None) -> None:
    if name == heads.active:
        return
    for owner in {None, name} & heads.aside.keys():
        for path, module in heads.aside[owner].items():
            _check_values(model, path, module)
    if heads.active is not None:
        heads.aside[heads.active] = {path: _swap(model, path, module) for path, module in heads.aside.pop(None).items()}
    if name is not None:
        heads.aside[None] = {path: _swap(model, path, module) for path, module in heads.aside.pop(name).items()}
    heads.active = name


def _check_values(model: nn.Module, path: str, module: nn.Module) -> None:
    here = dict(model.get_submodule(path).state_dict(keep_vars=True))
    for key, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and value.is_meta and key in here and not here[key].is_meta:
            raise AdapterError(f"a copy of {path}.{key} has no values (meta device); load a state_dict first")


def _swap(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Put `new` wherever the module of this path stands, which may have several names. Returns the one that stood there."""
    old = model.get_submodule(path)
    modes = {name: module.training for name, module in old.named_modules() if not norms.frozen(module)}
    for name, module in new.named_modules():
        if not norms.frozen(module):
            module.training = modes.get(name, old.training)
    like = dict([*old.named_parameters(), *old.named_buffers()])
    for name, value in [*new.named_parameters(), *new.named_buffers()]:
        if name in like:
            _follow(value, like[name])
    for parent in list(model.modules()):
        for attribute, child in parent._modules.items():
            if child is old:
                parent._modules[attribute] = new
    return old


def _follow(value: Tensor, like: Tensor) -> None:
    """Move a tensor, and its gradient, to the device and the floating-point dtype of another one, in place."""
    dtype = like.dtype if value.is_floating_point() else value.dtype
    if value.device == like.device and value.dtype == dtype:
        return
    grad, value.grad = value.grad, None
    value.data = value.data.to(like.device, dtype)
    value.grad = None if grad is None else grad.to(like.device, dtype)


def _shared(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """Parameters in `modules` that a module outside them has, too: whose, under which name, and the other's path and module."""
    inside = {id(part): part for module in modules for part in module.modules()}
    own = {id(p): (part, key) for part in inside.values() for key, p in part._parameters.items() if p is not None}
    for name, other in model.named_modules():
        if id(other) not in inside:
            for parameter in other._parameters.values():
                if id(parameter) in own:
                    yield *own[id(parameter)], name, other


def _entries(heads: _Heads, prefix: str) -> Iterable[tuple[str, nn.Module]]:
    """The modules that are aside, each with the beginning of its keys in a state_dict."""
    for name, modules in heads.aside.items():
        owner = "backbone" if name is None else f"adapter.{name}"
        for path, module in modules.items():
            yield f"{prefix}{HEADS}.{owner}.{path}.", module


def _write_state(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    metadata[_ACTIVE] = _of(model).active
    for start, module in _entries(_of(model), prefix):
        module.state_dict(destination=state, prefix=start)


def _read_state(model: nn.Module, state: dict, prefix: str, metadata, _strict, missing: list, unexpected: list, errors: list):
    there, here = metadata.get(_ACTIVE, _of(model).active), _of(model).active
    if there != here:
        raise AdapterError(f"the state_dict was taken with adapter {there!r} active, here it is {here!r}: set_adapter first")
    for start, module in _entries(_of(model), prefix):
        own = {key: state.pop(key) for key in list(state) if key.startswith(start)}
        own = {key.removeprefix(start): value for key, value in own.items()}
        expected = module.state_dict()
        missing += [start + key for key in expected if key not in own]
        wrong = [key for key in own if key not in expected or own[key].shape != expected[key].shape]
        errors += [f"{start}{key} does not fit the copy of the head that is kept there" for key in wrong]
        fitting = {key: value for key, value in own.items() if key not in wrong}
        module.load_state_dict(fitting, strict=False, assign=any(value.is_meta for value in expected.values()))
    others = [key for key in state if key.startswith(f"{prefix}{HEADS}.")]
    for key in others:  # of another adapter than the ones here, or saved while another one was active
        unexpected.append(key)
        del state[key]
