"""The forward and the backward pass of a batch as CUDA graphs: recorded once for each shape, then replayed by one call each.

A GPU is done with a kernel of a small backbone sooner than the CPU can start the next; a replay starts all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vera.errors import ConfigError, one_line
from vera.methods.base import Method
from vera.tasks.base import Data
from vera.train.state import generators, restore_generators

MULTIPLE = 16  # batches are padded to it, so that an epoch has few shapes
WARM_UP = 3  # passes before the recorded one: what libraries do at their first call must not be part of it
LEAVE = "train.cuda_graphs=false does without"


class Graphs:
    """What `compute` gives of inputs, with a gradient for `trained`, the kernels of each shape of inputs recorded when it first
    comes.

    A recording reads and writes the tensors that it was made with: what is trained may change in place, and nothing else may.
    `compute` enters autocast itself, which keeps casts of trained weights until it is left: they must be no older than a pass.
    """

    def __init__(self, model: nn.Module, trained: Iterable[nn.Parameter], compute: Callable[[dict[str, Tensor]], Tensor]):
        self.model, self.trained, self.compute = model, list(trained), compute
        if any(parameter._backward_hooks for parameter in self.trained):
            raise ConfigError(f"hooks on trainable parameters would run twice, in a recording and after its replay; {LEAVE}")
        self.passes: dict[tuple, _Passes] = {}
        self.pool = torch.cuda.graph_pool_handle()  # one for all, as only one pass is on its way at a time
        self.where = self._where()

    def check(self) -> None:
        """After anything but steps, such as an evaluation: forget what was recorded if a tensor is elsewhere, or if one that is
        not trained was written to, which the model's own code might undo in its next pass."""
        where = self._where()
        if where != self.where:
            self.passes.clear()
            self.where = where

    def _where(self) -> list[tuple[int, int]]:
        """Place and version of every tensor of the model (no version of what is trained)."""
        trained = set(map(id, self.trained))
        kept = (value for module in self.model.modules() for value in vars(module).values() if isinstance(value, Tensor))
        return [
            (tensor.data_ptr(), -1 if id(tensor) in trained or tensor.is_inference() else tensor._version)
            for tensor in (*self.model.parameters(), *self.model.buffers(), *kept)
        ]

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        if shape not in self.passes:
            passes = self._recorded(inputs)
            if self._where() != self.where:  # a table that a model makes once it is needed: earlier recordings read the old one
                self.check()
                passes = self._recorded(inputs)
                if self._where() != self.where:
                    raise ConfigError(f"this model replaces or writes to tensors of its own in each pass; {LEAVE}")
            self.passes[shape] = passes
        return _Replayed.apply(self.passes[shape], inputs, *self.trained)

    def _recorded(self, inputs: dict[str, Tensor]) -> _Passes:
        """Raises ConfigError where a pass cannot be recorded, or would not be the same each time it is replayed."""
        before, stream = generators(), torch.cuda.current_stream()
        try:
            passes = _Passes(self.compute, self.trained, inputs, self.pool)
        except Exception as error:
            # torch leaves a recording that failed half open: on its stream, and its generator in a recording. (Its graphs draw
            # from the generator's old state; nobody replays them, as this run ends.)
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            restore_generators(before)
            if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
                raise
            raise ConfigError(
                f"the passes of this model cannot be recorded as CUDA graphs ({one_line(error)}); {LEAVE}"
            ) from error
        drawn = [name for name, state in generators().items() if name != "cuda" and not torch.equal(state, before[name])]
        if drawn:
            raise ConfigError(f"this model draws random numbers on the CPU in each pass, which a CUDA graph repeats; {LEAVE}")
        restore_generators(before)  # a run that goes on from a checkpoint records again, and must draw as if it had not
        return passes


class _Passes:
    """One shape's passes and the tensors they read and write: inputs, logits, the loss's gradient of these, and gradients."""

    def __init__(self, compute: Callable[[dict], Tensor], trained: list[nn.Parameter], inputs: dict[str, Tensor], pool: Any):
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        aside = _aside(torch.cuda.current_device())
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                with _Filled():
                    logits = compute(self.inputs)
                torch.autograd.grad(logits, trained, torch.zeros_like(logits), allow_unused=True)
        torch.cuda.current_stream().wait_stream(aside)
        self.wanted = torch.zeros_like(logits, requires_grad=False)
        del logits
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        recording = {"pool": pool, "stream": aside, "capture_error_mode": "thread_local"}  # a thread builds batches meanwhile
        with torch.cuda.graph(self.forward, **recording), _Filled():
            logits = compute(self.inputs)
        with torch.cuda.graph(self.backward, **recording):
            self.gradients = torch.autograd.grad(logits, trained, self.wanted, allow_unused=True)
        self.logits = logits.detach()


class _Filled(TorchFunctionMode):
    """torch.tensor(number) is torch.full: no copy from the CPU, such as the zero of an eager mask of attention, is recorded."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.tensor and args and type(args[0]) in (bool, int, float):
            return torch.full((), args[0], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@lru_cache
def _aside(device: int) -> torch.cuda.Stream:
    """The stream of all recordings: cuBLAS keeps a workspace for each stream that it has seen, as long as the process lives."""
    return torch.cuda.Stream(device)


class _Replayed(torch.autograd.Function):
    """A step of autograd from the trainable parameters to the logits."""

    @staticmethod
    def forward(ctx, passes: _Passes, inputs: dict[str, Tensor], *trained: Tensor) -> Tensor:
        for name, tensor in inputs.items():
            passes.inputs[name].copy_(tensor)
        passes.forward.replay()
        ctx.passes = passes
        return passes.logits.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, wanted: Tensor):
        ctx.passes.wanted.copy_(wanted)
        ctx.passes.backward.replay()
        # Copies: autograd keeps what it is given as .grad, and the next replay would write into it.
        return None, None, *(None if each is None else each.clone() for each in ctx.passes.gradients)


def collated(data: Data) -> Callable[[list[Any]], dict[str, Tensor]]:
    """`data.collate` of few shapes. Raises ConfigError where examples differ in length and it cannot pad to a multiple."""
    if data.lengths is None:
        return data.collate
    if "multiple" not in inspect.signature(data.collate).parameters:
        raise ConfigError(f"the collate of this task takes no multiple=, to which batches would have to be padded; {LEAVE}")
    return partial(data.collate, multiple=MULTIPLE)


def check_recordable(device: torch.device, processes: int, method: Method) -> None:
    """Raises ConfigError where steps cannot be replayed."""
    if device.type != "cuda":
        raise ConfigError(f"train.cuda_graphs=true needs a GPU, and this run computes on the {device.type}; {LEAVE}")
    if processes > 1:
        raise ConfigError(f"train.cuda_graphs=true is for one process a run; {LEAVE}")
    changes = [hook for hook in ("on_step", "after_step") if getattr(type(method), hook) is not getattr(Method, hook)]
    if changes:
        raise ConfigError(f"method {method.name} changes the model between steps, which a CUDA graph would not see; {LEAVE}")
