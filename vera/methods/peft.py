"""What the methods that come from PEFT share: putting them on, merging with an exact way back, PEFT's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from vera.errors import ModelError
from vera.io.files import write_atomic
from vera.methods import fused
from vera.methods.base import TargetedMethod, mergeable, read_tensors, shared
from vera.nn.checkpoint import CONFIG_FILE, PREFIX, WEIGHTS_FILE

ADAPTER = "default"  # PEFT's name of the one adapter that we put on


class PeftMethod(TargetedMethod):
    """A subclass says what PEFT is to do in `peft_config`. Adapter files are PEFT's, with the head among modules_to_save, for
    the model as transformers has it."""

    prefix: ClassVar[str] = PREFIX  # of the names in PEFT's files, before those in backbone.model

    def peft_config(self, backbone, model_config) -> PeftConfig:
        """PEFT's config for one backbone; target_modules are names that PEFT matches by their end."""
        raise NotImplementedError

    def attach(self, backbone, model_config):
        backbone.model.requires_grad_(False)
        self.put_on(backbone, self.peft_config(backbone, model_config))
        for parameter in backbone.model.parameters():
            if parameter.requires_grad and parameter.element_size() < 4:  # an update can be smaller than bf16 resolves
                parameter.data = parameter.data.float()
        for layer in self.layers(backbone).values():
            layer.register_forward_hook(_as_its_input)
        self._train_head(backbone)

    def put_on(self, backbone, config: PeftConfig) -> None:
        """Add the adapter to the frozen model."""
        inject_adapter_in_model(config, backbone.model, ADAPTER)

    def layers(self, backbone) -> dict[str, BaseTunerLayer]:
        """The adapted layers by name."""
        return {name: module for name, module in backbone.model.named_modules() if isinstance(module, BaseTunerLayer)}

    @contextmanager
    def merged(self, backbone):
        layers = self.layers(backbone).values()
        bases = [layer.get_base_layer() for layer in layers]
        whole = all(mergeable(base.weight) and not _coarse(base.weight) for base in bases)
        whole = whole and not any(_bias_of_its_own(layer) for layer in layers)
        if not whole or shared(backbone.model, bases):
            yield
            return
        originals = [(p, p.data) for base in bases for p in base.parameters()]
        parts = [  # some merge by exchanging modules, and some keep what they merged with
            (held, dict(held)) for layer in layers for m in layer.modules() for held in (m._parameters, m._buffers, m._modules)
        ]
        try:
            with torch.no_grad():
                for parameter, original in originals:
                    parameter.data = original.clone()
                for layer in layers:
                    layer.merge()
            yield
        finally:
            for held, was in parts:
                held.clear()
                held.update(was)
            for parameter, original in originals:
                parameter.data = original  # PEFT's unmerge computes its way back, which loses bits
            for layer in layers:
                layer.merged_adapters.clear()

    def load(self, backbone, model_config, folder):
        self.attach(backbone, model_config)
        path = folder / WEIGHTS_FILE
        stored = {name.removeprefix(self.prefix): tensor for name, tensor in read_tensors(path).items()}
        tensors = fused.apart(backbone.model, self.whole(stored, folder), path)
        named = {stored_name(name): parameter for name, parameter in backbone.model.named_parameters()}
        needed = {stored_name(name) for name in self.trained(backbone)}
        for name in sorted(needed | tensors.keys()):
            if name not in tensors or name not in named or tensors[name].shape != named[name].shape:
                raise ModelError(f"{path} does not fit the model: {name}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                named[name].copy_(tensor)

    def whole(self, stored, folder):
        """The tensors of an adapter file in the shapes that `attach` gives."""
        return stored

    def saved(self, backbone):
        """The tensors of an adapter file, by their names in the model, and what its config says beside `peft_config`."""
        return self.trained(backbone), {}

    def save(self, backbone, folder):
        named, changes = self.saved(backbone)
        stored = fused.together(backbone.model, {stored_name(name): tensor for name, tensor in named.items()})
        tensors = {f"{self.prefix}{name}": tensor.contiguous() for name, tensor in stored.items()}
        config = {
            **backbone.model.peft_config[ADAPTER].to_dict(),
            **changes,
            "inference_mode": True,
            "target_modules": sorted(self.layers(backbone)),
            "modules_to_save": list(backbone.head) if self.train_head else None,
        }
        config = fused.plain_config(backbone.model, config)
        write_adapter(folder, tensors, config)


def _as_its_input(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """In half precision where the model computes in it: PEFT's IA3 on 4-bit weights returns float32, as its vectors are."""
    return output.to(inputs[0].dtype) if inputs[0].element_size() < 4 else output


def _coarse(weight: torch.Tensor) -> bool:
    """Whether a matrix has bf16's digits alone, as a bf16 checkpoint's loaded in float32: under autocast the sum with a small
    update would be rounded to them again, and lose a part of it."""
    digits = weight.detach().flatten()[:4096]
    return weight.ndim > 1 and torch.equal(digits.bfloat16().to(digits.dtype), digits)


def _bias_of_its_own(layer: BaseTunerLayer) -> bool:
    """Whether an adapter has a bias (BEFT's, LoRA's lora_bias) and its layer none to take it in: PEFT cannot merge it."""
    return getattr(layer.get_base_layer(), "bias", None) is None and any("bias" in name for name, _ in layer.named_parameters())


def json_value(value):
    """What JSON cannot hold of PEFT's configs, as PEFT writes it."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """PEFT's two files of an adapter; the tensors are contiguous."""
    write_atomic(folder / WEIGHTS_FILE, safetensors_bytes(dict(tensors), {**metadata, "format": "pt"}))
    write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True, default=json_value) + "\n")


def stored_name(name: str) -> str:
    """A parameter's name without the adapter's, as PEFT's files have it."""
    return re.sub(rf"\.{ADAPTER}(?=\.|$)", "", name)
