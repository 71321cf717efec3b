"""DVoRA (Liu et al. 2024): DoRA's decomposition into magnitude and direction, with VeRA's update for the direction."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vera.methods.vera import VeraLike
from vera.nn.base_layer import matrix, obstacle
from vera.nn.errors import AdapterError
from vera.nn.functional import compose
from vera.nn.linear import VeraLinear


class DvoraLinear(VeraLinear):
    """h = diag(m / |W|) W x + bias with W = W0 + diag(b) B diag(d) A, |W| the norms of its rows, [d_out], and m trained.

    As in DoRA (section 4.3) |W| is a constant for the gradient. m starts at |W0|.
    """

    def new_vectors(self, config, device):
        reason = obstacle(self.base_layer)
        if reason is not None:
            raise AdapterError(f"DVoRA needs the rows of W0, and of this layer {reason}")
        vectors = super().new_vectors(config, device)
        norms = torch.linalg.vector_norm(matrix(self.base_layer).detach().float(), dim=1)
        vectors.m = nn.Parameter(norms.to(device))
        return vectors

    def adapted(self, x: Tensor, *args, **kwargs) -> Tensor:
        h = super().adapted(x, *args, **kwargs)
        scale, bias = self._scale(), self.bias
        wide = h.float() if bias is None else h.float() - bias
        wide = wide * scale
        return (wide if bias is None else wide + bias).to(h.dtype)

    def whole(self) -> Tensor:
        return self._scale()[:, None] * super().whole()

    def _scale(self) -> Tensor:
        """m / |W|, [d_out]."""
        name = self.merged or self.active
        with torch.no_grad():
            W = super().whole() if self.merged else compose(matrix(self.base_layer), *self.matrices(name))
            norms = torch.linalg.vector_norm(W, dim=1)
        return self.vectors[name].m / norms


class Dvora(VeraLike):
    """Keys as in Vera. Beside b and d it trains one magnitude a row, m [d_out], in each matrix."""

    layer: ClassVar[type[VeraLinear]] = DvoraLinear
