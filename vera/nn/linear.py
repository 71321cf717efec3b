"""One adapted linear map: h = W0 x + diag(b) B diag(d) A x, with several adapters by name, merging and exact unmerging."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook

from .base_layer import called, matrix, nested, obstacle, plain, shape_of, taken, transposed
from .config import VeraConfig
from .errors import AdapterError
from .functional import (
    HALF,
    ActivationOrder,
    Plan,
    Update,
    WeightOrder,
    adapted_linear,
    autocast_dtype,
    compose,
    ordinary,
    plan,
    projected,
    rounded,
    without_autocast,
    written_out,
)


class Vectors(nn.Module):
    """The trained part of one adapter in one layer: b [d_out] and d [rank], float32 on a half-precision backbone too."""

    @torch.inference_mode(False)  # to be trained later
    def __init__(self, config: VeraConfig, d_out: int, device):
        super().__init__()
        b, d = (torch.empty(size, dtype=torch.float32, device=device) for size in (d_out, config.rank))
        self.b = nn.Parameter(b, config.train != "only_d")
        self.d = nn.Parameter(d, config.train != "only_b")
        self.trained = config.train
        self.dropout = config.dropout
        self.d_init = config.d_init
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """b and d as they are before training (paper, section 3.3 and Table 6a)."""
        only_d = self.trained == "only_d"
        self.b.fill_(1.0 if only_d else 0.0)
        self.d.fill_(0.0 if only_d else self.d_init)

    def set_trainable(self, trainable: bool) -> None:
        self.requires_grad_(trainable)
        self.b.requires_grad_(trainable and self.trained != "only_d")
        self.d.requires_grad_(trainable and self.trained != "only_b")

    def _apply(self, fn, recurse=True):
        # Follow the model to another device, but keep float32 when it is cast to half precision: an update of b or d can be
        # smaller than bf16 resolves.
        # The gradient's data, since what is kept of a gradient itself is rounded with it.
        kept = [(value.data, None if value.grad is None else value.grad.data) for value in self.parameters()]
        super()._apply(fn, recurse)
        for parameter, (value, grad) in zip(self.parameters(), kept, strict=True):
            if parameter.dtype in HALF:
                parameter.grad = None
                parameter.data = value.to(parameter.device)
                parameter.grad = None if grad is None else grad.to(parameter.device)
        if kept[0][0].is_meta and not self.b.is_meta:
            self.reset()
        return self


def variant(kind: type[VeraLinear]) -> tuple:
    """What tells one variant of VeRA from another: a class that fully_shard makes of an adapted layer's is the same one."""
    return tuple(getattr(kind, own) for own in ("new_vectors", "adapted", "whole"))


