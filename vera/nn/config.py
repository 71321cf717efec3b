"""What defines a VeRA adapter, apart from its trained vectors."""

from __future__ import annotations

import numbers
import operator
import reprlib
from dataclasses import dataclass, field

from .errors import AdapterError
from .projection import INITS

SHARINGS = ("shared", "unique")
TRAINED = ("both", "only_b", "only_d")
PROJECTION_DTYPES = ("float32", "bfloat16", "float16")
LARGEST = (2 - 2**-23) * 2.0**127  # of float32, in which b and d are kept
SMALLEST = 2.0**-149


@dataclass(frozen=True)
class VeraConfig:
    """Settings of one adapter (paper, section 3 and Tables 6 and 7).

    rank             r, the rows of A and the columns of B.
    targets          names of linear layers, matched from the end: "query" fits "encoder.layer.0.attention.self.query".
    projection_seed  seed of the frozen random matrices A and B.
    d_init           first value of every entry of d; b starts at 0 (section 3.3), so this must not.
    init             distribution of A and B: one of projection.INITS (Table 6b).
    sharing          shared: one pair A, B for all layers; unique: a pair for each (Table 7).
    train            both; only_b: d stays at d_init; only_d: b stays at 1 and d starts at 0 (Table 6a).
    dropout          on the adapter's input while training; 0 in the paper's runs.
    projection_dtype to which A and B are rounded whatever the backbone's dtype: float32 (as drawn), or bfloat16 or float16, as
                     PEFT rounds them beside a backbone in half precision.
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
    projection_dtype: str = "float32"

    def __post_init__(self):
        for key in ("targets", "modules_to_save"):
            object.__setattr__(self, key, _names(key, getattr(self, key)))
        if not self.targets:
            raise AdapterError("targets names no layer")
        for key, low, high in (("rank", 1, 2**31), ("projection_seed", -(2**63), 2**63)):
            object.__setattr__(self, key, _whole(key, getattr(self, key), low, high))
        for key in ("d_init", "dropout"):
            object.__setattr__(self, key, _real(key, getattr(self, key)))
        if not 0.0 <= self.dropout < 1.0:
            raise AdapterError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        for key, allowed in (
            ("init", INITS),
            ("sharing", SHARINGS),
            ("train", TRAINED),
            ("projection_dtype", PROJECTION_DTYPES),
        ):
            if getattr(self, key) not in allowed:
                raise AdapterError(f"{key} must be one of {', '.join(allowed)}; got {getattr(self, key)!r}")
        if abs(self.d_init) < SMALLEST and self.train != "only_d":
            raise AdapterError(
                f"d_init={self.d_init!r} is 0 in float32; b starts at 0 too, so no gradient would ever reach either"
            )


def _names(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise AdapterError(f"{key} must be a sequence of names, not the string {value!r}")
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    try:
        names: tuple = tuple(value or ())
    except TypeError:
        raise AdapterError(f"{key} must be a sequence of names, got {reprlib.repr(value)}") from None
    odd = [name for name in names if not isinstance(name, str) or not name]
    if odd:
        raise AdapterError(f"{key} must hold names, got {odd[0]!r}")
    return names


def _whole(key: str, value: object, low: int, high: int) -> int:
    """A whole number from low to below high, as an int; numpy's are whole numbers, True and False are none."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or (key == "rank" and whole < low):
        least = f" of at least {low}" if key == "rank" else ""
        raise AdapterError(f"{key} must be a whole number{least}, got {reprlib.repr(value)}")
    if not low <= whole < high:
        raise AdapterError(f"{key} must fit {high.bit_length() if low < 0 else 32} bits, got a number of {whole.bit_length()}")
    return whole


def _real(key: str, value: object) -> float:
    """A number that float32 holds, as a Python number; numpy's are numbers, True and False are none."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not -LARGEST <= value <= LARGEST:
        raise AdapterError(f"{key} must be a finite number, got {reprlib.repr(value)}")
    return float(value)
