"""h = W0 x + diag(b) B diag(d) A x, in two orders of evaluation with the same result (paper, equation 2).

Shapes: x [..., n], W0 [m, n], A [r, n], B [m, r], b [m], d [r], h [..., m]; N is the number of rows of x. Only x, b and d
receive gradients. Products are counted in multiply-adds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cheaper_order(rows: int, d_in: int, d_out: int, rank: int, training: bool) -> str:
    """ "weight" or "activation", whichever needs fewer multiply-adds on top of the frozen product; from shapes alone."""
    if training:
        activation = rows * rank * (3 * d_out + 2 * d_in)
        weight = rows * d_in * d_out + 2 * d_in * d_out * rank
    else:
        activation = rows * rank * (d_in + d_out)
        weight = d_in * d_out * rank
    return "weight" if weight < activation else "activation"


def delta_weight(A: Tensor, B: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """diag(b) B diag(d) A, [m, n], in the dtype of A."""
    return _scaled(B, b, d) @ A


def _scaled(B: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """diag(b) B diag(d), [m, r], in the dtype of B."""
    return b.to(B.dtype).unsqueeze(1) * B * d.to(B.dtype)


class ActivationOrder(torch.autograd.Function):
    """diag(b) B diag(d) A x, the adapter's part alone. Saves u = A x, r wide, and no m-wide tensor.

    Backward, with g = dL/dh as rows: s = (g * b) B, db = rowsum((g^T (u * d)) * B), dd = colsum(s * u), dx = (s * d) A.
    """

    @staticmethod
    def forward(ctx, x, A, B, b, d):
        u = x @ A.T
        ctx.save_for_backward(u, A, B, b, d)
        return ((u * d.to(u.dtype)) @ B.T) * b.to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        u, A, B, b, d = ctx.saved_tensors
        need_x, _, _, need_b, need_d = ctx.needs_input_grad
        rows, u_rows = g.reshape(-1, g.shape[-1]), u.reshape(-1, u.shape[-1])
        dx = db = dd = None
        if need_b:
            db = ((rows.T @ (u_rows * d.to(u.dtype))) * B).sum(1, dtype=b.dtype)
        if need_x or need_d:
            s = (rows * b.to(rows.dtype)) @ B
            if need_d:
                dd = (s * u_rows).sum(0, dtype=d.dtype)
            if need_x:
                dx = ((s * d.to(s.dtype)) @ A).reshape(*g.shape[:-1], A.shape[1])
        return dx, None, None, db, dd


class WeightOrder(torch.autograd.Function):
    """x W^T + bias with W = W0 + diag(b) B diag(d) A composed once a step. Saves x and W.

    Backward: G = g^T x, P = (G A^T) * B; db = P d, dd = b P, dx = g W. No product grows with the number of rows times the rank.
    """

    @staticmethod
    def forward(ctx, x, W0, bias, A, B, b, d):
        left = _scaled(B, b, d)
        W = (torch.addmm(W0, left, A) if W0.dtype == A.dtype else W0 + left @ A).to(x.dtype)
        ctx.save_for_backward(x, W if ctx.needs_input_grad[0] else None, A, B, b, d)
        return torch.nn.functional.linear(x, W, bias)

    @staticmethod
    def backward(ctx, g):
        x, W, A, B, b, d = ctx.saved_tensors
        need_x, _, _, _, _, need_b, need_d = ctx.needs_input_grad
        rows = g.reshape(-1, g.shape[-1])
        dx = db = dd = None
        if need_x:
            dx = (rows @ W).view(x.shape)
        if need_b or need_d:
            G = rows.T @ x.reshape(-1, x.shape[-1])
            P = (G.to(A.dtype) @ A.T).mul_(B).to(b.dtype)
            db = P @ d if need_b else None
            dd = b @ P if need_d else None
        return dx, None, None, None, None, db, dd