class VeraLinear(nn.Module):
    """A frozen linear layer [..., d_in] -> [..., d_out] with any number of named adapters, one of them active.

    `base_layer` is the layer that was there before. Where it is `plain`, W0 x and the update are computed together, in the
    order that costs less. Any other keeps its own call, to whose result the update is added; so does a plain one whose W0 or
    bias is trained, and one with dropout on the adapter's input.

    A variant of VeRA is a subclass (`attach(..., layer=)`): `new_vectors` adds what it trains, `adapted` makes its h of VeRA's,
    and `whole` its W of VeRA's; the two must agree.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.out_features, self.in_features = shape_of(base_layer)
        self.vectors = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.active: str | None = None
        self.merged: str | None = None
        self.plan: Plan | None = None  # None: chosen from the shapes of each call
        self._sum: Tensor | None = None  # W while merged
        self._sum_of: list[Tensor] = []  # what W was composed of
        self._sum_at: list[tuple] = []  # in which state
        self.training = base_layer.training

    @property
    def weight(self) -> Tensor:
        """W0 [d_out, d_in], or W while merged."""
        return matrix(self.base_layer) if self.merged is None else self.whole()

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("weight", "bias"):  # as tie_weights and resize_token_embeddings do
            raise AdapterError(f"the {name} of an adapted layer cannot be replaced; unload the adapters first")
        super().__setattr__(name, value)

    def matrices(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A [r, d_in], B [d_out, r], b [d_out], d [r] of one adapter."""
        projection, vectors = self.projections[name], self.vectors[name]
        b = vectors.b
        if projection.A.is_meta and not b.is_meta:
            projection.draw_on(b.device)
        A, B = projection.sliced(self.in_features, self.out_features)
        return A, B, b, vectors.d

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # The state dict's metadata say of which pair its b and d are; safetensors files have no such metadata.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            pairs = {name: projection.drawn_from() for name, projection in self.projections.items()}
            destination._metadata[prefix[:-1]]["drawn_from"] = pairs

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs):
        for name, there in local_metadata.get("drawn_from", {}).items():
            here = self.projections[name].drawn_from() if name in self.projections else there
            if there != here and any(f"{prefix}vectors.{name}.{part}" in state_dict for part in "bd"):
                differ = ", ".join(f"{key} {there.get(key)}, here {here[key]}" for key in here if there.get(key) != here[key])
                error_msgs.append(f"{prefix[:-1]}: b and d were trained with another pair A, B: {differ}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def new_vectors(self, config: VeraConfig, device: torch.device) -> Vectors:
        """What an adapter of this layer trains, as it starts."""
        return Vectors(config, self.out_features, device)

    def forward(self, *args, **kwargs) -> Tensor:
        """The base layer's call, with its name for the input, adapted. A nested tensor, as torch's encoder makes of a padded
        batch, comes back as one."""
        if self.active is None:
            return self.base_layer(*args, **kwargs)
        x, args, kwargs = taken(self.base_layer, args, kwargs)
        if not nested(x):
            return self.adapted(x, *args, **kwargs)
        parts = x.unbind()
        h = self.adapted(torch.cat(parts), *args, **kwargs)
        return torch.nested.as_nested_tensor(list(h.split([len(part) for part in parts])))

    def adapted(self, x: Tensor, *args, **kwargs) -> Tensor:
        """h of x with the active adapter."""
        A, B, b, d = matrices = self.matrices(self.active)
        if b.is_meta and not x.is_meta:
            raise AdapterError(
                f"b and d of adapter {self.active!r} are on the meta device: give them values, and offload before attaching"
            )
        base, autocast = self.base_layer, autocast_dtype(x)
        dtype = autocast or x.dtype
        graph = torch.is_grad_enabled()
        trained = graph and (b.requires_grad or d.requires_grad)
        whole = self.merged is not None and not (trained or args or kwargs) and x.dtype == dtype not in HALF
        whole = whole and not torch.compiler.is_compiling()  # a compiled call would keep this W for good
        if whole and ordinary(x, *matrices) and self._is_sum(graph):
            return F.linear(x, self._merged_weight(), self.bias)
        dropout = self.vectors[self.active].dropout if self.training else 0.0
        together = not (dropout or args or kwargs) and dtype != torch.float16 and plain(base)
        if together:
            W0, bias = matrix(base), base.bias
            together = (W0.dtype == x.dtype or (autocast and W0.dtype != torch.float64)) and ordinary(x, W0, *matrices)
            together = together and not (graph and (W0.requires_grad or (bias is not None and bias.requires_grad)))
        if not together:
            return self._added(x, args, kwargs, dtype, dropout, matrices)
        plan = self._plan(x, dtype, b, d)
        half = dtype in HALF
        if half:
            A = self.projections[self.active].in_half(self.in_features, dtype)
        bias = None if bias is None else bias.to(dtype)
        # In half precision all products are of that one dtype, which autocast leaves alone.
        with nullcontext() if half else without_autocast(x):
            if not trained and not (graph and x.requires_grad):
                return adapted_linear(plan.order, x.to(dtype), W0, bias, A, B, b, d)
            if plan.order == "activation":
                z = x.to(dtype)
                return ActivationOrder.apply(z, W0, bias, A, B, b, d, projected(z, A, x, self))
            saves_u = plan.through_u and A.shape[0] < A.shape[1] and trained
            z = x.to(dtype) if saves_u else rounded(x, dtype, self)
            u = projected(z, A, x, self) if saves_u else None
            z = None if z is x else z
            return WeightOrder.apply(x, z, W0, bias, A, B, b, d, u, plan.through_u, plan.keep_weight)

    def _added(self, x: Tensor, args: tuple, kwargs: dict, dtype: torch.dtype, dropout: float, matrices: tuple) -> Tensor:
        """What the base layer returns, plus the update; in float32 instead of fp16, whose range a sum over x may leave."""
        h = called(self.base_layer, x, args, kwargs)
        with without_autocast(x):
            z = F.dropout(x, dropout) if dropout else x
            cast = z.to(torch.float32 if dtype == torch.float16 else dtype)
            if not ordinary(x, h, *matrices):
                return written_out(h, cast, *matrices)
            return Update.apply(h, cast, *matrices, projected(cast, matrices[0], z, self))

    def _plan(self, x: Tensor, dtype: torch.dtype, b: Tensor, d: Tensor) -> Plan:
        """The layer's own `plan` if it has one, else the cheapest for these shapes.

        Where half precision computes, by W0's dtype or by autocast, W0 + dW would be rounded to it: there it is never formed
        (docs/speed.md has what that keeps of a small dW).
        """
        if self.plan is not None:
            return self.plan
        graph = torch.is_grad_enabled()
        return plan(
            x.numel() // self.in_features,
            self.in_features,
            self.out_features,
            d.numel(),
            training=graph and (b.requires_grad or d.requires_grad),
            input_gradient=graph and x.requires_grad,
            half=dtype in HALF,
        )

    def merge(self) -> None:
        """Compose W = W0 + diag(b) B diag(d) A beside W0, which stays untouched. Does nothing when already merged.

        W is float32 at least, also on a half-precision backbone. It is multiplied with x where that loses nothing and trains
        nothing: no gradient asked of W0, bias, b or d, no half precision, no autocast, no torch.compile or trace. Elsewhere the
        layer computes as if it were not merged. When W0, b or d change, W follows, also after a step of any optimiser, but not
        what is written through their .data, which torch does not count: unmerge first.

        Raises AdapterError for a base layer that is more than its weight, or a sum that is not finite.
        """
        if self.active is None or self.merged is not None:
            return
        reason = obstacle(self.base_layer)
        if reason is not None:
            raise AdapterError(f"cannot merge into {type(self.base_layer).__name__}: {reason}")
        self._compose(self.active)
        self.merged = self.active

    def unmerge(self) -> None:
        """Forget W. Does nothing when not merged."""
        self._sum, self._sum_of, self._sum_at, self.merged = None, [], [], None

    @torch.no_grad()
    def bare(self) -> nn.Module:
        """The base layer, or while merged a copy of it with W, rounded to the dtype of W0: the base layer may stand elsewhere
        in the model, too, where no adapter is. The copy has the same bias, and hooks of its own."""
        base = self.base_layer
        if self.merged is None:
            return base
        if parametrize.is_parametrized(base):
            base = copy.deepcopy(base, {id(parameter): parameter for parameter in base._parameters.values()})
            kind = type(base)  # torch has made it for this layer and takes the weight out of it, which copies of the layer need
            base.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        else:
            base = copy.copy(base)
            vars(base).update({key: copy.copy(value) for key, value in vars(base).items() if isinstance(value, dict)})
        _put(base, self.whole())
        return base

    def _is_sum(self, graph: bool) -> bool:
        """Whether W can stand for a merged layer in a call: it is still of such a kind, and its W0 and bias are not trained."""
        if obstacle(self.base_layer) is not None:
            return False
        return not (graph and any(parameter.requires_grad for parameter in self.base_layer.parameters()))

    def _merged_weight(self) -> Tensor:
        """W, composed again when something that it was composed of has changed."""
        if self._sum_at != [_state(source) for source in self._sources(self.merged)]:
            self._compose(self.merged)
        return self._sum

    def _compose(self, name: str) -> None:
        _count_steps()
        with torch.inference_mode(False), torch.no_grad():
            W = compose(matrix(self.base_layer), *self.matrices(name))
            if not torch.isfinite(W.to(dtype := self.base_layer.weight.dtype)).all():
                raise AdapterError(f"merging adapter {name!r} gives weights that are not finite in {dtype}")
        self._sum, self._sum_of = W, self._sources(name)
        self._sum_at = [_state(source) for source in self._sum_of]

    def whole(self) -> Tensor:
        """W [d_out, d_in] of a merged layer, in float32 at least: what a plain layer would need to compute the same."""
        return self._merged_weight()

    def _sources(self, name: str) -> list[Tensor]:
        """What W is composed of."""
        projection, vectors = self.projections[name], self.vectors[name]
        return [*self.base_layer.parameters(), *self.base_layer.buffers(), projection.A, projection.B, *vectors.parameters()]

    def _apply(self, fn, recurse=True):
        merged = self.merged is not None
        self.unmerge()
        super()._apply(fn, recurse)
        if merged and not self.base_layer.weight.is_meta:
            self.merge()
        return self

    def extra_repr(self) -> str:
        return f"active={self.active!r}, merged={self.merged!r}"


def _put(base: nn.Module, W: Tensor) -> None:
    """Put W [d_out, d_in] into a layer, in the dtype and the layout of its weight."""
    if parametrize.is_parametrized(base, "weight"):
        parametrize.remove_parametrizations(base, "weight")
    W = W.t().contiguous() if transposed(base) else W
    base.weight = nn.Parameter(W.to(base.weight.dtype), base.weight.requires_grad)


_steps = 0  # of all optimisers, since something was merged


@cache
def _count_steps() -> None:
    """Fused optimisers change parameters without a new version of them."""

    @torch.compiler.disable
    def count(*_) -> None:
        global _steps
        _steps += 1

    register_optimizer_step_post_hook(count)


def _state(tensor: Tensor) -> tuple:
    """What changes when another tensor takes a tensor's place, or it gets other values or another storage; never the same of an
    inference tensor, which counts no versions."""
    return id(tensor), object() if tensor.is_inference() else tensor._version, tensor.data_ptr(), _steps
