"""One call of a module with other weights for other rows of its batch, the results in the order of the rows.

Which tensors of a call have the rows of the batch in front, and where its results have them, cannot be seen from shapes alone
(a batch of three, and three labels). So a call of a new form is first tried on the meta device, where tensors have shapes but
no values, with a number of rows that nothing else has. A call that cannot be read in exactly one way is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import AdapterError, one_line

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, enum.Enum, torch.dtype, torch.device, torch.layout)
_MOST = 4  # tensors that may have the rows in front; each doubles the readings of a call
_ROWS = 7919  # a prime: the number of rows of a trial
_FORMS = 1024  # forms of a call that are remembered


class Reading(NamedTuple):
    """How a call has the rows of its batch: in front of which of its tensors, and in which dimension of each of its results."""

    taken: tuple[int, ...]
    places: tuple[int, ...]


class RowWise:
    """Calls `module`, called `path` in messages, with a part of the batch for each set of its tensors."""

    def __init__(self, module: nn.Module, path: str):
        self.module, self.path = module, path
        self._readings: dict[str, Reading] = {}

    def __call__(self, parts: list[tuple[dict[str, Tensor], Tensor]], rows: int, args: tuple, named: dict) -> Any:
        """What the module returns for the whole batch. parts: tensors of the module by name, and the rows [k] they are for.

        Raises AdapterError for arguments or results that cannot be told apart by rows.
        """
        if len(parts) == 1:
            return self._call(parts[0][0], args, named)
        reading = self._reading(rows, args, named)
        outline, result, whole = None, None, []
        for tensors, index in parts:
            numbers = iter(range(len(_tensors((args, named)))))
            part = _over((args, named), lambda t, n=numbers, i=index: t.index_select(0, i) if next(n) in reading.taken else t)
            found = self._call(tensors, *part)
            made = self._checked(lambda found=found: _tensors(found), "returns")
            if outline is None:
                outline, result = _outline(found, reading), found
                whole = [t.new_empty(*t.shape[:p], rows, *t.shape[p + 1 :]) for t, p in zip(made, reading.places, strict=True)]
            elif outline != _outline(found, reading):
                raise AdapterError(f"{self.path} returns something of another form for other rows: it cannot be put together")
            for all_rows, some, place in zip(whole, made, reading.places, strict=True):
                all_rows.index_copy_(place, index, some)
        results = iter(whole)
        return _over(result, lambda _: next(results))

    def _call(self, tensors: dict[str, Tensor], args: tuple, named: dict) -> Any:
        return functional_call(self.module, tensors, args, named, tie_weights=False) if tensors else self.module(*args, **named)

    def _checked(self, function: Callable[[], Any], verb: str) -> Any:
        try:
            return function()
        except _Opaque as error:
            raise AdapterError(f"{self.path} {verb} a {error}, which a bank cannot divide into rows") from None

    def _reading(self, rows: int, args: tuple, named: dict) -> Reading:
        form = self._checked(lambda: f"{rows} {_over((args, named), lambda t: (*t.shape, t.dtype, t.device))!r}", "takes")
        if form not in self._readings:
            if len(self._readings) >= _FORMS:
                self._readings.clear()
            self._readings[form] = self._try(rows, args, named)
        return self._readings[form]

    def _try(self, rows: int, args: tuple, named: dict) -> Reading:
        tensors = _tensors((args, named))
        candidates = [number for number, tensor in enumerate(tensors) if tensor.dim() and len(tensor) == rows]
        if len(candidates) > _MOST:
            raise AdapterError(
                f"{self.path} takes {len(candidates)} tensors of {rows} rows, a bank tells {_MOST} apart at most"
            )
        found, why = [], f"none of its tensors has {rows} rows"
        for count in range(len(candidates), 0, -1):
            for taken in combinations(candidates, count):
                try:
                    found.append(Reading(taken, self._trial(taken, args, named)))
                except AdapterError:
                    raise
                except Exception as error:  # whatever a module says to shapes that do not fit
                    why = one_line(error)
        if not found:
            raise AdapterError(f"{self.path} cannot be called with a part of the batch: {why}")
        if len(found) > 1:
            raise AdapterError(
                f"{self.path} takes {len(candidates)} tensors of {rows} rows; which are the batch's does not show"
            )
        return found[0]

    def _trial(self, taken: tuple[int, ...], args: tuple, named: dict) -> tuple[int, ...]:
        """Where each result has the rows if these tensors have them in front; raises anything if they have not."""
        numbers = iter(range(len(_tensors((args, named)))))

        def shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype  # autocast does not reach the meta device
            return torch.empty(shape, dtype=dtype, device="meta")

        def part(tensor: Tensor) -> Tensor:
            return shaped(tensor, (_ROWS, *tensor.shape[1:]) if next(numbers) in taken else tensor.shape)

        with torch.inference_mode(False), torch.no_grad():
            inputs = _over((args, named), part)
            own = [*self.module.named_parameters(remove_duplicate=False), *self.module.named_buffers(remove_duplicate=False)]
            results = self._call({name: shaped(tensor, tensor.shape) for name, tensor in own}, *inputs)
            results = self._checked(lambda: _tensors(results), "returns")
            if any(tensor._version for tensor in _tensors(inputs)):
                raise AdapterError(f"{self.path} writes to its arguments; in a bank it would write to a part of the batch")
        places = [[place for place, size in enumerate(result.shape) if size == _ROWS] for result in results]
        for place, result in zip(places, results, strict=True):
            if len(place) != 1:
                raise ValueError(f"a result of shape {list(result.shape)} does not have a row for each of {_ROWS} rows")
        return tuple(place[0] for place in places)


class _Opaque(TypeError):
    """A value that may hold tensors where nobody sees them; the message is its type."""


def _over(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same structure with function(tensor) in the place of each tensor, in order. Raises _Opaque."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (tuple, list)):
        items = [_over(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        made = copy.copy(value)
        for key in value:
            made[key] = _over(value[key], function)
        return made
    if dataclasses.is_dataclass(value):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, _over(getattr(value, field.name), function))
        return made
    raise _Opaque(type(value).__name__)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _over(value, keep)
    return found


def _outline(value: Any, reading: Reading) -> str:
    """The structure of a result with the shapes of its tensors, the number of rows left out."""
    places: Iterator[int] = iter(reading.places)

    def rest(tensor: Tensor) -> tuple:
        place = next(places)
        return (*tensor.shape[:place], *tensor.shape[place + 1 :], tensor.dtype)

    return repr(_over(value, rest))
