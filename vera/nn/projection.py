"""The frozen random pair A, B: drawn from a seed, never trained, never stored (paper, section 3.1 and 3.3)."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

# What `init` may be: how a matrix is filled, given the standard deviation of Kaiming's draw and a generator.
INITS = {
    "kaiming_uniform": lambda matrix, std, draws: matrix.uniform_(-math.sqrt(3.0) * std, math.sqrt(3.0) * std, generator=draws),
    "kaiming_normal": lambda matrix, std, draws: matrix.normal_(0.0, std, generator=draws),
    "uniform_0_0.1": lambda matrix, std, draws: matrix.uniform_(0.0, 0.1, generator=draws),
}


def draw(
    rank: int, d_in: int, d_out: int, seed: int, init: str = "kaiming_uniform", rounded: str = "float32"
) -> tuple[Tensor, Tensor]:
    """A [rank, d_in] and B [d_out, rank], float32 on the CPU, from one generator: A first, then B; `rounded` to a dtype.

    Kaiming with fan_in and gain sqrt(2), each matrix by its own fan (d_in for A, rank for B), so that the pair equals the one
    that the PEFT library draws for the same key and shapes. Table 6b's third choice is uniform on [0, 0.1].
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    pair = []
    for shape in ((rank, d_in), (d_out, rank)):
        matrix = torch.empty(shape, dtype=torch.float32, device="cpu")
        INITS[init](matrix, math.sqrt(2.0) / math.sqrt(shape[1]), generator)
        pair.append(matrix.to(getattr(torch, rounded)).float())
    return pair[0], pair[1]


def fingerprint(A: Tensor, B: Tensor) -> str:
    """The first 16 hex digits of SHA-256 over the float32 bytes of A, then B."""
    digest = hashlib.sha256()
    for matrix in (A, B):
        digest.update(matrix.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Projection(nn.Module):
    """One pair A [rank, d_in], B [d_out, rank] as buffers that no state dict holds.

    Layers that share the pair hold this same module: one storage, moved and cast once, whatever the number of layers. A layer
    smaller than the pair reads a slice: A[:, :d_in], B[:d_out, :].
    """

    def __init__(
        self,
        rank: int,
        d_in: int,
        d_out: int,
        seed: int,
        init: str,
        rounded: str = "float32",
        device=None,
        dtype=torch.float32,
    ):
        super().__init__()
        self.A: Tensor  # of the buffers
        self.B: Tensor
        self.key = (rank, d_in, d_out, seed, init, rounded)
        self.fingerprint: str | None = None  # None: on the meta device
        self._half: tuple[Tensor, int, Tensor] | None = None  # A and its version, and that A in half precision
        self.register_buffer("A", torch.empty(rank, d_in, dtype=dtype, device="meta"), persistent=False)
        self.register_buffer("B", torch.empty(d_out, rank, dtype=dtype, device="meta"), persistent=False)
        self.draw_on("cpu" if device is None else device)

    @torch.inference_mode(False)  # for b and d to be trained with it later
    def draw_on(self, device: torch.device | str) -> None:
        """Draw the pair again, on a device, in the dtype that it has."""
        if torch.device(device).type != "meta":
            A, B = draw(*self.key)
            self.fingerprint = fingerprint(A, B)
            self.A, self.B = A.to(device, self.A.dtype), B.to(device, self.B.dtype)

    def drawn_from(self) -> dict:
        """What the pair is a function of."""
        return dict(zip(("rank", "d_in", "d_out", "seed", "init", "rounded"), self.key, strict=True))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_half": None}

    def in_half(self, d_in: int, dtype: torch.dtype) -> Tensor:
        """A [rank, d_in] in a half precision: rounded once for all layers and calls, again when A has changed."""
        A = self.A
        if A.dtype == dtype or A.is_inference() or A.is_meta or torch.compiler.is_compiling():
            return A[:, :d_in].to(dtype)
        kept = self._half
        if kept is None or kept[0] is not A or kept[1] != A._version or kept[2].dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._half = (A, A._version, A.to(dtype))
        half = kept[2]
        return half if d_in == half.shape[1] else half[:, :d_in]

    def _apply(self, fn, recurse=True):
        self._half = None
        # No state dict holds A and B: what leaves them without their values, as to_empty does, or without digits that the new
        # dtype has, as half precision and back does, has them drawn again.
        before = (self.A, self.B)
        super()._apply(fn, recurse)
        for old, new in zip(before, (self.A, self.B), strict=True):
            lost = new.dtype != old.dtype and old.element_size() < 4
            if new is not old and not new.is_meta and (old.is_meta or lost or not torch.equal(old.to(new), new)):
                self.draw_on(new.device)
                break
        return self

    def sliced(self, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
        """A [rank, d_in] and B [d_out, rank], or views of them."""
        A, B = self.A, self.B
        return A if d_in == A.shape[1] else A[:, :d_in], B if d_out == B.shape[0] else B[:d_out]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.drawn_from().items())
