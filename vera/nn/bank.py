"""Many adapters on one frozen backbone, and batches in which every row uses its own (paper, section 3.3: A and B are shared).

    bank = AdapterBank(model)
    failed = bank.load("adapters")                  # adapters/<name>/ as save_adapter wrote them
    with bank.use(["rte", "cola", None, "rte"]):    # one name a row of the batch; None: the bare backbone
        model(**batch)                              # or model.generate(**batch)

A row of the batch gets h = W0 x + b_i * (B (d_i * (A x))) with its own b_i and d_i; A and B exist once. Modules that travel
with an adapter, such as a classification head, run once for each adapter of the batch.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .checkpoint import CONFIG_FILE, Reader
from .config import VeraConfig
from .errors import AdapterError
from .inject import projection_keys, replace_module, target_shapes, vera_layers
from .names import matches
from .projection import Projection


class AdapterBank:
    """Adapters of one kind (rank, seed of A and B, layers, modules_to_save) on `model`, by name. For inference.

    The first adapter decides the kind; the model's layers are then wrapped in place. Each adapter is one row of a table:
    b and d of every layer, then its modules_to_save.

    memory_bytes  limit of the table; beyond it the adapters used longest ago wait in a temporary file. None: no limit.
    dtype         in which values are kept; torch.bfloat16 halves memory and file. b and d keep 8 bits of precision then.

    Raises AdapterError for a model that already carries adapters, or a limit that does not hold one adapter.
    """

    def __init__(self, model: nn.Module, memory_bytes: int | None = None, dtype: torch.dtype = torch.float32):
        if any(vera_layers(model)) or any(isinstance(module, (_Layer, _Saved)) for module in model.modules()):
            raise AdapterError("a bank needs a model without adapters")
        self.model, self.memory_bytes, self.dtype = model, memory_bytes, dtype
        self.config: VeraConfig | None = None
        self._reader = Reader(model)
        self._slots: OrderedDict[str, int] = OrderedDict()  # in memory, the one used longest ago first
        self._spilled: dict[str, int] = {}  # name -> row of the file
        self._file = None
        self._file_rows = 0
        self._free: list[int] = []  # slots of the table
        self._batch: _Batch | None = None

    def __len__(self) -> int:
        return len(self._slots.keys() | self._spilled.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._slots or name in self._spilled

    @property
    def names(self) -> list[str]:
        return sorted(self._slots.keys() | self._spilled.keys())

    @property
    def resident(self) -> list[str]:
        """Names of the adapters in memory, the one used longest ago first."""
        return list(self._slots)

    @property
    def adapter_bytes(self) -> int:
        """Memory of one adapter. Raises AdapterError while the bank is empty."""
        self._need_kind()
        return self._width * self.dtype.itemsize

    def load(self, folder: str | os.PathLike) -> dict[str, str]:
        """Add every adapter in a folder of adapter folders, each by its folder's name; an adapter of that name is replaced.

        Returns what could not be added: name -> reason, which names the file. Those that can are added all the same. Raises
        AdapterError when the folder holds no adapter.
        """
        folders = sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG_FILE}"))
        if not folders:
            raise AdapterError(f"{folder} holds no folder with {CONFIG_FILE}")
        failed = {}
        for path in folders:
            try:
                self.add(path.name, path)
            except AdapterError as error:
                failed[path.name] = str(error)
        return failed

    def add(self, name: str, folder: str | os.PathLike) -> None:
        """Add the adapter that `save_adapter` or PEFT wrote to `folder`; one of that name is replaced.

        Raises AdapterError, with the bank as it was, when the file is broken or the adapter is of another kind or backbone.
        """
        self._not_in_use()
        config, values = self._reader.read(folder)
        values = {key: value.to(self.dtype) for key, value in values.items()}
        for key, value in values.items():
            if not torch.isfinite(value).all():
                raise AdapterError(f"{folder}: {key} holds a value that is too large for {self.dtype}")
        if self.config is None:
            self._install(config, folder)
        else:
            self._same_kind(config, folder)
        if name in self:
            self.evict(name)
        slot = self._slot(name)
        self._table[slot] = torch.cat([values[key].flatten() for key in self._keys])

    def evict(self, name: str) -> None:
        """Forget an adapter. Raises AdapterError for an unknown name."""
        self._not_in_use()
        self._known([name])
        self._spilled.pop(name, None)
        if name in self._slots:
            self._free.append(self._slots.pop(name))

    @contextmanager
    def use(self, names: Sequence[str | None], copies: int = 1) -> Iterator[None]:
        """Inside: row i of every batch uses adapter names[i], without gradients. Copies: beams or samples of each row.

        Raises AdapterError for an unknown name, for more different adapters than the memory limit holds, and, when the model
        is called, for a batch with another number of rows.
        """
        self._not_in_use()
        if isinstance(names, str):
            raise AdapterError(f"a batch needs a sequence of adapter names, not the string {names!r}")
        self._need_kind()
        rows = [name for name in names for _ in range(copies)]
        wanted = list(dict.fromkeys(name for name in rows if name is not None))
        self._known(wanted)
        if len(wanted) > self._capacity:
            raise AdapterError(
                f"a batch with {len(wanted)} different adapters, but {self.memory_bytes:,} bytes hold {self._capacity}"
            )
        for name in wanted:  # first, so that none of them makes room for another
            if name in self._slots:
                self._slots.move_to_end(name)
        for name in wanted:
            if name not in self._slots:
                self._fetch(name)
        self._batch = _Batch(self, rows)
        try:
            with torch.no_grad():
                yield
        finally:
            self._batch = None

    def close(self) -> None:
        """Give the model its own layers back and forget all adapters."""
        self._not_in_use()
        for path, module in list(self.model.named_modules()):
            if isinstance(module, (_Layer, _Saved)) and module.bank is self:
                replace_module(self.model, path, module.base_layer)
        self.__init__(self.model, self.memory_bytes, self.dtype)

    def _install(self, config: VeraConfig, folder: str | os.PathLike) -> None:
        """Lay out the table for the first adapter's kind and wrap the model's layers."""
        targets = self._reader.targets(Path(folder), config)
        shapes = target_shapes(targets)
        sizes = {f"{name}.vera_lambda_b": (d_out,) for name, (d_out, _) in shapes.items()}
        sizes |= {f"{name}.vera_lambda_d": (config.rank,) for name in shapes}
        vectors = sum(math.prod(shape) for shape in sizes.values())
        saved = {path: module for path, module in self.model.named_modules() if matches(path, config.modules_to_save)}
        for path, module in saved.items():
            sizes |= {f"{path}.{name}": tuple(value.shape) for name, value in module.named_parameters()}
        width = sum(math.prod(shape) for shape in sizes.values())
        capacity = None if self.memory_bytes is None else self.memory_bytes // (width * self.dtype.itemsize)
        if capacity == 0:
            raise AdapterError(f"{self.memory_bytes:,} bytes do not hold one adapter of {width * self.dtype.itemsize:,}")
        device = next(iter(targets.values())).weight.device
        self.config, self._shapes, self._width, self._vectors = config, sizes, width, vectors
        self._capacity = 2**62 if capacity is None else capacity
        self._keys = list(sizes)
        self._table = torch.empty(0, width, dtype=self.dtype, device=device)
        projections: dict[tuple, Projection] = {}
        for path, key in projection_keys(config, shapes).items():
            weight = targets[path].weight
            if key not in projections:
                dtype = weight.dtype if weight.is_floating_point() else torch.float32
                projections[key] = Projection(*key, device=weight.device, dtype=dtype)
            replace_module(self.model, path, _Layer(self, path, targets[path], projections[key]))
        for path, module in saved.items():
            replace_module(self.model, path, _Saved(self, path, module))

    def _slot(self, name: str) -> int:
        """A place in the table for a name: a free one, a new one, or that of the adapter used longest ago."""
        if not self._free:
            there = len(self._table)
            if there < self._capacity:
                grown = torch.empty(
                    min(self._capacity, max(8, 2 * there)), self._width, dtype=self.dtype, device=self._table.device
                )
                grown[:there] = self._table
                self._table = grown
                self._free.extend(reversed(range(there, len(grown))))
            else:
                oldest = next(iter(self._slots))
                if oldest not in self._spilled:
                    self._write(oldest)
                self._free.append(self._slots.pop(oldest))
        self._slots[name] = self._free.pop()
        return self._slots[name]

    def _write(self, name: str) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="adapters-")  # noqa: SIM115 it lives as long as the bank
        self._file.seek(self._file_rows * self.adapter_bytes)
        self._file.write(self._table[self._slots[name]].cpu().view(torch.uint8).numpy().data)
        self._spilled[name] = self._file_rows
        self._file_rows += 1

    def _fetch(self, name: str) -> None:
        """Bring an adapter back from the file. Its row of the file stays, so that it need not be written again."""
        row = torch.empty(self._width, dtype=self.dtype)
        self._file.seek(self._spilled[name] * self.adapter_bytes)
        if self._file.readinto(row.view(torch.uint8).numpy().data) != self.adapter_bytes:
            raise AdapterError(f"the temporary file with adapter {name!r} was truncated")
        slot = self._slot(name)
        self._table[slot] = row

    def _known(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self]
        if unknown:
            some = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            raise AdapterError(f"no adapter in the bank is called {some}; it holds {len(self)}")

    def _need_kind(self) -> None:
        if self.config is None:
            raise AdapterError("the bank is empty")

    def _not_in_use(self) -> None:
        if self._batch is not None:
            raise AdapterError("the bank is in use by a batch; leave `with bank.use(...)` first")

    def _same_kind(self, config: VeraConfig, folder: str | os.PathLike) -> None:
        for key in ("rank", "projection_seed", "init", "sharing", "targets", "modules_to_save"):
            here, there = getattr(self.config, key), getattr(config, key)
            if here != there:
                raise AdapterError(f"{Path(folder) / CONFIG_FILE} has {key}={there!r}, the adapters of this bank have {here!r}")


class _Batch:
    """The adapters of one batch: b and d gathered once, and which rows belong to which adapter."""

    def __init__(self, bank: AdapterBank, rows: list[str | None]):
        device = bank._table.device
        slots = torch.tensor([bank._slots.get(name, 0) for name in rows], device=device)
        self.rows = len(rows)
        gathered = bank._table[:, : bank._vectors].index_select(0, slots)
        bare = torch.tensor([name is None for name in rows], device=device)
        gathered[bare] = 0
        names = bank._keys[: len([key for key in bank._keys if ".vera_lambda_" in key])]
        self.vectors = dict(zip(names, gathered.split([bank._shapes[key][0] for key in names], 1), strict=True))
        self.members: dict[str | None, Tensor] = {}
        for name in dict.fromkeys(rows):
            self.members[name] = torch.tensor([i for i, other in enumerate(rows) if other == name], device=device)
        self.bank = bank
        self._image: tuple[Tensor, Projection, Tensor] | None = None

    def check(self, x: Tensor) -> None:
        if x.shape[0] != self.rows:
            raise AdapterError(f"a batch of {x.shape[0]} rows, but {self.rows} adapter names")

    def vector(self, key: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows' own b or d, [rows, 1, ..., size], to be multiplied with something of the dimensions of x."""
        value = self.vectors[key].to(dtype)
        return value.view(self.rows, *[1] * (x.dim() - 2), -1)

    def image(self, x: Tensor, projection: Projection) -> Tensor:
        """A x; query, key and value read the same x, which is then multiplied once."""
        if self._image is None or self._image[0] is not x or self._image[1] is not projection:
            self._image = (x, projection, F.linear(x, projection.A[:, : x.shape[-1]]))
        return self._image[2]

    def parameters(self, name: str, path: str, module: nn.Module) -> dict[str, Tensor]:
        """An adapter's own parameters of a module that travels with it."""
        row, found, start = self.bank._table[self.bank._slots[name]], {}, 0
        for key, shape in self.bank._shapes.items():
            size = math.prod(shape)
            if key.startswith(f"{path}."):
                own = key[len(path) + 1 :]
                found[own] = row[start : start + size].view(shape).to(module.get_parameter(own).dtype)
            start += size
        return found


