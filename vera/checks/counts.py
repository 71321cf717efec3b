"""What a run would train, counted on the adapted model itself: full size, no weights, no hub (torch's meta device)."""

from __future__ import annotations

from typing import Any

from vera.config import RunConfig, build
from vera.methods.base import Method, count
from vera.models.base import Model
from vera.nn.count import stored_bytes
from vera.tasks.base import Task


def account(run: RunConfig) -> dict[str, int]:
    """`parameters` of the record that this run would leave, and backbone: what full fine-tuning would train.

    Raises ConfigError for a model whose architecture conf/model does not give.
    """
    model_config: Model = build(run.model, "model")
    task: Task = build(run.task, "task")
    method: Method = build(run.method, "method")
    backbone = model_config.blueprint(task.outputs)
    in_head = {id(p) for name in backbone.head for p in backbone.model.get_submodule(name).parameters()}
    body = sum(p.numel() for p in backbone.model.parameters() if id(p) not in in_head)
    method.attach(backbone, model_config)
    counted: dict[str, Any] = count(method.parameter_groups(backbone), backbone.model)
    return {**counted, "adapter_bytes": stored_bytes(counted["adapter"]), "backbone": body}
