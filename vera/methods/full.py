"""Full fine-tuning."""

from __future__ import annotations

from vera.errors import ConfigError
from vera.methods.base import Method, quantised


class Full(Method):
    """Trains every parameter of the backbone, in float32, with train.lr and the head with train.head_lr. Raises ConfigError for
    quantised weights, which have no gradient."""

    def attach(self, backbone, model_config):
        for name, parameter in backbone.model.named_parameters():
            if quantised(parameter):
                raise ConfigError(f"method {self.name} trains every weight, and {name} is quantised: model.quantisation=none")
        if any(parameter.element_size() < 4 for parameter in backbone.model.parameters()):
            backbone.model.float()
        backbone.model.requires_grad_(True)
        self._train_head(backbone)
