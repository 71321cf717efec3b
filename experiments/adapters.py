"""The runs whose saved adapters Figures 3 and 5 look into. scripts/analyse.py measures them, the figures' modules draw them."""

from experiments import miniature
from experiments.published import choice

LARGE = ["model=roberta_large", "task=rte"]

# Name of the measurement: title, overrides of the VeRA runs, and of the LoRA runs that it is compared with (Figure 5 alone).
FIGURE3 = {
    "figure3": ("Figure 3: size of the trained d by layer, RTE, RoBERTa-large", [*LARGE, *choice("figure3", "vera")]),
    "figure3_mini": (
        f"Figure 3, {miniature.LABEL}: size of the trained d by layer",
        [*miniature.OVERRIDES, *choice("figure3", "vera", "mini")],
    ),
}
FIGURE5 = {
    "figure5": (
        "Figure 5: similarity of weight differences, query, RTE, RoBERTa-large",
        *([*LARGE, *choice("figure5", method)] for method in ("vera", "lora")),
    ),
    "figure5_mini": (
        f"Figure 5, {miniature.LABEL}: similarity of weight differences, query",
        *([*miniature.OVERRIDES, *choice("figure5", method, "mini")] for method in ("vera", "lora")),
    ),
}
