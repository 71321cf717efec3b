"""PEFT's own VeRA layers, computing with `vera.nn.functional`. Needs peft; `vera.nn.accelerate` imports this when it is called.

Names, parameters, files and everything but `forward` stay PEFT's. Where a call is anything but the ordinary one, PEFT's own
forward runs; `_ordinary` lists what that is.
"""

from __future__ import annotations

import torch
from peft.tuners.vera import VeraModel
from peft.tuners.vera.layer import Linear
from torch import Tensor, nn
from torch.autograd import forward_ad

from .base_layer import hooked, plain
from .functional import (
    HALF,
    ActivationOrder,
    Plan,
    Update,
    WeightOrder,
    adapted_linear,
    autocast_dtype,
    plan,
    projected,
    without_autocast,
)

# Below these PEFT's own forward is as fast or faster, measured on a CPU. With gradients: rows of x, since one matrix P for both
# vectors costs products and saves passes over activations. Without: multiply-adds of the update; the checks take 10 us.
TRAINED_ROWS = 1024
EVALUATED_WORK = 2**23

_PLAIN = (Tensor, nn.Parameter)


class AcceleratedLinear(Linear):
    """PEFT's VeRA layer with another forward: [..., in_features] to [..., out_features], in the dtype of x as PEFT's."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        operands = None if args or kwargs else self._ordinary(x)
        if operands is None:
            return super().forward(x, *args, **kwargs)
        W0, bias, A, B, b, d, dropout = operands
        before = x.dtype
        dtype = autocast_dtype(x) or before
        graph = torch.is_grad_enabled() and (x.requires_grad or b.requires_grad or d.requires_grad)
        if dropout is not None or (dtype is before and before != d.dtype):
            # PEFT computes the update in the dtype of its vectors and adds it to what the base layer gave.
            h = self.base_layer(x)
            z = x.to(d.dtype) if dropout is None else dropout(x.to(d.dtype))
            with without_autocast(x):
                wide, cast = (h, z.to(dtype)) if dtype is not before else (h.to(d.dtype), z)
                return Update.apply(wide, cast, A, B, b, d, projected(cast, A, z, self)).to(before)
        with without_autocast(x):
            x, of = x.to(dtype), x
            bias = bias if bias is None else bias.to(dtype)
            chosen = self._plan(x, b, d, graph)
            if not graph:
                return adapted_linear(chosen.order, x, W0, bias, A, B, b, d).to(before)
            if chosen.order == "weight":
                saves_u = chosen.through_u and A.shape[0] < A.shape[1] and (b.requires_grad or d.requires_grad)
                u = projected(x, A, of, self) if saves_u else None
                return WeightOrder.apply(x, None, W0, bias, A, B, b, d, u, chosen.through_u, chosen.keep_weight).to(before)
            return ActivationOrder.apply(x, W0, bias, A, B, b, d, projected(x, A, of, self)).to(before)

    def _plan(self, x: Tensor, b: Tensor, d: Tensor, graph: bool) -> Plan:
        trains = graph and (b.requires_grad or d.requires_grad)
        rows = x.numel() // self.in_features
        return plan(rows, self.in_features, self.out_features, d.numel(), trains, graph and x.requires_grad, x.dtype in HALF)

    def _large(self, rows: int, rank: int) -> bool:
        if torch.is_grad_enabled():
            return rows >= max(TRAINED_ROWS, 1)
        return rows * rank * (self.in_features + self.out_features) >= max(EVALUATED_WORK, 1)

    def _ordinary(self, x: Tensor):
        """W0, bias, A, B, b, d and the dropout to apply or None, for an ordinary call; None for any other.

        Ordinary is: eager, with one active adapter that this layer has, unmerged and enabled, on a plain nn.Linear; plain
        tensors, not nested, on one device in dtypes that PEFT computes with; frozen W0, bias, A and B; no hook that would be
        passed by; no function transform, forward-mode derivative or dispatch mode; and large enough to be worth it.
        """
        if torch.compiler.is_compiling() or type(x) is not Tensor or x.is_nested:
            return None
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            return None
        names = self.active_adapters
        if len(names) != 1 or names[0] not in self.vera_lambda_d or self._disable_adapters or self.merged_adapters:
            return None
        name, base = names[0], self.base_layer
        d, b = self.vera_lambda_d[name], self.vera_lambda_b[name]
        if not self._large(x.numel() // self.in_features, d.numel()):
            return None
        dropout = self.vera_dropout[name]
        if self.quantization_backend is not None or self.fan_in_fan_out or self.is_target_conv_1d_layer:
            return None
        if type(base) is not nn.Linear or not plain(base) or hooked(dropout):
            return None
        if not getattr(self, "cast_input_dtype_enabled", True) or _transformed():
            return None
        if type(dropout) is nn.Dropout:
            if dropout.p == 0 or not dropout.training:
                dropout = None
        elif type(dropout) is nn.Identity:
            dropout = None
        else:
            return None
        W0, bias = base.weight, base.bias
        A, B = self.vera_A[name], self.vera_B[name]
        frozen = (W0, A, B) if bias is None else (W0, A, B, bias)
        if any(type(t) not in _PLAIN or t.device != x.device for t in (*frozen, b, d)) or x.is_meta:
            return None
        if torch.is_grad_enabled() and any(t.requires_grad for t in frozen):
            return None
        if W0.shape != (self.out_features, self.in_features) or B.dim() != 2 or B.shape[0] < self.out_features:
            return None
        if A.shape[1] < self.in_features or (A.shape[0],) != d.shape or B.shape[1:] != d.shape or b.shape != W0.shape[:1]:
            return None
        if not _dtypes_fit(x, W0, bias, d.dtype) or not d.dtype == b.dtype == A.dtype == B.dtype:
            return None
        return W0, bias, A[:, : self.in_features], B[: self.out_features], b, d, dropout


class AcceleratedModel(VeraModel):
    """PEFT's tuner whose later layers are accelerated, too."""

    @staticmethod
    def _create_new_module(*args, **kwargs):
        layer = VeraModel._create_new_module(*args, **kwargs)
        if type(layer) is Linear:
            layer.__class__ = AcceleratedLinear
        return layer


def _transformed() -> bool:
    """Whether torch.func, forward-mode derivatives, tracing or a dispatch mode look on."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
    )


def _dtypes_fit(x: Tensor, W0: Tensor, bias: Tensor | None, vectors: torch.dtype) -> bool:
    """Whether PEFT's layer computes with these dtypes, and in one that ours computes in."""
    if bias is not None and bias.dtype != W0.dtype:
        return False
    autocast = autocast_dtype(x)
    if autocast is not None:
        allowed = (torch.float32, autocast)
        return x.dtype in allowed and W0.dtype in allowed and vectors in allowed
    if x.dtype != W0.dtype:
        return False
    return x.dtype == vectors or (x.dtype in HALF and vectors == torch.float32)
