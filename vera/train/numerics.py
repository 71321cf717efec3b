"""In what a run computes: device, precision, and whether operations must give the same each time."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, TorchDynamoPlugin
from torch import nn

from vera.config import TrainConfig
from vera.train.processes import on_gpu

# torch reads it once, at a process's first product, and refuses those of train.deterministic=true without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate for one run. precision "auto" is bf16 autocast on a GPU and fp32 elsewhere. Raises ConfigError.

    What Accelerate would else take from the environment, where `accelerate config` or a shell has put it for other programs, is
    said here: it would divide each loss by ACCELERATE_GRADIENT_ACCUMULATION_STEPS, and compile the model."""
    gpu = on_gpu(device)
    AcceleratorState._reset_state(reset_partial_state=True)  # the last run of this sweep may have had another precision
    mixed = {"auto": "bf16" if gpu else "no", "bf16": "bf16", "fp32": "no"}[precision]
    gradients_alone = DistributedDataParallelKwargs(broadcast_buffers=False)  # what is frozen is the same everywhere
    return Accelerator(
        cpu=not gpu,
        mixed_precision=mixed,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
        kwargs_handlers=[gradients_alone],
    )


def precision_of(accelerator: Accelerator, model: nn.Module, tf32: bool = False) -> str:
    """In what the matrix products of a run are computed: bf16 under autocast, else in the precision of the frozen weights, of
    which bf16 ones (and 4-bit ones, whose products are) are not made fp32 by having no autocast. tf32: allowed on a GPU."""
    frozen = [p for p in model.parameters() if not p.requires_grad] or model.parameters()  # a model that nothing adapts
    half = any(p.dtype == torch.bfloat16 for p in frozen)
    full = "tf32" if tf32 and accelerator.device.type == "cuda" else "fp32"
    return "bf16" if half or accelerator.mixed_precision == "bf16" else full


def set_numerics(config: TrainConfig) -> None:
    """For this process, until the next run says otherwise: TF32, and whether operations must give the same each time."""
    torch.use_deterministic_algorithms(config.deterministic)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32
