"""Find the target matrices in a model, replace them, say what is trainable, merge and unmerge the whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from . import heads, saving
from .base_layer import check_adaptable, device_of, dtype_of, is_linear, shape_of
from .config import VeraConfig
from .errors import AdapterError
from .linear import VeraLinear
from .names import inside, matches
from .projection import Projection

_CONFIGS = "vera_configs"
_BANK = "vera_bank"  # in every layer that an AdapterBank has wrapped


def find_targets(model: nn.Module, config: VeraConfig) -> dict[str, nn.Module]:
    """The linear layers that the adapter goes on, by dotted name, in the model's own order.

    Raises AdapterError when a target name fits no layer, or one to which no adapter can be put.
    """
    wrapped = {id(layer.base_layer) for _, layer in vera_layers(model)}
    linear = {name: module for name, module in model.named_modules() if is_linear(module) and id(module) not in wrapped}
    linear = {name: module for name, module in linear.items() if not inside(name, config.modules_to_save)}
    found: dict[str, nn.Module] = {}
    unused = set(config.targets)
    for name, module in linear.items():
        fitting = matches(name, config.targets)
        if fitting:
            check_adaptable(model, name, module)
            found[name] = module
            unused.difference_update(fitting)
    if unused:
        suffixes = sorted({re.sub(r"^.*\.", "", name) for name in linear})
        raise AdapterError(
            f"no linear layer is called {', '.join(sorted(unused))}; this model has {', '.join(suffixes) or 'none'}"
        )
    return found


def target_shapes(targets: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of each target."""
    return {name: shape_of(module) for name, module in targets.items()}


def projection_keys(config: VeraConfig, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple]:
    """What Projection is built from, for each target: one key for all of them when the pair is shared.

    Shared: the largest d_out and the largest d_in, sliced by each layer. Unique: each layer's own shape, and the seed of the
    i-th target is projection_seed + i * 1,000,003, so that neighbouring seeds do not overlap.
    """
    if config.sharing == "unique":
        return {
            name: (config.rank, d_in, d_out, config.projection_seed + index * 1_000_003, config.init)
            for index, (name, (d_out, d_in)) in enumerate(shapes.items())
        }
    d_out = max(shape[0] for shape in shapes.values())
    d_in = max(shape[1] for shape in shapes.values())
    return dict.fromkeys(shapes, (config.rank, d_in, d_out, config.projection_seed, config.init))


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this dotted name. A merged layer's base layer takes W along."""
    old = model.get_submodule(path)
    if isinstance(old, VeraLinear) and module is old.base_layer:
        old.settle()
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def vera_layers(model: nn.Module) -> Iterator[tuple[str, VeraLinear]]:
    """Name and module of every adapted layer."""
    for name, module in model.named_modules():
        if isinstance(module, VeraLinear):
            yield name, module


def configs(model: nn.Module) -> dict[str, VeraConfig]:
    """The attached adapters by name."""
    return dict(getattr(model, _CONFIGS, {}))


def check_no_bank(model: nn.Module) -> None:
    """Raises AdapterError for a model that an AdapterBank has wrapped."""
    if any(_BANK in vars(module) for module in model.modules()):
        raise AdapterError("the model is in an AdapterBank, which brings adapters of its own; close the bank first")


def attach(model: nn.Module, config: VeraConfig, name: str = "default") -> nn.Module:
    """Put a new adapter on a model, in place, and make it the active one. Returns the model.

    Freezes everything but the adapter's own b and d and its copies of the modules in `modules_to_save`, which start from the
    backbone's own. Equal projections are stored once,
    also across adapters. Raises AdapterError when the name is taken, the model is merged or a target fits no layer; the model
    is then as it was.
    """
    check_no_bank(model)
    if name in configs(model):
        raise AdapterError(f"there is an adapter called {name!r} already")
    if not name or "." in name:
        raise AdapterError(f"an adapter's name must not be empty or hold a dot: {name!r}")
    if any(layer.merged is not None for _, layer in vera_layers(model)):
        raise AdapterError("unmerge the model before attaching another adapter")
    targets = find_targets(model, config)
    for path in targets:
        owner = heads.owner(model, path)
        if owner is not None:
            raise AdapterError(f"{path} belongs to modules_to_save of adapter {owner!r}, of which it is one copy")
    copies = heads.copies(model, config.modules_to_save)
    projections = {projection.key: projection for _, layer in vera_layers(model) for projection in layer.projections.values()}
    for path, key in projection_keys(config, target_shapes(targets)).items():
        module = targets[path]
        if not isinstance(module, VeraLinear):
            module = VeraLinear(module)
            replace_module(model, path, module)
        if key not in projections:
            base = module.base_layer
            projections[key] = Projection(*key, device=device_of(base), dtype=dtype_of(base))
        module.add(name, config, projections[key])
    setattr(model, _CONFIGS, {**configs(model), name: config})
    heads.add(model, name, copies)
    set_adapter(model, name)
    return model


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Choose the active adapter, the only one that is trainable; None runs (and freezes) the bare backbone and its own head.

    Raises AdapterError for a name that is not attached or a merged model.
    """
    attached = configs(model)
    if name is not None and name not in attached:
        raise AdapterError(f"no adapter is called {name!r}; attached: {', '.join(attached) or 'none'}")
    if any(layer.merged is not None for _, layer in vera_layers(model)):
        raise AdapterError("unmerge the model before choosing another adapter")
    heads.put(model, name)
    model.requires_grad_(False)
    for _, layer in vera_layers(model):
        layer.active = name if name in layer.vectors else None
        for other, vectors in layer.vectors.items():
            vectors.set_trainable(other == name)
    for module in heads.of(model, name).values():
        module.requires_grad_(True)


def merge(model: nn.Module) -> nn.Module:
    """Compose W = W0 + diag(b) B diag(d) A in every adapted layer: the backbone's own speed from here on. Returns the model.

    `state_dict` stays what it was, W0 with b and d; `save_pretrained` writes the merged model as a plain one.
    Raises AdapterError, with no layer merged, for a quantised base or weights that are not finite.
    """
    done = []
    try:
        for _, layer in vera_layers(model):
            if layer.merged is None:
                layer.merge()
                done.append(layer)
    except AdapterError:
        for layer in done:
            layer.unmerge()
        raise
    saving.install(model)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Restore W0, bit for bit, in every adapted layer. Returns the model."""
    for _, layer in vera_layers(model):
        layer.unmerge()
    saving.remove(model)
    return model
