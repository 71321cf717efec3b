"""Find the target matrices in a model, replace them, say what is trainable, merge and unmerge the whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from . import heads, norms, saving
from .base_layer import check_adaptable, device_of, dtype_of, is_linear, shape_of
from .config import VeraConfig
from .errors import AdapterError
from .linear import Vectors, VeraLinear, variant
from .names import inside, matches, plain_path, unwrapped
from .projection import Projection

CONFIGS = "vera_configs"


def find_targets(model: nn.Module, config: VeraConfig) -> dict[str, nn.Module]:
    """The linear layers that the adapter goes on, by dotted name, in the model's own order.

    Raises AdapterError when a target name fits no layer, or one to which no adapter can be put.
    """
    linear, names, in_heads = linear_layers(model, config.modules_to_save)
    found: dict[str, nn.Module] = {}
    first: dict[int, str] = {}
    unused = set(config.targets)
    for name, module in linear.items():
        fitting = [target for alias in names[name] for target in matches(alias, config.targets)]
        if fitting:
            check_adaptable(unwrapped(model), name, module)
            other = first.setdefault(id(module), name)
            if other != name:
                raise AdapterError(
                    f"{other} and {name} are one module; name one of them in full, and it is adapted there alone"
                )
            found[name] = module
            unused.difference_update(fitting)
    for name in sorted(unused):
        if any(matches(path, [name]) for path in in_heads):
            raise AdapterError(f"the layer {name} lies in modules_to_save, so it is trained whole and takes no adapter")
    if unused:
        suffixes = sorted({re.sub(r"^.*\.", "", name) for name in linear})
        raise AdapterError(
            f"no linear layer is called {', '.join(sorted(unused))}; this model has {', '.join(suffixes) or 'none'}"
        )
    return found


def linear_layers(
    model: nn.Module, modules_to_save: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, list[str]], list[str]]:
    """The linear layers of a model by name, all names of each, and the names of those in modules_to_save.

    A layer has several names where a module around it has: it goes by the first, and what is put there is there under all.
    """
    model = unwrapped(model)
    places: dict[tuple[int, str], str] = {}
    linear: dict[str, nn.Module] = {}
    names: dict[str, list[str]] = {}
    in_heads = []
    for path, module in model.named_modules(remove_duplicate=False):
        name, (above, _, attribute) = plain_path(path), path.rpartition(".")
        if not is_linear(module) or name in names or isinstance(parent := model.get_submodule(above), VeraLinear):
            continue
        if inside(name, modules_to_save):
            in_heads.append(name)
            continue
        known = places.setdefault((id(parent), attribute), name)
        if known == name:
            linear[name] = module
        names.setdefault(known, []).append(name)
    return linear, names, in_heads


def target_shapes(targets: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of each target."""
    return {name: shape_of(module) for name, module in targets.items()}


def projection_keys(config: VeraConfig, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple]:
    """What Projection is built from, for each target: one key for all of them when the pair is shared.

    Shared: the largest d_out and the largest d_in, sliced by each layer. Unique: each layer's own shape, and the seed of the
    i-th target is projection_seed + i * 1,000,003, so that neighbouring seeds do not overlap.
    """
    drawn = (config.init, config.projection_dtype)
    if config.sharing == "unique":
        return {
            name: (config.rank, d_in, d_out, config.projection_seed + index * 1_000_003, *drawn)
            for index, (name, (d_out, d_in)) in enumerate(shapes.items())
        }
    d_out = max(shape[0] for shape in shapes.values())
    d_in = max(shape[1] for shape in shapes.values())
    return dict.fromkeys(shapes, (config.rank, d_in, d_out, config.projection_seed, *drawn))


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this dotted name, and in no other that that one may have."""
    parent, _, attribute = path.rpartition(".")
    setattr(unwrapped(model.get_submodule(parent)), attribute, module)


def vera_layers(model: nn.Module) -> Iterator[tuple[str, VeraLinear]]:
    """Name and module of every adapted layer."""
    for path, module in unwrapped(model).named_modules():
        if isinstance(module, VeraLinear):
            yield plain_path(path), module


def configs(model: nn.Module) -> dict[str, VeraConfig]:
    """The attached adapters by name."""
    return dict(getattr(unwrapped(model), CONFIGS, {}))


def active_adapter(model: nn.Module) -> str | None:
    """The name of the active adapter, None for the bare backbone."""
    return next((layer.active for _, layer in vera_layers(model) if layer.active is not None), None)


def _distributed(model: nn.Module) -> bool:
    """Whether DistributedDataParallel has wrapped it, which has taken up the parameters that trained then."""
    return any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())


def check_root(model: nn.Module) -> None:
    """Raises AdapterError for a part of the model that an adapter was attached to, or a model that has it in a part: the
    adapter's configuration and heads are with the one that it was attached to."""
    attached = configs(model)
    for path, layer in vera_layers(model):
        for name in layer.vectors:
            if name not in attached:
                raise AdapterError(
                    f"adapter {name!r} on {path} was attached to another module than this one: name that one here"
                )


def check_no_bank(model: nn.Module) -> None:
    """Raises AdapterError for a model that an AdapterBank has wrapped."""
    if saving.in_bank(model):
        raise AdapterError("the model is in an AdapterBank, which brings adapters of its own; close the bank first")


