"""What kind of layer an adapter goes on: a plain linear map, whose W0 may be taken by itself, or more than its weight.

A plain layer computes x W0^T + bias and nothing else, so W0 + dW can be formed, and one product does the work. Every other
layer keeps its own call, to whose result the update is added, and nothing is merged into it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from .errors import AdapterError
from .names import unwrapped

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# transformers' modules that read the weight of a layer of theirs without calling it: always, or in a fused kernel.
_READ = {
    **dict.fromkeys(("BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer"), ("out_proj",)),
    **dict.fromkeys(("Mamba2Mixer", "NemotronHMamba2Mixer", "Zamba2MambaMixer"), ("out_proj",)),
    **dict.fromkeys(("FalconMambaMixer", "MambaMixer"), ("dt_proj", "out_proj", "x_proj")),
    **dict.fromkeys(("ConditionalDetrMHAttentionMap", "DetrMHAttentionMap", "MaskFormerDetrMHAttentionMap"), ("k_proj",)),
    "DabDetrMHAttentionMap": ("k_linear",),
    "JambaMambaMixer": ("dt_proj",),
    "LongcatFlashTopkRouter": ("classifier",),
    "MobileBertLMPredictionHead": ("decoder", "dense"),
    "WavLMAttention": ("k_proj", "out_proj", "q_proj", "v_proj"),
}
_FORWARDS: dict[type, object] = {nn.Linear: nn.Linear.forward}  # of each kind of layer, as it was when it was first seen


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps [..., in_features] to [..., out_features] by a weight, in whatever way."""
    return (
        isinstance(module, nn.Linear)
        or transposed(module)
        or all(hasattr(module, key) for key in ("in_features", "out_features", "weight"))
    )


def _conv1d() -> type:
    """transformers' Conv1D; before transformers is imported there is no such layer, and this is a class that nothing is of."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", _Nothing)


class _Nothing:
    pass


def transposed(module: nn.Module) -> bool:
    """Whether a layer is a Conv1D: a linear map whose weight lies as [in_features, out_features], as in GPT-2."""
    return isinstance(module, _conv1d())


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in)."""
    if transposed(layer):
        d_in, d_out = layer.weight.shape
        return d_out, d_in
    return layer.out_features, layer.in_features


def matrix(layer: nn.Module) -> Tensor:
    """W0 [d_out, d_in] of a layer with such a weight: the weight, or a view of it."""
    return layer.weight.t() if transposed(layer) else layer.weight


def oddity(layer: nn.Module) -> str | None:
    """What makes a linear layer more than x W0^T + bias, in words; None for a plain one.

    Asked at every call, because hooks and offloading come and go: some dictionary look-ups, nothing of the size of a tensor.
    """
    own = layer.__dict__
    weight = own["_parameters"].get("weight")
    if isinstance(weight, Tensor) and weight.dtype not in FLOATS:
        return f"its weight is quantised or holds no ordinary numbers ({_name(weight.dtype)})"
    if type(layer) is not nn.Linear and type(layer) is not _conv1d():
        return f"it is a {type(layer).__name__}, which computes in its own way"
    if "forward" in own:
        return "its forward is replaced, as offloading does"
    if _FORWARDS.setdefault(type(layer), type(layer).forward) is not type(layer).forward:
        return f"the forward of {type(layer).__name__} is replaced for all layers"
    if hooked(layer):
        return "it has hooks"
    if type(weight) is not nn.Parameter or type(own["_parameters"].get("bias")) not in (nn.Parameter, type(None)):
        return "its weight or bias is no ordinary parameter"
    if weight.is_meta:
        return "its weight is on the meta device"
    if weight.layout is not torch.strided:
        return f"its weight is {_name(weight.layout)}"
    if torch_module._has_any_global_hook():
        return "there are hooks on all modules"
    return None


def hooked(module: nn.Module) -> bool:
    """Whether, but for global hooks, more than `forward` runs when a module is called."""
    own = module.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"])


def plain(layer: nn.Module) -> bool:
    """Whether W0 of a layer may be taken by itself."""
    return oddity(layer) is None


