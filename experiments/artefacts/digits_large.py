"""The embedded default on a larger backbone: Table 5 has two sizes."""

from __future__ import annotations

from experiments.artefacts.digits import entries, scored
from experiments.engine import miniature
from experiments.engine.render import Table
from experiments.engine.rows import Asked

METHODS = ("head", "full", "lora", "vera")  # Table 5's


def build(asked: Asked) -> list[Table]:
    """Accuracy on the digits 5-9 after ten images a class."""
    found = entries(asked, miniature.LARGE, METHODS)
    searched = "Learning rates were chosen by the accuracy on these evaluation images (search.md)."
    title = "UCI digits in the protocol of Table 5, on a larger backbone"
    return [scored(asked, "digits_large", title, found, "d=192, 8 layers", searched)]