class _Wrapper(nn.Module):
    def __init__(self, bank: AdapterBank, path: str, base_layer: nn.Module):
        super().__init__()
        self.base_layer, self.path = base_layer, path
        self.__dict__["bank"] = bank  # the bank holds the model: no submodule
        self.train(base_layer.training)


class _Layer(_Wrapper):
    """A frozen linear map [rows, ..., d_in] -> [rows, ..., d_out], adapted row by row."""

    def __init__(self, bank: AdapterBank, path: str, base_layer: nn.Module, projection: Projection):
        super().__init__(bank, path, base_layer)
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.projection = projection

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        h = self.base_layer(x)
        batch = self.bank._batch
        if batch is None:
            return h
        batch.check(x)
        u = batch.image(x, self.projection)
        d = batch.vector(f"{self.path}.vera_lambda_d", x, u.dtype)
        y = F.linear(u * d, self.projection.B[: self.out_features])
        return h.addcmul_(y.to(h.dtype), batch.vector(f"{self.path}.vera_lambda_b", x, h.dtype))


class _Saved(_Wrapper):
    """A module that every adapter has its own copy of, such as a head: [rows, ...] -> [rows, ...]."""

    def forward(self, x: Tensor, *rest, **named) -> Tensor:
        batch = self.bank._batch
        if batch is None:
            return self.base_layer(x, *rest, **named)
        batch.check(x)
        out = None
        for name, rows in batch.members.items():
            parameters = {} if name is None else batch.parameters(name, self.path, self.base_layer)
            part = functional_call(self.base_layer, parameters, (x[rows], *rest), named)
            if out is None:
                out = part.new_empty(x.shape[0], *part.shape[1:])
            out[rows] = part
        return out
