"""What defines a VeRA adapter, apart from its trained vectors."""

from __future__ import annotations

import reprlib
import sys
from dataclasses import dataclass, field

from .errors import AdapterError

INITS = ("kaiming_uniform", "kaiming_normal", "uniform_0_0.1")
SHARINGS = ("shared", "unique")
TRAINED = ("both", "only_b", "only_d")


@dataclass(frozen=True)
class VeraConfig:
    """Settings of one adapter (paper, section 3 and Tables 6 and 7).

    rank             r, the rows of A and the columns of B.
    targets          names of linear layers, matched from the end: "query" fits "encoder.layer.0.attention.self.query".
    projection_seed  seed of the frozen random matrices A and B.
    d_init           first value of every entry of d; b starts at 0 (section 3.3).
    init             distribution of A and B: kaiming_uniform, kaiming_normal or uniform_0_0.1 (Table 6b).
    sharing          shared: one pair A, B for all layers; unique: a pair for each (Table 7).
    train            both; only_b: d stays at d_init; only_d: b stays at 1 and d starts at 0 (Table 6a).
    dropout          on the adapter's input while training; 0 in the paper's runs.
    modules_to_save  names of modules that stay trainable and travel with the adapter, such as a classification head.

    Raises AdapterError for a value outside these.
    """

    rank: int
    targets: tuple[str, ...]
    projection_seed: int = 0
    d_init: float = 0.1
    init: str = "kaiming_uniform"
    sharing: str = "shared"
    train: str = "both"
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = field(default=())

    def __post_init__(self):
        if isinstance(self.targets, str):
            raise AdapterError(f"targets must be a sequence of names, not the string {self.targets!r}")
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "modules_to_save", tuple(self.modules_to_save or ()))
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise AdapterError(f"rank must be a whole number of at least 1, got {self.rank!r}")
        if not self.targets:
            raise AdapterError("targets names no layer")
        for key in ("targets", "modules_to_save"):
            odd = [name for name in getattr(self, key) if not isinstance(name, str) or not name]
            if odd:
                raise AdapterError(f"{key} must hold names, got {odd[0]!r}")
        if isinstance(self.projection_seed, bool) or not isinstance(self.projection_seed, int):
            raise AdapterError(f"projection_seed must be a whole number, got {self.projection_seed!r}")
        if not -(2**63) <= self.projection_seed < 2**63:
            raise AdapterError(f"projection_seed must fit 64 bits, got a number of {self.projection_seed.bit_length()}")
        for key in ("d_init", "dropout"):
            value = getattr(self, key)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not -sys.float_info.max <= value <= sys.float_info.max
            ):
                raise AdapterError(f"{key} must be a finite number, got {reprlib.repr(value)}")
        if not 0.0 <= self.dropout < 1.0:
            raise AdapterError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        for key, allowed in (("init", INITS), ("sharing", SHARINGS), ("train", TRAINED)):
            if getattr(self, key) not in allowed:
                raise AdapterError(f"{key} must be one of {', '.join(allowed)}; got {getattr(self, key)!r}")
