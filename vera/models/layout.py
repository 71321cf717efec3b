"""Where families keep their transformer blocks, for what sits in or behind a sublayer: bottleneck adapters, IA3."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from vera.config import Strict


class Layout(Strict):
    """Where a family keeps its transformer blocks and, as names inside one block, the places that a method may adapt.

    blocks       end of the dotted name of the list of blocks.
    attention    module whose output joins the residual stream after self-attention.
    feedforward  the same after the feed-forward sublayer.
    output       module whose output is the block's: the last LayerNorm (post-norm) or the block itself, "" (pre-norm).
    contraction  the feed-forward sublayer's last linear map.
    """

    blocks: str
    attention: str
    feedforward: str
    output: str
    contraction: str

    def places(self, block: str) -> dict[str, str]:
        """Dotted module names of the places of one block, and of the block itself."""
        inside = {**self.model_dump(exclude={"blocks"}), "block": ""}
        return {place: f"{block}.{name}".rstrip(".") for place, name in inside.items()}


# Where further families keep theirs, for any model that is not laid out as its class says.
LAYOUTS = tuple(
    Layout(**dict(zip(Layout.model_fields, names, strict=True)))
    for names in (
        ("transformer.layer", "attention.out_lin", "ffn", "output_layer_norm", "ffn.lin2"),  # DistilBERT
        ("layers", "attn.Wo", "mlp.Wo", "", "mlp.Wo"),  # ModernBERT
        ("layers", "self_attn.o_proj", "mlp.down_proj", "", "mlp.down_proj"),  # Llama, Qwen, Mistral
        ("layers", "attention.dense", "mlp.dense_4h_to_h", "", "mlp.dense_4h_to_h"),  # GPT-NeoX
    )
)


def blocks(model: nn.Module, layouts: Iterable[Layout]) -> list[dict[str, str]] | None:
    """The transformer blocks from the first to the last, by the first layout that fits: for each the module names of Layout's
    places, and of the "block". None when the model is laid out in another way."""
    modules = dict(model.named_modules())
    for layout in layouts:
        for name, module in modules.items():
            if isinstance(module, nn.ModuleList) and len(module) and f".{name}".endswith(f".{layout.blocks}"):
                found = [layout.places(f"{name}.{index}") for index in range(len(module))]
                if all(place in modules for places in found for place in places.values()):
                    return found
    return None
