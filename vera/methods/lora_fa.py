"""LoRA-FA (Zhang et al. 2023): LoRA whose A stays as it was drawn."""

from __future__ import annotations

from vera.methods.lora import Lora


class LoraFA(Lora):
    """h = W0 x + (alpha / rank) B A x with B alone trained: d_out * rank parameters a matrix. Keys as in Lora.

    A is drawn from the run's seed. The adapter file holds it too, since PEFT cannot read B without it.
    """

    def attach(self, backbone, model_config):
        super().attach(backbone, model_config)
        for name, parameter in backbone.model.named_parameters():
            if _is_A(name):
                parameter.requires_grad_(False)

    def saved(self, backbone):
        trained, changes = super().saved(backbone)
        drawn = {name: A.detach().to("cpu").contiguous() for name, A in backbone.model.named_parameters() if _is_A(name)}
        return {**trained, **drawn}, changes


def _is_A(name: str) -> bool:
    return ".lora_A." in name