def attach(model: nn.Module, config: VeraConfig, name: str = "default", layer: type[VeraLinear] = VeraLinear) -> nn.Module:
    """Put a new adapter on a model, in place, and make it the active one. Returns the model.

    layer: VeraLinear, or a subclass that is a variant of VeRA. `save_adapter` and AdapterBank know VeRA alone; what a variant
    trains is in the model's state_dict.

    Freezes everything but the adapter's own b and d and its copies of the modules in `modules_to_save`, which start from
    the backbone's own; BatchNorm's running statistics too, with which it computes in training as well (convert to
    SyncBatchNorm before). What save_pretrained is to write as a plain model is the model that is given here, not one around
    it. Equal projections are stored once for each device and dtype that layers have, also across adapters. A module that
    reads a layer's weight instead of calling the layer does not see its adapter: those known are refused.

    Raises AdapterError when the name is taken, the model is merged or a target fits no layer; the model is then as it was. So
    it is, refused, where a part of the model has an adapter of its own already.
    """
    check_no_bank(model)
    given, model = model, unwrapped(model)
    check_root(model)
    if _distributed(given):
        raise AdapterError("attach the adapter before DistributedDataParallel, which would not see its parameters")
    _check_name(name)
    if name in configs(model):
        raise AdapterError(f"there is an adapter called {name!r} already")
    if any(there.merged is not None for _, there in vera_layers(model)):
        raise AdapterError("unmerge the model before attaching another adapter")
    targets = find_targets(model, config)
    for path in targets:
        owner = heads.owner(model, path)
        if owner is not None:
            raise AdapterError(f"{path} belongs to modules_to_save of adapter {owner!r}, of which it is one copy")
    copies = heads.copies(model, config.modules_to_save)
    # First everything that can fail and takes memory; what follows puts it in, and takes it out again if it fails all the same.
    drawn = [pair for _, there in vera_layers(model) for pair in there.projections.values()]
    projections = {(*pair.key, pair.A.device, pair.A.dtype): pair for pair in drawn}
    made: dict[str, tuple[VeraLinear, Vectors, Projection]] = {}
    for path, key in projection_keys(config, target_shapes(targets)).items():
        adapted = targets[path]
        if not isinstance(adapted, VeraLinear):
            adapted = layer(adapted)
            above = unwrapped(model.get_submodule(path.rpartition(".")[0]))
            if isinstance(above, nn.TransformerEncoderLayer):  # its fast path, which reads weights itself, looks for hooks
                adapted.register_forward_pre_hook(seen)
        elif variant(type(adapted)) != variant(layer):
            raise AdapterError(f"{path} is a {type(adapted).__name__} of another adapter, it cannot be a {layer.__name__} too")
        base = adapted.base_layer
        place = (*key, device_of(base), dtype_of(base))
        if place not in projections:
            projections[place] = Projection(*key, device=place[-2], dtype=place[-1])
        made[path] = (adapted, adapted.new_vectors(config, device_of(base)), projections[place])
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = active_adapter(model)
    attached = configs(model)
    try:
        for path, (adapted, vectors, projection) in made.items():
            adapted.vectors[name], adapted.projections[name] = vectors, projection
            if targets[path] is not adapted:
                replace_module(model, path, adapted)
        setattr(model, CONFIGS, {**attached, name: config})
        heads.add(model, name, copies)
        set_adapter(model, name)
        saving.install(model)
        norms.freeze(model, heads.of(model, name).values())
        for own in heads.of(model, None).values():  # the backbone's, aside
            norms.freeze(own, ())
    except BaseException:
        heads.put(model, active)
        heads.drop(model, name)
        setattr(model, CONFIGS, attached)
        for path, (adapted, _, _) in made.items():
            for kept in (adapted.vectors, adapted.projections):
                if name in kept:
                    del kept[name]
            adapted.active = active if active in adapted.vectors else None
            if targets[path] is not adapted:
                replace_module(model, path, adapted.base_layer)
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)
        raise
    return given


def seen(layer: nn.Module, inputs: tuple) -> None:
    """A hook that does nothing but be there."""


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or "." in name:
        raise AdapterError(f"an adapter's name must be a text that is not empty and holds no dot, got {name!r}")
    if hasattr(nn.ModuleDict(), name):
        raise AdapterError(f"an adapter cannot be called {name!r}, which means something else to torch's modules")


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Choose the active adapter, the only one that is trainable; None runs (and freezes) the bare backbone and its own head.

    Raises AdapterError for a name that is not attached, a merged model, and in DistributedDataParallel, which has taken up what
    trained when it wrapped the model, for another adapter than the active one.
    """
    wrapped, model = _distributed(model), unwrapped(model)
    check_root(model)
    attached = configs(model)
    active = active_adapter(model)
    if wrapped and None not in (name, active) and name != active:
        raise AdapterError(f"choose adapter {name!r} before DistributedDataParallel, which would not see its parameters")
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
    """Compose W = W0 + diag(b) B diag(d) A in every adapted layer: the backbone's own speed from here on, in float32, eager and
    without training (`VeraLinear.merge` says when W is used). Returns the model.

    `state_dict` stays that of the unmerged model, W0 with b and d, and what is loaded into a merged model changes W at its next
    use; `save_pretrained` writes the merged model as a plain one.
    Layers that share a weight are merged each for itself. Raises AdapterError, with no layer merged, by name, for a base layer
    that is more than its weight (see base_layer.py) and for weights that are not finite.
    """
    done: list[VeraLinear] = []
    for name, layer in vera_layers(model):
        if layer.merged is None:
            try:
                layer.merge()
            except AdapterError as error:
                for merged in done:
                    merged.unmerge()
                raise AdapterError(f"{name}: {error}") from None
            done.append(layer)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Compute with W0, b and d again in every adapted layer; no bit of W0 has changed. Returns the model."""
    for _, layer in vera_layers(model):
        layer.unmerge()
    return model
