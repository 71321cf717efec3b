"""A frozen backbone in parts over the processes (torch's FSDP2), for one that is too large for each device.

What is trained stays whole in every process, and so do buffers, such as the shared projections: they are small. Checkpoints and
adapter files are therefore the same as without sharding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vera.errors import ConfigError


def shard(model: nn.Module, trained: Iterable[nn.Parameter], device: torch.device) -> None:
    """Spread the frozen parameters of a model on the CPU over all processes, block by block, in place.

    Each block is gathered for its forward and backward pass alone. Raises ConfigError when there is nothing to shard.
    """
    whole = set(trained)
    frozen = [parameter for parameter in model.parameters() if parameter not in whole]
    if not frozen:
        raise ConfigError("--use_fsdp shards what is frozen, and this method freezes nothing; leave it out")
    if not all(parameter.is_floating_point() for parameter in frozen):
        raise ConfigError("--use_fsdp shards no 4-bit weights; set model.quantisation=none, or leave it out")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    for parameter in whole:
        parameter.data = parameter.data.to(device)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over all processes in the place of each gradient."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
