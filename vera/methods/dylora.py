"""DyLoRA (Valipour et al. 2022): LoRA of which every prefix of the ranks 1 .. r is an adapter of its own."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from pydantic import Field

from vera.methods.lora import Lora
from vera.methods.peft import ADAPTER
from vera.seeds import generator


class DyLora(Lora):
    """h = W0 x + (alpha / b) B[:, :b] A[:b] x with b drawn evenly from 1 .. rank for each step, one b for all layers.

    The b of a step depends on `rank_seed` and the step alone. Between steps, so also in evaluation, b is the full rank;
    `set_rank` chooses another one. Their variant without "frozen": all b rows and columns get the gradient.
    """

    rank_seed: int = Field(ge=0)

    def attach(self, backbone, model_config):
        super().attach(backbone, model_config)
        for layer in self.layers(backbone).values():
            layer.lora_A[ADAPTER].register_forward_hook(_truncate)
        self.set_rank(backbone, self.rank)

    def on_step(self, backbone, step, total, lr):
        draws = generator(self.rank_seed, "rank", step)
        self.set_rank(backbone, int(torch.randint(1, self.rank + 1, (), generator=draws)))

    def after_step(self, backbone, step, total):
        self.set_rank(backbone, self.rank)

    def set_rank(self, backbone, rank: int) -> None:
        """Use the first `rank` rows of A and columns of B, scaled by alpha / rank, in every adapted layer."""
        for layer in self.layers(backbone).values():
            layer.lora_A[ADAPTER].used = rank
            layer.scaling[ADAPTER] = self.alpha / rank

    @contextmanager
    def merged(self, backbone):
        with ExitStack() as stack:
            for layer in self.layers(backbone).values():  # PEFT merges all rows of A: those not in use are zero meanwhile
                stack.enter_context(_prefix_alone(layer.lora_A[ADAPTER]))
            with super().merged(backbone):
                yield


def _truncate(A, args, output):
    """[..., r] with zeros from the rank in use on: what the rest of A and B would add is left out, and so is its gradient."""
    if A.used == output.shape[-1]:
        return output
    return torch.nn.functional.pad(output[..., : A.used], (0, output.shape[-1] - A.used))


@contextmanager
def _prefix_alone(A):
    whole = A.weight.data
    A.weight.data = whole.clone()
    A.weight.data[A.used :] = 0
    try:
        yield
    finally:
        A.weight.data = whole
