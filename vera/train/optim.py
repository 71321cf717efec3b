"""AdamW with one learning rate for the head and one for the rest, and the schedule as a function of the step."""

from __future__ import annotations

import math

import torch

from vera.config import TrainConfig
from vera.methods.base import ParameterGroups


def optimizer(groups: ParameterGroups, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the groups "adapter" and "head"; what `groups.undecayed` names is not decayed, unless the config says that all
    is (train.decay_biases_and_norms), and what `groups.own` names has a rate and a decay of its own. Each param group keeps
    `base_lr`."""
    exempt = frozenset() if config.decay_biases_and_norms else groups.undecayed
    alike: dict[tuple[str, float, float], list[torch.nn.Parameter]] = {}  # by group, rate and decay; the decayed ones first
    for group, lr, decay in (
        ("adapter", config.lr, config.weight_decay),
        ("head", config.head_lr, config.head_weight_decay),
    ):
        treated: dict[tuple[float, float], list[torch.nn.Parameter]] = {(lr, decay): []}
        for name, parameter in groups[group]:
            own = groups.own.get(name)
            usual = 0.0 if name in exempt else decay
            kind = (lr, usual) if own is None else (lr * own.lr_scale, usual if own.weight_decay is None else own.weight_decay)
            treated.setdefault(kind, []).append(parameter)
        alike |= {(group, *kind): parameters for kind, parameters in treated.items() if parameters}
    param_groups = [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay} for (_, lr, decay), parameters in alike.items()
    ]
    on_gpu = all(parameter.device.type == "cuda" for parameters in alike.values() for parameter in parameters)
    return torch.optim.AdamW(param_groups, betas=config.betas, eps=config.eps, fused=on_gpu or None)


def lr_factor(step: int, total: int, config: TrainConfig) -> float:
    """The learning rate of step 0 .. total-1 as a fraction of its base: linear warm-up, then the schedule down to zero.

    Warm-up takes warmup_steps, or warmup_ratio of the steps, rounded up, as in the common trainers.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil((config.warmup_ratio or 0.0) * total)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return max(0.0, 1.0 - progress)
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
