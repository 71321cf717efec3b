"""h = W0 x + diag(b) B diag(d) A x, in two orders of evaluation with the same result (paper, equation 2).

Shapes: x [..., n], W0 [m, n], A [r, n], B [m, r], b [m], d [r], h [..., m]; N is the number of rows of x, g = dL/dh. Only x, b
and d receive gradients, except from `written_out`. Both vectors come from one matrix P = (g^T (A x)) * B, [m, r]: db = P d,
dd = b P. Because g^T (x A^T) = (g^T x) A^T, P costs either N r (m + n) products, from u = A x, or N m n + m n r, from
G = g^T x.

Second derivatives: u = A x is part of the graph, although its gradient is folded into that of x, and a backward pass that is
itself differentiated consists of ordinary operations on what the graph knows.

Operations are counted in multiply-adds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.weak import TensorWeakRef

# What one elementwise pass over a number costs, in multiply-adds of a large product. Measured on two CPU cores with AVX-512:
# 22 (98e9 multiply-adds and 4.4e9 numbers a second).
PASS = 24
HALF = (torch.float16, torch.bfloat16)


class Plan(NamedTuple):
    """How one adapted layer is evaluated; decided by `plan` from shapes alone.

    order        "activation": u = A x and two thin products; "weight": W = W0 + diag(b) B diag(d) A and one product, or, where
                 half precision computes, dW = diag(b) B diag(d) A and two, since W0 + dW would lose a small dW to rounding.
    through_u    weight order: P is made from u = A x, not from G = g^T x.
    keep_weight  weight order: W (or dW) is kept for backward, not composed again.
    """

    order: str
    through_u: bool = True
    keep_weight: bool = True


def plan(
    rows: int,
    d_in: int,
    d_out: int,
    rank: int,
    training: bool = True,
    input_gradient: bool = True,
    half: bool = False,
) -> Plan:
    """The order with the fewest operations on top of the frozen products, for N = rows.

    training: b or d needs a gradient. input_gradient: x does. W is kept for backward where it is at most half as large as x.
    half: half precision computes. The weight order then has to save a quarter of the operations, or the other is taken.
    """
    compose = d_in * d_out * (rank + PASS)
    activation = rows * (rank * (d_in + d_out) + PASS * d_out)
    weight = compose + half * rows * (d_in * d_out + PASS * d_out)
    keep_weight = 2 * d_out <= rows
    through_u = True
    if training:
        from_u, from_G = rows * rank * (d_in + d_out), rows * d_in * d_out + d_in * d_out * rank
        through_u = from_u <= from_G
        activation += rows * rank * d_out
        weight += min(from_u, from_G)
    if input_gradient:
        activation += rows * (rank * (d_in + d_out) + PASS * d_in)
        weight += half * rows * (d_in * d_out + PASS * d_in) + (0 if keep_weight else compose)
    enough = 0.75 * activation if half else activation
    return Plan("weight", through_u, keep_weight) if weight < enough else Plan("activation")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """In what autocast computes the products of x; None where it leaves them alone: off, float64, or on the meta device."""
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """In which products on the device of x are of the dtypes that they are given."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def compose(W0: Tensor, A: Tensor, B: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """W0 + diag(b) B diag(d) A, [m, n], summed in float32 at least, under autocast too."""
    wide = torch.promote_types(W0.dtype, torch.float32)
    with without_autocast(W0):
        return torch.addmm(W0.to(wide), _scaled(B, b, d, wide), A.to(wide))


def _composed(x: Tensor, W0: Tensor, A: Tensor, B: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """The weight order's W in the dtype of x, or its dW where that is a half precision."""
    if x.dtype in HALF:
        return _scaled(B, b, d, x.dtype) @ A.to(x.dtype)
    return compose(W0, A, B, b, d).to(x.dtype)


def _by_weight(x: Tensor, W0: Tensor, bias: Tensor | None, W: Tensor) -> Tensor:
    """h of what `_composed` gave."""
    if x.dtype not in HALF:
        return F.linear(x, W, bias)
    h = F.linear(x, W0.to(x.dtype), bias)
    return _rows(h).addmm_(_rows(x), W.T).view(h.shape)


def adapted_linear(
    order: str, x: Tensor, W0: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, b: Tensor, d: Tensor
) -> Tensor:
    """x W0^T + bias + diag(b) B diag(d) A x in the dtype of x, which other operands are cast to; no gradients."""
    if order == "weight":
        return _by_weight(x, W0, bias, _composed(x, W0, A, B, b, d))
    h = F.linear(x, W0.to(x.dtype), bias)
    return _rows(h).addmm_(_rows(x) @ A.to(x.dtype).T, _scaled(B, b, d, x.dtype).T).view(h.shape)


