"""What every method offers the loop, which never asks for its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vera.config import Component, Strict
from vera.errors import ConfigError, ModelError
from vera.io.files import write_atomic
from vera.models.base import Backbone, Model
from vera.nn.names import inside

WEIGHTS_FILE = "trained.safetensors"


class Group(Strict):
    """How the optimiser treats some parameters: lr_scale times the learning rate of the adapter or head that they belong to,
    and a weight decay of their own (null: as the others), norms and biases among them not spared."""

    lr_scale: float = Field(default=1.0, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class ParameterGroups(dict[str, list[tuple[str, nn.Parameter]]]):
    """Trainable parameters by group and name. undecayed: names of parameters that weight decay spares; own: of those with
    a Group of their own."""

    def __init__(self, undecayed: Iterable[str], **groups: list[tuple[str, nn.Parameter]]):
        super().__init__(groups)
        self.undecayed = frozenset(undecayed)
        self.own: dict[str, Group] = {}


def biases_and_norms(model: nn.Module) -> Iterator[str]:
    """Names of all biases, and of all parameters of normalisation layers: by the name of the module's type, whatever the
    module is called (GPT-2's are ln_1, ln_2 and ln_f). The keys of a ParameterDict are adapters' names: what they hold
    is called as the dict is."""
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if is_norm(module) or (prefix if isinstance(module, nn.ParameterDict) else name).endswith("bias"):
                yield f"{prefix}.{name}".lstrip(".")


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own (LayerNorm, RMSNorm, BatchNorm2d ...), what derives from them, and transformers'
    (LlamaRMSNorm, MambaRMSNormGated, AutoformerLayernorm ...)."""
    return any(re.search(r"norm(\dd)?(gated)?$", kind.__name__, re.IGNORECASE) for kind in type(module).__mro__)


class Method(Component):
    """Common keys of conf/method.

    train_head  whether the task head is trained. A language model has none: its own output layer belongs to the backbone.
    groups      how the optimiser treats parameters by a part of their dotted name: {lora_B: {lr_scale: 16}} is LoRA+.

    A subclass says what to train in `attach`; the rest has defaults that fit methods without an adapter of their own.
    `head_alone`: a method that means to train nothing of the backbone.
    """

    head_alone: ClassVar[bool] = False

    train_head: bool = True
    groups: dict[str, Group] = {}

    def attach(self, backbone: Backbone, model_config: Model) -> None:
        """Prepare `backbone.model` in place: freeze it, add what the method adds, leave trainable what it trains."""
        raise NotImplementedError

    def parameter_groups(self, backbone: Backbone) -> ParameterGroups:
        """Trainable parameters by name, in two groups: "adapter" (train.lr) and "head" (train.head_lr). Raises ConfigError for
        none, and for one in half precision, whose last digit most updates of fine-tuning do not reach."""
        groups = ParameterGroups(biases_and_norms(backbone.model), adapter=[], head=[])
        for name, parameter in backbone.model.named_parameters():
            if parameter.requires_grad:
                groups["head" if inside(name, backbone.head) else "adapter"].append((name, parameter))
        if not groups["adapter"] and not groups["head"]:
            raise ConfigError(f"method {self.name} trains nothing (method.train_head={self.train_head})")
        if not any(parameter.numel() for _, parameter in groups["adapter"]) and not self.head_alone:
            raise ConfigError(f"method {self.name} trains nothing of this backbone; that is method=head")
        for name, parameter in (*groups["adapter"], *groups["head"]):
            if parameter.element_size() < 4:
                dtype = str(parameter.dtype).removeprefix("torch.")
                raise ConfigError(
                    f"method {self.name} trains {name}, which is {dtype}: too coarse for its updates; take method=full, which "
                    "is float32, or a method that adds weights"
                )
        names = [name for name, _ in (*groups["adapter"], *groups["head"])]
        for part, group in self.groups.items():
            meant = [name for name in names if inside(name, [part])]
            twice = [name for name in meant if name in groups.own]
            if twice:
                raise ConfigError(f"method.groups: {twice[0]} is in two of them, {part} is one")
            if not meant:
                parts = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
                raise ConfigError(f"method.groups.{part} names nothing that is trained; parts of names: {', '.join(parts)}")
            groups.own |= dict.fromkeys(meant, group)
        return groups

    def on_step(self, backbone: Backbone, step: int, total: int, lr: float) -> None:
        """Called before each of the run's `total` steps with its number, from 0, and the adapter's learning rate in it; for
        schedules that belong to the method."""

    def after_step(self, backbone: Backbone, step: int, total: int) -> None:
        """Called after each optimiser step with the same numbers; its gradients (clipped, where they are) are still there."""

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """A scalar whose gradient the loop adds once a step, if there is one; the reported loss is the task's alone."""
        return None

    def state(self, backbone: Backbone) -> dict[str, Tensor]:
        """What a killed run needs beside `trained`, on the CPU: a schedule that looks back at earlier steps."""
        return {}

    def restore_state(self, backbone: Backbone, tensors: dict[str, Tensor]) -> None:
        """Put `state` tensors back."""

    @contextmanager
    def merged(self, backbone: Backbone) -> Iterator[None]:
        """Inside: the model computes the same (through PEFT, under autocast: but for rounding W0 anew), at the bare
        backbone's speed where its weights can take the update in.
        After: every weight has the bits it had."""
        yield

    def save(self, backbone: Backbone, folder: Path) -> None:
        """Write what was trained, nothing else."""
        write_atomic(folder / WEIGHTS_FILE, safetensors_bytes(self.trained(backbone), {"format": "pt", "method": self.name}))

    def load(self, backbone: Backbone, model_config: Model, folder: Path) -> None:
        """`attach`, with what `save` wrote. Raises ModelError or AdapterError when it does not fit."""
        self.attach(backbone, model_config)
        self.restore(backbone, read_tensors(folder / WEIGHTS_FILE))

    def trained(self, backbone: Backbone) -> dict[str, Tensor]:
        """The trainable tensors by name, on the CPU."""
        groups = self.parameter_groups(backbone)
        named = groups["adapter"] + groups["head"]
        return {name: parameter.detach().to("cpu").contiguous() for name, parameter in named}

    def restore(self, backbone: Backbone, tensors: dict[str, Tensor]) -> None:
        """Put `trained` tensors back. Raises ModelError when names or shapes differ."""
        groups = self.parameter_groups(backbone)
        parameters = dict(groups["adapter"] + groups["head"])
        if {name: p.shape for name, p in parameters.items()} != {name: t.shape for name, t in tensors.items()}:
            raise ModelError(f"saved state of method {self.name} does not fit the model")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])

    def _train_head(self, backbone: Backbone) -> None:
        for name, parameter in backbone.model.named_parameters():
            if inside(name, backbone.head):
                parameter.requires_grad_(self.train_head)


