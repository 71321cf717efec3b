"""Predictions over the evaluation set, and a task's last word, at the bare backbone's speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vera.methods.base import Method
from vera.models.base import Backbone
from vera.records import interrupt, screen
from vera.tasks.base import Data, Final, Task, given
from vera.train.feed import fed
from vera.train.processes import Processes


def to_training(model: nn.Module) -> None:
    """Training mode, but for layers with running statistics (BatchNorm), which keep the checkpoint's and use them: they are no
    parameters that a method trains and saves, and batch statistics would depend on the micro-batches."""
    model.train()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.eval()


@contextmanager
def _merged(backbone: Backbone, method: Method) -> Iterator[None]:
    """Evaluation mode with the adapter merged; after: training mode, every weight bit for bit as it was.

    It may take long, so a signal ends it at once; but never in the middle of merging."""
    backbone.model.eval()
    try:
        with method.merged(backbone), interrupt.immediate():
            yield
    finally:
        to_training(backbone.model)


def predict(
    accelerator: Accelerator,
    processes: Processes,
    backbone: Backbone,
    method: Method,
    task: Task,
    data: Data,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """What `task.kept` of every batch, in the order of `data.evaluation`; each process computes its part of the batches."""
    order = sorted(range(len(data.evaluation)), key=data.lengths.__getitem__) if data.lengths else range(len(data.evaluation))
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    mine: dict[str, list[Tensor]] = {}
    with _merged(backbone, method), torch.inference_mode():
        share = batches[processes.rank :: processes.count]
        if processes.sharded:  # every forward pass needs all processes: some repeat a batch
            share += [batches[0]] * (-(-len(batches) // processes.count) - len(share))
        done, total = 0, sum(map(len, share))
        collated = ((rows, data.collate([data.evaluation[row] for row in rows])) for rows in share)
        for rows, batch in fed(collated, accelerator.device):
            screen.doing("evaluating", done, total)
            done += len(rows)
            batch = data.arrived(batch, accelerator.device)
            with accelerator.autocast():
                logits = backbone.model(**given(batch)).logits
            kept, labels = task.kept(logits, batch)
            for name, part in (("rows", torch.tensor(rows)), ("kept", kept), ("labels", labels)):  # where they are: no waiting
                mine.setdefault(name, []).append(part)
    parts = processes.gather({name: torch.cat(tensors) for name, tensors in mine.items()})
    rows, kept, labels = (torch.cat([part[name] for part in parts if part]) for name in ("rows", "kept", "labels"))
    back = torch.zeros(len(order), dtype=torch.int64).scatter_(0, rows, torch.arange(len(rows)))
    return kept[back], labels[back]


def finish(accelerator: Accelerator, backbone: Backbone, method: Method, task: Task, data: Data, batch_size: int) -> Final:
    """`task.finish` with the adapter merged."""
    with _merged(backbone, method), torch.inference_mode(), accelerator.autocast():
        return task.finish(backbone, data, batch_size)
