"""The method of the paper by itself: needs torch and safetensors, nothing else of this project.

from vera.nn import VeraConfig, attach, merge, unmerge, save_adapter, load_adapter, AdapterBank
"""

from vera.nn.bank import AdapterBank
from vera.nn.checkpoint import load_adapter, save_adapter
from vera.nn.config import VeraConfig
from vera.nn.in_peft import accelerate
from vera.nn.inject import attach, merge, set_adapter, unmerge, vera_layers
from vera.nn.lifecycle import delete_adapter, disabled, merge_and_unload, unload
from vera.nn.linear import VeraLinear
from vera.nn.projection import Projection

__all__ = [
    "AdapterBank",
    "Projection",
    "VeraConfig",
    "VeraLinear",
    "accelerate",
    "attach",
    "delete_adapter",
    "disabled",
    "load_adapter",
    "merge",
    "merge_and_unload",
    "save_adapter",
    "set_adapter",
    "unload",
    "unmerge",
    "vera_layers",
]
