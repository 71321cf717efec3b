"""BitFit (Ben Zaken et al. 2022): bias terms only."""

from __future__ import annotations

from vera.methods.base import Method


class BitFit(Method):
    """Trains every bias of the backbone, those of the layer norms included, and the head."""

    def attach(self, backbone, model_config):
        backbone.model.requires_grad_(False)
        for name, parameter in backbone.model.named_parameters():
            if name.endswith("bias"):
                parameter.requires_grad_(True)
        self._train_head(backbone)
