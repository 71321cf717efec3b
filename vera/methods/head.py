"""Linear probing."""

from __future__ import annotations

from typing import ClassVar

from vera.methods.base import Method


class Head(Method):
    """Trains the task head on the frozen backbone."""

    head_alone: ClassVar[bool] = True

    def attach(self, backbone, model_config):
        backbone.model.requires_grad_(False)
        self._train_head(backbone)