def obstacle(layer: nn.Module) -> str | None:
    """Why W0 + dW cannot stand for a layer, in words; None for a plain one, and for an nn.Linear that is so but for a weight
    made anew of other parameters at each call (torch.nn.utils.parametrize), always the same for the same ones."""
    reason = oddity(layer)
    if reason is not None and type(layer).__bases__ == (nn.Linear,) and parametrize.is_parametrized(layer, "weight"):
        if hooked(layer) or "forward" in layer.__dict__ or torch_module._has_any_global_hook():
            return "it has hooks"
        if layer.training and any(True for _ in layer.buffers()):
            return "its weight may change at each call while training"
        return None
    return reason


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer computes: the device of its weight, or the one to which accelerate brings an offloaded weight."""
    device = layer.weight.device
    hook = getattr(layer, "_hf_hook", None)
    if device.type == "meta" and hook is not None:
        for one in getattr(hook, "hooks", (hook,)):
            if getattr(one, "execution_device", None) is not None:
                return torch.device(one.execution_device)
    return device


def dtype_of(layer: nn.Module) -> torch.dtype:
    """In which A and B stand beside a layer: that of its weight, or float32 where the weight holds no ordinary numbers."""
    return layer.weight.dtype if layer.weight.dtype in FLOATS else torch.float32


def check_adaptable(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Raises AdapterError, by name, for a layer whose call nobody makes or to whose result no update can be added."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise AdapterError(f"{path} ({type(layer).__name__}) has no weight tensor, so no device and no type to follow")
    if isinstance(weight, nn.UninitializedParameter):
        raise AdapterError(f"{path} ({type(layer).__name__}) has no shape yet; run the model once before attaching an adapter")
    if weight.is_complex():
        raise AdapterError(f"{path} holds complex numbers; b, d, A and B are real")
    if 0 in shape_of(layer):
        d_out, d_in = shape_of(layer)
        raise AdapterError(f"{path} ({type(layer).__name__}) is empty: it makes {d_out} numbers of {d_in}")
    above, _, name = path.rpartition(".")
    parent = unwrapped(model.get_submodule(above))
    if name in _read_by(parent):
        raise AdapterError(
            f"{type(parent).__name__} reads the weight of {path} without calling it, so an adapter there would do nothing"
        )


def _read_by(parent: nn.Module) -> Collection[str]:
    """The layers of a module whose weight it reads without calling them, as far as that is known of its class."""
    if isinstance(parent, nn.MultiheadAttention):
        return parent._modules.keys()
    if getattr(parent, "slow_but_exact", False) and getattr(parent, "pretraining_tp", 1) > 1:  # BLOOM's
        return ("dense", "dense_4h_to_h")
    return next((_READ[kind.__name__] for kind in type(parent).__mro__ if kind.__name__ in _READ), ())


def taken(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
    """The input of a layer's call, by place or by the name that its own forward has for it, and what is beside it."""
    if args:
        return args[0], args[1:], kwargs
    name = next(iter(inspect.signature(layer.forward).parameters), None)
    if name not in kwargs:
        raise TypeError(f"{type(layer).__name__} is called without its input, {name}")
    return kwargs[name], (), {key: value for key, value in kwargs.items() if key != name}


def nested(x: Tensor) -> bool:
    """Whether x is a nested tensor that has no shape and takes few operations: of torch.strided layout, not of torch.jagged."""
    return x.is_nested and x.layout is torch.strided


def called(layer: nn.Module, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """What a base layer returns. Raises AdapterError for something to which no update can be added."""
    h, d_out = layer(x, *args, **kwargs), shape_of(layer)[0]
    if not isinstance(h, Tensor) or h.shape != (*x.shape[:-1], d_out):
        got = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise AdapterError(
            f"{type(layer).__name__} returns {got} for an input of shape {list(x.shape)}; "
            f"an update can be added to [..., {d_out}] alone"
        )
    return h


def _name(kind: object) -> str:
    return str(kind).removeprefix("torch.")
