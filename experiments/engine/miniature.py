"""The backbone on which the ablations are shown in miniature, and how every table and figure says so."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.engine import verdicts
from experiments.engine.claims import Claim
from experiments.engine.verdicts import Kind, Line, Part

OVERRIDES = ["model=digits_vit", "task=digits"]
LARGE = ["model=digits_vit_large", "task=digits"]  # a second size, where a claim is about size
LABEL = "miniature on the digits ViT"
NOTE = (
    "A miniature, not the paper's experiment: a ViT of four layers (d=128), pretrained on the UCI digits 0-4, learns the "
    "digits 5-9 from ten images a class."
)
SOURCE = f"{LABEL} (accuracy, points)"
LARGE_SOURCE = "miniature on the larger digits ViT (accuracy, points)"
SCORE = "Accuracy in percent on the other 846 images of the digits 5-9."
ALIKE = "Over the seeds that all rows have; the claims (claims.md) read more where there are more."


def decide(claim: Claim, parts: Sequence[Part], kind: Kind, paper: str, source: str = SOURCE) -> Line:
    """A claim in miniature, where seeds are cheap: group-sequentially, at the claim's own margin for it."""
    return verdicts.decide(source, paper, parts, kind, claim.miniature, miniature=True, looks=verdicts.LOOKS)
