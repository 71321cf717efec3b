"""The backbone of the last run, kept for the next one: a sweep reads, hashes and brings to the device each backbone once.

Runs share the frozen tensors. What a method trains becomes the run's own copy before the first step, and a sum over the bytes
of every kept tensor is compared before the next run gets it: a run that has changed one leaves nothing behind.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vera.io import hub
from vera.models.base import Backbone, Model
from vera.nn.names import inside
from vera.records.sources import stamp

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Place = tuple[object, ...]


@dataclass
class _Kept:
    """drawing: the modules of the head in the order in which `Model.load` draws them, one of them twice where the checkpoint
    lacks it and has another. twins: the frozen parameters on the device, by where they lie on the CPU, where methods attach."""

    key: tuple[str, ...]
    backbone: Backbone
    sums: list[int]
    drawing: tuple[str, ...]
    twins: dict[_Place, Tensor] = field(default_factory=dict)


_kept: _Kept | None = None


def load(model: Model, outputs: int, cache_dir: Path) -> Backbone:
    """`model.load`, or the backbone of the last run where that would read the same, with a head drawn as there.

    Head, random generator and every weight are those that `load` gives: where drawing the head again does not show that, the
    first time, nothing is kept. Nor are weights packed in 4 bits, which move to a device in a way of their own.
    """
    global _kept
    source = model.source(cache_dir)
    read = str(hub.commit(source, model.revision, "model")) if source == model.checkpoint else stamp(source)
    key = (type(model).__qualname__, model.model_dump_json(), str(outputs), source, read)
    if _kept is not None and _kept.key == key and _sums(_kept.backbone.model) == _kept.sums:
        return _drawn(_kept.backbone, _kept.drawing)
    if _kept is not None:
        forget()
        gc.collect()  # its memory, before more is taken: Accelerate ties a model of an earlier run into a cycle
    before = torch.get_rng_state()
    loaded = model.load(outputs, cache_dir)
    if any(type(parameter) is not nn.Parameter for parameter in loaded.model.parameters()):
        return loaded
    after = torch.get_rng_state()
    for drawing in (loaded.head, *((name, *loaded.head) for name in loaded.head)):
        torch.set_rng_state(before)
        again = _drawn(loaded, drawing)
        heads = [[p for n, p in one.model.named_parameters() if inside(n, one.head)] for one in (loaded, again)]
        if torch.equal(torch.get_rng_state(), after) and all(torch.equal(*pair) for pair in zip(*heads, strict=True)):
            _kept = _Kept(key, loaded, _sums(loaded.model), drawing)
            return again
    torch.set_rng_state(after)
    return loaded


def forget() -> None:
    """Keep nothing: the run that goes on owns its weights alone."""
    global _kept
    _kept = None


def own(model: nn.Module) -> None:
    """Before the first step: of what the run trains it gets a copy. Where that is most of the backbone, it takes the tensors
    themselves, and the next run reads them again."""
    shared = _places()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and _place(parameter) in shared]
    if 2 * sum(map(_bytes, trained)) > sum(map(_bytes, shared.values())):
        forget()
        return
    for parameter in trained:
        parameter.data = parameter.data.clone()


def to(model: nn.Module, device: torch.device) -> None:
    """Bring a model to the device; what it shares with the kept backbone is brought there once, for the next runs as well."""
    if device.type != "cpu":
        _to_twins(model, lambda tensor: tensor.to(device))
    model.to(device)


def _to_twins(model: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
    shared = _places()
    for parameter in model.parameters():
        place = _place(parameter)
        if place in shared and _kept is not None:
            twin = _kept.twins.get(place)
            if twin is None or _sum(twin) != _sum(shared[place].detach()):
                twin = _kept.twins[place] = move(shared[place].detach())
            parameter.data = twin


def _drawn(kept: Backbone, drawing: tuple[str, ...]) -> Backbone:
    """A backbone of its own structure on the tensors of another, with its head drawn from torch's global generator."""
    memo: dict[int, object] = {}
    for name, parameter in kept.model.named_parameters():
        drawn = inside(name, kept.head)  # what drawing does not reach would show
        values = torch.full_like(parameter, torch.nan) if drawn else parameter.detach()
        memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    model = copy.deepcopy(kept.model, memo)
    for head in drawing:
        model.get_submodule(head).apply(model._init_weights)
    return replace(kept, model=model)


def _sums(model: nn.Module) -> list[int]:
    return [_sum(tensor) for tensor in _tensors(model)]


def _sum(tensor: Tensor) -> int:
    """Of a tensor's bytes, as integers of its width."""
    return int(tensor.view(_INTEGERS[tensor.element_size()]).sum())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        plain = tensor.detach()
        yield torch.view_as_real(plain) if plain.is_complex() else plain


def _places() -> dict[_Place, nn.Parameter]:
    """The kept parameters by where they lie."""
    return {_place(p): p for p in _kept.backbone.model.parameters()} if _kept is not None else {}


def _place(parameter: Tensor) -> _Place:
    return parameter.data_ptr(), parameter.device, parameter.shape, parameter.dtype


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
