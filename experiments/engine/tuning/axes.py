"""What a search varies: a range or a list of values of one key."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vera.config import explain
from vera.errors import ConfigError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::[^:,]*)*)")


@dataclass(frozen=True)
class Axis:
    """One searched key. points: its values in their order, as overrides have them; () for any number from low to high."""

    key: str
    text: str
    points: tuple[str, ...]
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    whole: bool = False

    def value(self, number: float) -> str:
        """A number of the range as an override, to three digits."""
        return str(round(number)) if self.whole else f"{number:.3g}"


def axis(word: str) -> Axis | None:
    """key=low..high[:log][:points] or key=a,b,c; None for an override with one value. Raises ConfigError."""
    key, _, text = word.partition("=")
    if (found := _RANGE.fullmatch(text)) is not None:
        return _range(key, text, found[1], found[2], found[3].split(":")[1:])
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return None
        points = tuple(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{word}: {explain(error)}") from None
    if len(set(points)) != len(points):
        raise ConfigError(f"{word}: a value is there twice")
    return Axis(key, text, points)


def _range(key: str, text: str, first: str, last: str, options: list[str]) -> Axis:
    def wrong(why: str) -> ConfigError:
        return ConfigError(f"{key}={text}: {why}; a range is low..high[:log][:points], such as train.lr=1e-4..1e-1:log:7")

    low, high = float(first), float(last)
    counts = [option for option in options if option != "log"]
    if len(counts) > 1 or len(options) - len(counts) > 1 or not all(re.fullmatch(r"[0-9]{1,4}", count) for count in counts):
        raise wrong(f"{':'.join(options)} is not log, a number of points, or both")
    log = "log" in options
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise wrong("low must be below high")
    if log and low <= 0:
        raise wrong("a logarithmic range begins above 0")
    made = Axis(key, text, (), low, high, log, whole=all(re.fullmatch(r"[0-9]+", bound) for bound in (first, last)))
    if not counts:
        return made
    if int(counts[0]) < 2:
        raise wrong("a range has two points or more")
    numbers = (np.geomspace if log else np.linspace)(low, high, int(counts[0]))
    points = tuple(dict.fromkeys(made.value(number) for number in numbers))
    if len(points) < len(numbers):
        kind = "whole numbers; bounds with a point, such as 0.0, are for others" if made.whole else "values of three digits"
        raise wrong(f"there are {len(points)} {kind}")
    return Axis(key, text, points, low, high, log, made.whole)
