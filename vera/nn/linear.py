"""One adapted linear map: h = W0 x + diag(b) B diag(d) A x, with several adapters by name, merging and exact unmerging."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import VeraConfig
from .errors import AdapterError
from .functional import ActivationOrder, Plan, Update, WeightOrder, adapted_linear, compose, plan, projected
from .projection import Projection


class Vectors(nn.Module):
    """The trained part of one adapter in one layer: b [d_out] and d [rank], float32 on a half-precision backbone too."""

    def __init__(self, config: VeraConfig, d_out: int, device):
        super().__init__()
        only_d = config.train == "only_d"
        self.b = nn.Parameter(torch.full((d_out,), 1.0 if only_d else 0.0, device=device), config.train != "only_d")
        self.d = nn.Parameter(
            torch.full((config.rank,), 0.0 if only_d else config.d_init, device=device), config.train != "only_b"
        )
        self.trained = config.train
        self.dropout = config.dropout

    def set_trainable(self, trainable: bool) -> None:
        self.b.requires_grad_(trainable and self.trained != "only_d")
        self.d.requires_grad_(trainable and self.trained != "only_b")

    def _apply(self, fn, recurse=True):
        # Follow the model to another device, but keep float32 when it is cast to half precision: an update of b or d can be
        # smaller than bf16 resolves.
        kept = [(parameter.data, parameter.grad) for parameter in (self.b, self.d)]
        super()._apply(fn, recurse)
        for parameter, (value, grad) in zip((self.b, self.d), kept, strict=True):
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.grad = None
                parameter.data = value.to(parameter.device)
                parameter.grad = None if grad is None else grad.to(parameter.device)
        return self


class VeraLinear(nn.Module):
    """A frozen linear layer [..., d_in] -> [..., d_out] with any number of named adapters, one of them active.

    `base_layer` is the layer that was there before: an nn.Linear, or a quantised layer with in_features, out_features and a
    call of its own (then the activation order is used and merging is refused).
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self.vectors = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.active: str | None = None
        self.merged: str | None = None
        self.plan: Plan | None = None  # None: chosen from the shapes of each call
        self._base_weight: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def composable(self) -> bool:
        """Whether W0 is an ordinary floating-point matrix, so that W0 + dW can be formed."""
        weight = self.base_layer.weight
        return weight.is_floating_point() and weight.shape == (self.out_features, self.in_features)

    def add(self, name: str, config: VeraConfig, projection: Projection) -> None:
        self.vectors[name] = Vectors(config, self.out_features, self.base_layer.weight.device)
        self.projections[name] = projection

    def matrices(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A [r, d_in], B [d_out, r], b [d_out], d [r] of one adapter."""
        A, B = self.projections[name].sliced(self.in_features, self.out_features)
        return A, B, self.vectors[name].b, self.vectors[name].d

    def forward(self, x: Tensor) -> Tensor:
        if self.active is None or self.merged is not None:
            return self.base_layer(x)
        A, B, b, d = self.matrices(self.active)
        dropout = self.vectors[self.active].dropout if self.training else 0.0
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if dropout or not self.composable:
            h = self.base_layer(x)
            with torch.autocast(device, enabled=False):
                z = F.dropout(x, dropout) if dropout else x
                cast = z.to(dtype)
                return Update.apply(h, cast, A, B, b, d, projected(cast, A, z, self))
        bias = self.bias if self.bias is None else self.bias.to(dtype)
        plan = self._plan(x, b, d)
        with torch.autocast(device, enabled=False):
            x, of = x.to(dtype), x
            if not torch.is_grad_enabled() or not (x.requires_grad or b.requires_grad or d.requires_grad):
                return adapted_linear(plan.order, x, self.weight, bias, A, B, b, d)
            if plan.order == "weight":
                saves_u = plan.through_u and A.shape[0] < A.shape[1] and (b.requires_grad or d.requires_grad)
                u = projected(x, A, of, self) if saves_u else None
                return WeightOrder.apply(x, self.weight, bias, A, B, b, d, u, plan.through_u, plan.keep_weight)
            return ActivationOrder.apply(x, self.weight, bias, A, B, b, d, projected(x, A, of, self))

    def _plan(self, x: Tensor, b: Tensor, d: Tensor) -> Plan:
        """The layer's own `plan` if it has one, else the cheapest for these shapes.

        A half-precision W0 + dW would be rounded to W0's digits, in which a small dW is lost; there it is never formed.
        """
        if self.plan is not None:
            return self.plan
        if torch.finfo(self.weight.dtype).bits < 32:
            return Plan("activation")
        graph = torch.is_grad_enabled()
        return plan(
            x.numel() // self.in_features,
            self.in_features,
            self.out_features,
            d.numel(),
            training=graph and (b.requires_grad or d.requires_grad),
            input_gradient=graph and x.requires_grad,
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Put W0 + diag(b) B diag(d) A in the place of W0 and keep W0 aside, untouched. Does nothing when already merged.

        The sum is formed in float32 at least and rounded once. Raises AdapterError for a quantised base or a sum that is not
        finite.
        """
        if self.active is None or self.merged is not None:
            return
        if not self.composable:
            raise AdapterError(f"cannot merge into a quantised layer ({type(self.base_layer).__name__})")
        W0 = self.base_layer.weight.data
        W = compose(W0, *self.matrices(self.active)).to(W0.dtype)
        if not torch.isfinite(W).all():
            raise AdapterError(f"merging adapter {self.active!r} gives weights that are not finite")
        self._base_weight = W0
        self.base_layer.weight.data = W
        self.merged = self.active

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the kept W0 back, bit for bit. Does nothing when not merged."""
        if self.merged is None:
            return
        self.base_layer.weight.data = self._base_weight
        self._base_weight = None
        self.merged = None

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._base_weight is not None:
            self._base_weight = fn(self._base_weight)
        return self

    def extra_repr(self) -> str:
        return f"active={self.active!r}, merged={self.merged!r}"