def written_out(h: Tensor, z: Tensor, A: Tensor, B: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """h + diag(b) B diag(d) A z in plain operations, for torch.func, forward derivatives and tensors of other classes; in the
    dtype of z, the result in that of h."""
    update = F.linear(F.linear(z, A.to(z.dtype)) * d.to(z.dtype), B.to(z.dtype)) * b.to(z.dtype)
    return h + update.to(h.dtype)


def ordinary(*tensors: Tensor) -> bool:
    """Whether the derivatives below apply to a call: none of torch.func's transforms, no forward derivative and no jit trace
    is at work, and the tensors are x or h or W0, then A, B (frozen), b and d, all of torch's own class."""
    if torch.is_grad_enabled() and (tensors[-4].requires_grad or tensors[-3].requires_grad):
        return False
    if torch.compiler.is_compiling():
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    if torch.jit.is_tracing():  # with or without gradients; its calls may be of the other kind
        return False
    return all(type(tensor) is Tensor or type(tensor) is nn.Parameter for tensor in tensors)


def _scaled(B: Tensor, b: Tensor, d: Tensor, dtype: torch.dtype) -> Tensor:
    """diag(b) B diag(d), [m, r], in the wider dtype of B and b, rounded once to `dtype`."""
    scaled = B * d
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (scaled * b.unsqueeze(1)).to(dtype)
    # One kernel multiplies and rounds.
    return torch.mul(scaled, b.unsqueeze(1), out=scaled if scaled.dtype == dtype else torch.empty_like(scaled, dtype=dtype))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _shaped(rows: Tensor, shape: torch.Size) -> Tensor:
    """The rows in a shape, which is no view for autograd: nobody may write into a view that a function of ours returns, and
    Falcon and Longformer write into what their linear layers return."""
    return torch.ops.aten._unsafe_view(rows, shape)


class _Product(torch.autograd.Function):
    """x A^T for second derivatives: in a first backward pass nobody asks for its gradient, and it keeps nothing that the pass
    could free, so that layers which share it may be differentiated one after the other."""

    @staticmethod
    def forward(ctx, x, A):
        ctx.set_materialize_grads(False)
        ctx.A, ctx.shape = A, x.shape
        return _rows(x) @ A.to(x.dtype).T

    @staticmethod
    def backward(ctx, g):
        return (None, None) if g is None else ((g @ ctx.A.to(g.dtype)).view(ctx.shape), None)


class _Rounded(torch.autograd.Function):
    """x in another dtype, on the same terms as `_Product`."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.set_materialize_grads(False)
        ctx.of = x.dtype
        return x.to(dtype)

    @staticmethod
    def backward(ctx, g):
        return None if g is None else g.to(ctx.of), None


class _Last(threading.local):
    """What layers of this thread have last made of an x to share it: what it was made of and who has read it. It lives as long
    as a graph needs it."""

    made: TensorWeakRef | None = None
    of: TensorWeakRef | None = None
    state: tuple = ()
    readers: set[int] = set()


_last = _Last()


def _shared(of: Tensor, state: tuple, reader: object, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives of a tensor as it is now, made once for layers that ask in turn."""
    state = (of._version, *state)
    if _last.of is not None and _last.of() is of and _last.state == state and id(reader) not in _last.readers:
        made = _last.made()
        if made is not None:
            _last.readers.add(id(reader))
            return made
    made = make()
    _last.made, _last.of, _last.state, _last.readers = TensorWeakRef(made), TensorWeakRef(of), state, {id(reader)}
    return made


def projected(x: Tensor, A: Tensor, of: Tensor, reader: object) -> Tensor:
    """u = A x, [N, r]; matrices that read the same x through the same A in turn, such as q, k and v, share one u.

    of      the tensor that x is a cast of, or x.
    reader  the layer that asks. One that asks again gets a new product: that is another forward pass.
    """
    # The compiler merges equal products by itself; an inference tensor does not say whether it was written to.
    if torch.compiler.is_compiling() or of.is_inference() or A.is_inference():
        return _rows(x) @ A.to(x.dtype).T
    tracked = x.requires_grad and torch.is_grad_enabled()
    state = (tracked, x.dtype, A.data_ptr(), A._version, A.shape, A.stride(), A.dtype, A.device)
    return _shared(of, state, reader, lambda: _Product.apply(x, A) if tracked else _rows(x) @ A.to(x.dtype).T)


def rounded(x: Tensor, dtype: torch.dtype, reader: object) -> Tensor:
    """x in another dtype to compute with, shared as u is in `projected`: its gradient is folded into that of x."""
    if x.dtype == dtype or torch.compiler.is_compiling() or x.is_inference():
        return x.to(dtype)
    tracked = x.requires_grad and torch.is_grad_enabled()
    return _shared(x, (tracked, dtype), reader, lambda: _Rounded.apply(x, dtype) if tracked else x.to(dtype))


def _vector_gradients(product: Tensor, B: Tensor, b: Tensor, d: Tensor, need_b: bool, need_d: bool):
    """db and dd, in the dtype of b and d, from g^T u, [m, r]; formed in the wider of theirs."""
    wide = torch.promote_types(product.dtype, b.dtype)
    P = product.mul_(B) if product.dtype == b.dtype else product * B.to(wide)
    return (P @ d.to(wide)).to(b.dtype) if need_b else None, (b.to(wide) @ P).to(d.dtype) if need_d else None


def _as_given(backward):
    """A backward pass whose dtypes are those of what it is given, also where it is called under autocast."""

    @wraps(backward)
    def called(ctx, g):
        if g.is_meta or not torch.is_autocast_enabled(g.device.type):
            return backward(ctx, g)
        with without_autocast(g):
            return backward(ctx, g)

    return called


class ActivationOrder(torch.autograd.Function):
    """`adapted_linear` in the activation order, given u = `projected`(x, A). Saves u, r wide, and
    nothing of the width of x or h.

    Backward: dx = g W0 + (g diag(b) B diag(d)) A.
    """

    @staticmethod
    def forward(ctx, x, W0, bias, A, B, b, d, u):
        h = F.linear(x, W0.to(x.dtype), bias)
        rows = _rows(h).addmm_(u, _scaled(B, b, d, x.dtype).T)
        ctx.save_for_backward(u if any(ctx.needs_input_grad[5:7]) else None, W0, A, B, b, d)
        return _shaped(rows, h.shape)

    @staticmethod
    @_as_given
    def backward(ctx, g):
        u, W0, A, B, b, d = ctx.saved_tensors
        need_x, need_b, need_d = (ctx.needs_input_grad[i] for i in (0, 5, 6))
        rows = _rows(g)
        dx = db = dd = None
        if need_b or need_d:
            db, dd = _vector_gradients(rows.T @ u, B, b, d, need_b, need_d)
        if need_x:
            dx = rows @ W0.to(g.dtype)
            dx.addmm_(rows @ _scaled(B, b, d, g.dtype), A.to(g.dtype))
            dx = dx.view(*g.shape[:-1], A.shape[1])
        return dx, None, None, None, None, db, dd, None


class Update(torch.autograd.Function):
    """h + diag(b) B diag(d) A z, where a layer with a call of its own gave h, or dropout came before z.

    u = `projected`(z, A) is given. The sum is formed in the wider dtype of h and u and rounded to that of h.
    """

    @staticmethod
    def forward(ctx, h, z, A, B, b, d, u):
        ctx.save_for_backward(u if any(ctx.needs_input_grad[4:6]) else None, A, B, b, d)
        ctx.of = z.dtype
        wide = torch.promote_types(h.dtype, u.dtype)
        total = torch.addmm(_rows(h).to(wide), u.to(wide), _scaled(B, b, d, wide).T)
        return _shaped(total.to(h.dtype), h.shape)

    @staticmethod
    @_as_given
    def backward(ctx, g):
        u, A, B, b, d = ctx.saved_tensors
        need_h, need_z, _, _, need_b, need_d, _ = ctx.needs_input_grad
        rows = _rows(g).to(torch.promote_types(g.dtype, ctx.of))
        dz = db = dd = None
        if need_b or need_d:
            db, dd = _vector_gradients(rows.T @ u.to(rows.dtype), B, b, d, need_b, need_d)
        if need_z:
            dz = (rows @ _scaled(B, b, d, rows.dtype)) @ A.to(rows.dtype)
            dz = dz.to(ctx.of).view(*g.shape[:-1], A.shape[1])
        return g if need_h else None, dz, None, None, db, dd, None


class WeightOrder(torch.autograd.Function):
    """`adapted_linear` in the weight order: W is composed once a step and dx = g W, so that nothing but P is added.

    z is x `rounded` to the dtype that computes; None where x has it. Saves u = `projected`(z, A) where it is given, else z;
    and W, when the plan says so.
    """

    @staticmethod
    def forward(ctx, x, z, W0, bias, A, B, b, d, u, through_u, keep_weight):
        z = x if z is None else z
        W = _composed(z, W0, A, B, b, d)
        ctx.through_u, ctx.saved_u, ctx.of = through_u, u is not None, x.dtype
        saved = z if u is None and any(ctx.needs_input_grad[6:8]) else u
        ctx.save_for_backward(saved, W if keep_weight and ctx.needs_input_grad[0] else None, W0, A, B, b, d)
        h = _by_weight(z, W0, bias, W)
        return _shaped(h, h.shape)

    @staticmethod
    @_as_given
    def backward(ctx, g):
        saved, W, W0, A, B, b, d = ctx.saved_tensors
        need_x, need_b, need_d = (ctx.needs_input_grad[i] for i in (0, 6, 7))
        rows = _rows(g)
        dx = db = dd = None
        if need_b or need_d:
            if ctx.saved_u:
                product = rows.T @ saved
            elif ctx.through_u:
                product = rows.T @ (_rows(saved) @ A.to(saved.dtype).T)
            else:
                product = (rows.T @ _rows(saved)).to(A.dtype) @ A.T
            db, dd = _vector_gradients(product, B, b, d, need_b, need_d)
        if need_x:
            if W is None or torch.is_grad_enabled():  # the kept W knows nothing of b and d
                W = _composed(g, W0, A, B, b, d)
            if g.dtype in HALF:
                dx = rows @ W0.to(g.dtype)
                dx.addmm_(rows, W)
            else:
                dx = rows @ W
            dx = dx.view(*g.shape[:-1], A.shape[1]).to(ctx.of)
        return dx, None, None, None, None, None, db, dd, None, None, None
