"""VeRA with one budget of ranks for all layers, which training deals out: what the paper leaves to later work."""

from __future__ import annotations

import torch
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from vera.methods.vera import Vera
from vera.nn.inject import vera_layers


class VeraBudget(Vera):
    """VeRA of which the least important entries of d, over all layers together, are set to zero for good as training goes.

    Entry i of a layer adds b * B[:, i] d[i] A[i] to its matrix; its importance is that term's Frobenius norm. A layer whose
    terms are small is left with few of its ranks.

    budget      part of all entries of d that is left at the end.
    start, end  parts of the run before the first entry goes and after the last one went; between them the number falls
                cubically, as in AdaLoRA.
    interval    steps between two prunings.

    The counted parameters are those trained at the start; the adapter file is VeRA's, with zeros in d.
    """

    budget: float = Field(gt=0, le=1)
    start: float = Field(gt=0, lt=1)
    end: float = Field(ge=0, lt=1)
    interval: int = Field(ge=1)

    _gone: dict[str, Tensor] = PrivateAttr({})  # by layer, which entries of d are zero before the step

    @field_validator("end")
    @classmethod
    def _time_to_prune(cls, end: float, info: ValidationInfo) -> float:
        if end + info.data.get("start", 0) >= 1:
            message = "with start={start} no part of the run is left for the pruning"
            raise PydanticCustomError("no_time_to_prune", message, {"start": info.data["start"]})
        return end

    @model_validator(mode="after")
    def _d_trains(self):
        if self.train != "both" or self.d_init == 0:
            message = "a budget deals out entries of d, which zero ends for good: train=both and d_init other than 0"
            raise PydanticCustomError("no_d", message)
        return self

    def left(self, step: int, total: int) -> float:
        """The part of the entries that is left after a step (from 0) of `total`."""
        progress = ((step + 1) / total - self.start) / (1 - self.start - self.end)
        return self.budget + (1 - self.budget) * (1 - min(1.0, max(0.0, progress))) ** 3

    @torch.no_grad()
    def on_step(self, backbone, step, total, lr):
        self._gone = {name: layer.vectors[layer.active].d == 0 for name, layer in vera_layers(backbone.model)}

    @torch.no_grad()
    def after_step(self, backbone, step, total):
        layers = dict(vera_layers(backbone.model))
        for name, layer in layers.items():
            layer.vectors[layer.active].d[self._gone[name]] = 0  # the step has moved them
        if (step + 1) % self.interval and step + 1 < total:
            return
        scores = {name: importance(*layer.matrices(layer.active)) for name, layer in layers.items()}
        every = torch.cat(list(scores.values()))
        kept = round(self.left(step, total) * len(every))
        if kept == len(every):
            return
        last = every.sort(descending=True).indices[kept:]
        zeroed = torch.zeros_like(every, dtype=torch.bool).index_fill_(0, last, True)
        for layer, mask in zip(layers.values(), zeroed.split([len(score) for score in scores.values()]), strict=True):
            layer.vectors[layer.active].d[mask] = 0


def importance(A: Tensor, B: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """|b * B[:, i]| |d[i]| |A[i]|, [r]: the Frobenius norm of what each entry of d adds to the matrix. B [m, r], A [r, n]."""
    return torch.linalg.vector_norm(b[:, None] * B, dim=0) * d.abs() * torch.linalg.vector_norm(A, dim=1)
