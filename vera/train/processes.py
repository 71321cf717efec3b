"""The processes that compute one run together, as `accelerate launch` starts them; usually there is one.

Gradients go through Accelerate. Here is the rest: small facts that all must agree on, and what the main process (rank 0) does
for all. It travels over a gloo group of its own, as numbers, JSON and safetensors; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
from accelerate.state import PartialState
from safetensors.torch import load as tensors_from
from safetensors.torch import save as bytes_of
from torch import Tensor
from torch import distributed as dist

from vera.errors import LONGEST, ConfigError, TrainingError, one_line
from vera.records.workers import launched

PATIENCE = timedelta(days=2)  # how long the others wait while main writes texts; one that died breaks its connections at once
GRACE = 10.0  # seconds after a failure in which the other processes must have failed as well to go on in step


class Processes:
    """`count` processes, of which this is number `rank`; `main` is the one that writes files and lines. `sharded`: each holds
    a part of the frozen weights (`accelerate launch --use_fsdp`).

    Every method but `failure` is called by all processes in the same order. With one process none of them does anything.
    """

    def __init__(self, count: int = 1, rank: int = 0, group: Any = None, store: Any = None, sharded: bool = False):
        self.count, self.rank, self.sharded = count, rank, sharded
        self.main = rank == 0
        self.runs = 0
        self._group, self._store = group, store

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the processes, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        return self._reduced((value,), dist.ReduceOp.MAX)[0]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.max(float(flag)))

    def gather(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of every process by rank, on the CPU. Names and shapes may differ, and there may be none."""
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        if self.count == 1:
            return [tensors]
        data = bytes_of(tensors)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        longest = max(int(size) for size in sizes)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
        padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        dist.all_gather(parts, padded, group=self._group)
        return [tensors_from(part.numpy().tobytes()[: int(size)]) for part, size in zip(parts, sizes, strict=True)]

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` returns (JSON values), called by the main process alone. An error of it is raised in all."""
        if self.count == 1:
            return work()
        answer: dict[str, Any] = {}
        raised = None
        if self.main:
            try:
                answer = {"value": work()}
            except Exception as error:
                raised, answer = error, {"error": one_line(error, LONGEST)}
        answer = json.loads(self._share(json.dumps(answer).encode()))
        if raised is not None:
            raise raised
        if "error" in answer:
            raise TrainingError(answer["error"])
        return answer["value"]

    def failure(self) -> tuple[bool, bool]:
        """After an error: whether this process reports it, and whether all have failed, so that they are still in step.

        When all have, within GRACE seconds, main reports. When the others are still in the middle of the run they cannot be
        reached; the first to fail reports, and every process that comes here has to end (the launcher then ends the rest).
        """
        if self.count == 1:
            return True, True
        try:
            first = self._decided("first", str(self.rank)) == str(self.rank)
            failed = self._store.add(f"vera/{self.runs}/failed", 1)
            began = time.monotonic()
            while failed < self.count and time.monotonic() - began < GRACE:
                time.sleep(0.02)
                failed = self._store.add(f"vera/{self.runs}/failed", 0)
            # One that comes later has failed because this one has gone.
            together = self._decided("end", "together" if failed == self.count else "apart") == "together"
        except RuntimeError:  # the process that keeps the store is gone
            return False, False
        return (self.main, True) if together else (first, False)

    def _decided(self, key: str, value: str) -> str:
        """The value of the first process that decided this, in this run."""
        return self._store.compare_set(f"vera/{self.runs}/{key}", "", value).decode()

    def _reduced(self, values: tuple[float, ...], how: Any) -> list[float]:
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how, group=self._group)
        return tensor.tolist()

    def _share(self, data: bytes) -> bytes:
        """Main's bytes."""
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self._group)
        payload = torch.frombuffer(bytearray(data.ljust(int(size), b"\0")[: int(size)]), dtype=torch.uint8)
        dist.broadcast(payload, 0, group=self._group)
        return payload.numpy().tobytes()


def on_gpu(device: str) -> bool:
    """Whether a run with this `device` uses a GPU. Raises ConfigError when it must and there is none."""
    gpu = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not gpu:
        raise ConfigError("device=cuda: this machine has no CUDA GPU that torch can use")
    return gpu


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(index) for index in range(count)]


def together(device: str) -> Processes:
    """The processes of this launch; the first call connects them. Raises ConfigError for a device that is not there, and for
    what a launcher asks for and nothing here does."""
    gpu = on_gpu(device)
    for name, what in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if os.environ.get(name, "false").lower() == "true":
            raise ConfigError(
                f"{name}={os.environ[name]}: runs do not use {what}; `accelerate launch` with --multi_gpu or --use_fsdp "
                "(docs/launchers.md), or unset it"
            )
    return Processes() if launched() == 1 else _connected(gpu)


@lru_cache(maxsize=1)
def _connected(gpu: bool) -> Processes:
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    # vera.train.shard does it. Told of it, transformers would read the weights in one process alone.
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    PartialState(cpu=not gpu)  # Accelerate chooses the backend, and each process its GPU
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    store = dist.distributed_c10d._get_default_store()
    return Processes(dist.get_world_size(), dist.get_rank(), group, store, sharded)
