"""Full fine-tuning."""

from __future__ import annotations

from vera.methods.base import Method


class Full(Method):
    """Trains every parameter of the backbone with train.lr and the head with train.head_lr."""

    def attach(self, backbone, model_config):
        backbone.model.requires_grad_(True)
        self._train_head(backbone)
