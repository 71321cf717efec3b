"""IA3 (Liu et al. 2022) through PEFT: keys, values and the feed-forward activations are scaled by trained vectors."""

from __future__ import annotations

from peft import IA3Config

from vera.methods.peft import PeftMethod


class IA3(PeftMethod):
    """Scales the outputs of `targets`, and with `feedforward` the input of each feed-forward sublayer's last linear map."""

    feedforward: bool

    def peft_config(self, backbone, model_config):
        modules = list(self.modules(backbone, model_config))
        scaled_inputs = [places["contraction"] for places in model_config.blocks(backbone.model)] if self.feedforward else []
        return IA3Config(target_modules=modules + scaled_inputs, feedforward_modules=scaled_inputs)
