"""Any of PEFT's methods, from a yaml alone: its type, its settings, and whether it is merged for evaluation."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from peft import PeftModel, PeftModelForSequenceClassification, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.boft import layer as boft
from peft.utils import AuxiliaryTrainingWrapper
from pydantic import PrivateAttr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from vera.errors import ConfigError, ModelError, one_line
from vera.io.files import write_atomic
from vera.methods import fused
from vera.methods.base import is_norm, read_tensors
from vera.methods.peft import ADAPTER, WEIGHTS_FILE, PeftMethod, write_adapter
from vera.methods.peft_types import TYPES, Setting, check_names, config_of
from vera.models.base import positions
from vera.models.text import reads_last_token
from vera.nn.base_layer import transposed
from vera.nn.names import inside

SPLIT = """This adapter is for GPT-2 with its attention split: query, key and value are linear maps of their own
(vera.models.gpt2.split_attention). PEFT on plain transformers, where they are one matrix, refuses this folder.
"""
# What PEFT raises for settings that do not fit a model's shapes.
_REFUSALS = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError, ZeroDivisionError)


class AnyPeft(PeftMethod):
    """type      a name of PEFT's own list of methods (vera.methods.peft_types has those that can be had here).
    settings  every one that the type has there; `targets` are the matrices.
    merge     exact: evaluated with the update added to W0, whose bits come back. never: what PEFT cannot merge.

    Types that put trained vectors before the text (prompt, prefix and p-tuning) have no targets and need a text classifier;
    they take places of the longest input.
    """

    targets: list[str] = []
    type: Literal[tuple(TYPES)]  # type: ignore[valid-type]
    settings: dict[str, Setting]
    merge: Literal["exact", "never"]

    _peft: PeftModel | None = PrivateAttr(None)  # some types keep what their layers share in it
    _as_saved: bool = PrivateAttr(False)  # prompts are saved as what a network made of them, without it

    @property
    def prefix(self) -> str:  # type: ignore[override]
        return "" if TYPES[self.type].prompts else super().prefix  # backbone.model is PEFT's own there

    @field_validator("merge")
    @classmethod
    def _can_merge(cls, merge: str, info: ValidationInfo) -> str:
        kind = info.data.get("type")
        if merge == "exact" and kind in TYPES and TYPES[kind].prompts:
            raise PydanticCustomError("merge", "{kind} cannot be merged; method.merge=never", {"kind": kind})
        return merge

    @field_validator("settings", mode="before")
    @classmethod
    def _named(cls, settings: Any, info: ValidationInfo) -> Any:
        if info.data.get("type") in TYPES and isinstance(settings, dict):
            check_names(info.data["type"], settings, "method.settings")
        return settings

    @field_validator("settings")
    @classmethod
    def _allowed(cls, settings: dict[str, Setting], info: ValidationInfo) -> dict[str, Setting]:
        if info.data.get("type") in TYPES:
            config_of(info.data["type"], settings, "method.settings")
        return settings

    def peft_config(self, backbone, model_config):
        if TYPES[self.type].prompts:
            if model_config.modality != "text":
                raise ConfigError(f"method {self.name}: {self.type} needs a text classifier, {model_config.name} is none")
            if self.targets:
                raise ConfigError(f"method.targets: {self.type} adapts no matrix; leave it empty")
            if self.type != "PREFIX_TUNING" and reads_last_token(backbone.model):
                raise ConfigError(
                    f"method {self.name}: {self.type} hands embeddings on, among which {model_config.name} cannot tell padding "
                    "from its last token; use method=prefix_tuning"
                )
            given = {"task_type": "SEQ_CLS", "inference_mode": self._as_saved}
            if self.type != "PREFIX_TUNING" and "token_dim" not in self.settings:  # PEFT takes the width of the layers
                with suppress(NotImplementedError, AttributeError):  # embeddings of another kind: PEFT says whether it can
                    given["token_dim"] = backbone.model.get_input_embeddings().embedding_dim
            return config_of(self.type, self.settings, "method.settings", **given)
        if not self.targets and self.type != "LN_TUNING":
            raise ConfigError(f"method.targets: {self.type} needs matrices, such as [query, value]")
        targets = self._norms(backbone) if self.type == "LN_TUNING" else list(self.modules(backbone, model_config))
        return config_of(self.type, self.settings, "method.settings", target_modules=targets, feedforward_modules=[])

    def put_on(self, backbone, config):
        made = PeftModelForSequenceClassification if TYPES[self.type].prompts else PeftModel
        if self.type == "BOFT":
            boft._FBD_CUDA = False  # else PEFT compiles an extension here, and tries again for each layer where it cannot
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                self._peft = made(backbone.model, config, ADAPTER)
        except _REFUSALS as error:
            raise ConfigError(f"method {self.name}: PEFT's {self.type} does not fit this model: {one_line(error)}") from None
        changed = [str(warning.message) for warning in said if "djusted" in str(warning.message)]
        if changed:  # PEFT takes another value than the yaml's
            raise ConfigError(f"method {self.name}: method.settings do not fit this model: {changed[0]}")
        wrong = [name for name, layer in self.layers(backbone).items() if transposed(layer.get_base_layer())]
        if wrong and self.settings.get("init_lora_weights") == "olora":  # PEFT decomposes W0 as it lies, here transposed
            raise ConfigError(f"method {self.name}: PEFT's OLoRA does not start at W0 on a Conv1D ({wrong[0]}); take PiSSA")
        if TYPES[self.type].prompts:
            backbone.model = self._peft
            for name, module in list(self._peft.named_modules()):
                if isinstance(module, AuxiliaryTrainingWrapper):  # one head, trained as any method's
                    parent, _, leaf = name.rpartition(".")
                    setattr(self._peft.get_submodule(parent), leaf, module.modules_to_save[ADAPTER])
            backbone.preprocess = copy.copy(backbone.preprocess)  # the next run has the same one
            most = backbone.preprocess.model_max_length
            backbone.preprocess.model_max_length = min(most, positions(backbone.model) or most) - config.num_virtual_tokens

    def _norms(self, backbone) -> list[str]:
        """The normalisation layers of the backbone, which LN tuning trains."""
        if self.targets:
            raise ConfigError("method.targets: LN_TUNING trains every norm; leave it empty")
        named = [name for name, module in backbone.model.named_modules() if is_norm(module)]
        return [name for name in named if not inside(name, backbone.head)]

    @contextmanager
    def merged(self, backbone):
        if self.merge == "never":
            yield
            return
        with super().merged(backbone):
            yield

    def load(self, backbone, model_config, folder):
        self._as_saved = TYPES[self.type].prompts
        self.attach(backbone, model_config)
        path, head = folder / WEIGHTS_FILE, self._head(backbone)
        tensors = read_tensors(path)
        expected = {**self._adapter(), **head}
        for name in sorted(expected.keys() | tensors.keys()):
            if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
                raise ModelError(f"{path} does not fit the model: {name}")
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(tensors.pop(name))
            set_peft_model_state_dict(self._peft, tensors, ADAPTER)

    def save(self, backbone, folder):
        tensors = {**self._adapter(), **self._head(backbone)}
        tensors = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in tensors.items()}
        config = {
            **self._peft.peft_config[ADAPTER].to_dict(),
            "inference_mode": True,
            "base_model_name_or_path": None,  # PEFT has written a path of this machine
            "modules_to_save": list(backbone.head) if self.train_head else None,
        }
        if not TYPES[self.type].prompts:
            config["target_modules"] = sorted(self.layers(backbone))
        write_adapter(folder, tensors, config)
        if fused.splits(backbone.model):
            write_atomic(folder / "README.md", SPLIT)

    def _adapter(self) -> dict[str, torch.Tensor]:
        """What PEFT keeps of the adapter, by the names of its files: what is trained, and what was drawn."""
        return get_peft_model_state_dict(self._peft, adapter_name=ADAPTER, save_embedding_layers=False)

    def _head(self, backbone) -> dict[str, torch.nn.Parameter]:
        """The trained head, by the names of PEFT's files."""
        named = backbone.model.named_parameters()
        return {f"{self.prefix}{name}": p for name, p in named if p.requires_grad and inside(name, backbone.head)}