class TargetedMethod(Method):
    """A method on chosen matrices. targets: logical names from the model's yaml, such as query and value."""

    targets: list[str]

    def modules(self, backbone: Backbone, model_config: Model) -> tuple[str, ...]:
        """The target names as the model's own modules are called: ends of dotted names, as PEFT's `target_modules`."""
        return model_config.resolve_targets(backbone, self.targets)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ModelError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


def elements(parameter: nn.Parameter) -> int:
    """Entries of the matrix that a parameter stands for; a 4-bit one packs two into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else packed.shape.numel()


def quantised(weight: Tensor) -> bool:
    return not weight.is_floating_point() or weight.element_size() < 2


def mergeable(weight: Tensor) -> bool:
    """Whether a small update can be added to a weight: not to a quantised one, nor to one rounded to half precision, nor to one
    of which each process holds a part."""
    return weight.is_floating_point() and weight.element_size() >= 4 and not isinstance(weight, DTensor)


def shared(model: nn.Module, layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of the layers that have another place in the model as well, themselves or a weight of theirs (an output layer tied
    to the embeddings): what is written into them is read there too."""
    places = Counter(id(held) for m in model.modules() for held in (*m._modules.values(), *m._parameters.values()))
    return [layer for layer in layers if any(places[id(part)] > 1 for part in (*layer.modules(), *layer.parameters()))]


def count(groups: dict[str, list[tuple[str, nn.Parameter]]], model: nn.Module) -> dict[str, Any]:
    """parameters of a record: adapter, head, total and adapter_bytes."""
    adapter = [parameter for _, parameter in groups["adapter"]]
    return {
        "adapter": sum(parameter.numel() for parameter in adapter),
        "head": sum(parameter.numel() for _, parameter in groups["head"]),
        "total": sum(elements(parameter) for parameter in model.parameters()),
        "adapter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in adapter),
    }
