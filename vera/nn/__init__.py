"""The method of the paper by itself: needs torch and safetensors, nothing else of this project. The folder can be copied.

from vera.nn import VeraConfig, attach, merge, unmerge, save_adapter, load_adapter, AdapterBank
"""

from importlib import import_module

# Where each public name is defined; imported when it is asked for, so that errors, files and count come without torch.
_HOMES = {
    "AdapterBank": "bank",
    "AdapterError": "errors",
    "Projection": "projection",
    "VeraConfig": "config",
    "VeraLinear": "linear",
    "accelerate": "in_peft",
    "attach": "inject",
    "delete_adapter": "lifecycle",
    "disabled": "lifecycle",
    "load_adapter": "checkpoint",
    "merge": "inject",
    "merge_and_unload": "lifecycle",
    "save_adapter": "checkpoint",
    "set_adapter": "inject",
    "unload": "lifecycle",
    "unmerge": "inject",
    "vera_layers": "inject",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
