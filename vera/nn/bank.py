"""Many adapters on one frozen backbone, and batches in which every row uses its own (paper, section 3.3: A and B are shared).

    bank = AdapterBank(model)
    failed = bank.load("adapters")                  # adapters/<name>/ as save_adapter or PEFT wrote them
    with bank.use(["rte", "cola", None, "rte"]):    # one name a row of the batch; None: the bare backbone
        model(**batch)                              # or model.generate(**batch)

A row of the batch gets h = W0 x + b_i * (B (d_i * (A x))) with its own b_i and d_i; A and B exist once. Modules that travel
with an adapter, such as a classification head, run once for each adapter of the batch.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import heads, saving
from .banked import Batch, Layer, Saved, Wrapper, batches, check_head, check_rows, check_rows_first
from .base_layer import device_of, dtype_of
from .checkpoint import CONFIG_FILE, WEIGHTS_FILE, Reader
from .config import VeraConfig
from .errors import AdapterError
from .inject import projection_keys, replace_module, seen, target_shapes, vera_layers
from .names import plain_path, unwrapped
from .projection import Projection

_BLOCK = 2**26  # bytes of the table that are allocated at once, at least one adapter's


class _Mode(threading.local):
    """Gradients in this thread: how many batches want none, and whether they were on before the first of them."""

    depth = 0
    before = True


_mode = _Mode()


@contextmanager
def _without_gradients() -> Iterator[None]:
    """torch.no_grad for batches of asyncio tasks, which need not end in the order in which they began."""
    if _mode.depth == 0:
        _mode.before = torch.is_grad_enabled()
    _mode.depth += 1
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        _mode.depth -= 1
        torch.set_grad_enabled(_mode.before and _mode.depth == 0)


class AdapterBank:
    """Adapters of one kind (rank, seed of A and B, layers, modules_to_save) on `model`, by name. For inference.

    The first adapter decides the kind; the model's layers are then wrapped in place and the model is put in evaluation mode.
    Each adapter is one row of a table: b and d of every layer, then its modules_to_save with their buffers. A bank may be used
    by several threads at once: a batch belongs to the thread (or asyncio task) that entered `use`, and keeps the values that
    its adapters had then. A model in a bank cannot be copied or pickled.

    memory_bytes  limit of the table; beyond it the adapters used longest ago wait in a temporary file. None: no limit.
    dtype         in which values are kept; torch.bfloat16 halves memory and file. b and d keep 8 bits of precision then.

    Raises AdapterError for a model that already carries adapters or has rows in its second dimension (XLNet ...), or a limit
    that does not hold one adapter.
    """

    def __init__(self, model: nn.Module, memory_bytes: int | None = None, dtype: torch.dtype = torch.float32):
        self.model, self.memory_bytes, self.dtype = model, memory_bytes, dtype
        self._lock = threading.RLock()
        self._need_bare()
        check_rows_first(model)
        self._reader = Reader(model)
        self._reset()

    def _reset(self) -> None:
        self.config: VeraConfig | None = None
        self._trained: list[nn.Module] = []  # modules that were in training mode
        self._slots: OrderedDict[str, int] = OrderedDict()  # in memory, the one used longest ago first
        self._spilled: dict[str, int] = {}  # name -> row of the file
        self._whole: dict[str, dict[str, Tensor]] = {}  # name -> buffers of whole numbers, kept as they are
        self._blocks: list[Tensor] = []  # the table
        self._free: list[int] = []  # its slots that hold nothing
        self._pins: Counter[int] = Counter()  # slots that a batch reads, which keep their values
        self._left: set[int] = set()  # those of them that are free as soon as no batch reads them
        self._in_use = 0  # batches
        self._file: Any = None
        self._file_rows = 0
        self._file_free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots.keys() | self._spilled.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._slots or name in self._spilled

    def __reduce_ex__(self, protocol) -> NoReturn:
        raise AdapterError("a model in a bank cannot be copied or pickled; close the bank first, or copy before")

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

        PEFT writes an adapter called default into the folder itself; it is added by that name. Returns what could not be
        added: name -> reason, which names the file. Those that can are added all the same. Raises AdapterError when the folder
        holds no adapter, or two called default.
        """
        folder = Path(folder)
        found = {path.parent.name: path.parent for file in (CONFIG_FILE, WEIGHTS_FILE) for path in folder.glob(f"*/{file}")}
        if (folder / CONFIG_FILE).exists() or (folder / WEIGHTS_FILE).exists():
            if "default" in found:
                raise AdapterError(f"both {folder} and {found['default']} hold an adapter called default")
            found["default"] = folder
        if not found:
            raise AdapterError(f"{folder} holds no folder with {CONFIG_FILE}")
        failed = {}
        for name, path in sorted(found.items()):
            try:
                self.add(name, path)
            except AdapterError as error:
                failed[name] = str(error)
        return failed

    def add(self, name: str, folder: str | os.PathLike) -> None:
        """Add the adapter that `save_adapter` or PEFT wrote to `folder`; one of that name is replaced.

        Raises AdapterError, with the bank as it was, when the file is broken or the adapter is of another kind or backbone.
        """
        self._not_in_use()
        if not isinstance(name, str):
            raise AdapterError(f"an adapter's name must be a string, got {name!r}")
        config, values = self._reader.read(folder)
        whole = {key: values.pop(key) for key in list(values) if not values[key].is_floating_point()}
        for key, value in values.items():
            narrower = torch.finfo(self.dtype).max < torch.finfo(value.dtype).max
            if narrower and not torch.isfinite(value.to(self.dtype)).all():
                raise AdapterError(f"{folder}: {key} holds a value that is too large for {self.dtype}")
        with self._lock:
            if self.config is None:
                self._install(config, folder)
            else:
                self._same_kind(config, values, folder)
            slot = self._place()
            self._row(slot).copy_(torch.cat([values[key].flatten().to(self.dtype) for key in self._sizes]))
            self._forget(name)
            self._slots[name] = slot
            if whole:
                self._whole[name] = whole

    def evict(self, name: str) -> None:
        """Forget an adapter. Raises AdapterError for an unknown name."""
        self._not_in_use()
        with self._lock:
            self._known([name])
            self._forget(name)

    @contextmanager
    def use(self, names: Sequence[str | None], copies: int = 1) -> Iterator[None]:
        """Inside: row i of every batch uses adapter names[i], without gradients. Copies: beams or samples of each row.

        A row that pads the batch has a name too, or None. With copies, what has one row a name (an encoder's input, say) may
        still be called. Holds for the calls of this thread; one that is started inside enters `use` itself.

        Raises AdapterError for an unknown name, for more different adapters than the memory limit holds, and, when the model
        is called, for a batch with another number of rows, in training mode or with gradients.
        """
        self._not_in_use()
        if isinstance(names, str):
            raise AdapterError(f"a batch needs a sequence of adapter names, not the string {names!r}")
        if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
            raise AdapterError(f"copies must be a whole number of at least 1, got {copies!r}")
        names = list(names)
        odd = [name for name in names if name is not None and not isinstance(name, str)]
        if odd:
            raise AdapterError(f"an adapter's name must be a string, or None for the bare backbone, got {odd[0]!r}")
        with self._lock:
            slots = self._pin(list(dict.fromkeys(name for name in names if name is not None)))
            try:
                batch = self._batch(names, copies, slots)
            except BaseException:
                self._unpin(slots)
                raise
        batches.set({**batches.get(), id(self): batch})
        try:
            with _without_gradients():
                yield
        finally:
            batches.set({key: value for key, value in batches.get().items() if value is not batch})
            with self._lock:
                self._unpin(slots)

    def _batch(self, names: list[str | None], copies: int, slots: dict[str, int]) -> Batch:
        rows = {name: self._row(slot) for name, slot in slots.items()}
        whole = {name: self._whole.get(name, {}) for name in slots}
        bare = torch.zeros(sum(self._vectors.values()), dtype=self.dtype, device=self._device)
        return Batch(names, copies, rows, whole, self._vectors, bare)

    def close(self) -> None:
        """Give the model its own layers and modes back and forget all adapters. Raises AdapterError while a batch uses them."""
        self._not_in_use()
        with self._lock:
            if self._in_use:
                raise AdapterError("the bank is in use by a batch of another thread")
            for path, module in list(self.model.named_modules(remove_duplicate=False)):
                if isinstance(module, Wrapper) and module.vera_bank is self:
                    replace_module(self.model, path, module.base_layer)
            saving.remove(self.model)
            for module in self._trained:
                module.training = True
            if self._file is not None:
                self._file.close()
            self._reset()

    def _install(self, config: VeraConfig, folder: str | os.PathLike) -> None:
        """Lay out the table for the first adapter's kind and wrap the model's layers."""
        self._need_bare()
        targets = self._reader.targets(Path(folder) / CONFIG_FILE, config)
        modules = unwrapped(self.model).named_modules(remove_duplicate=False)
        saved = heads.find(((plain_path(path), module) for path, module in modules), config.modules_to_save)
        for path in (*targets, *saved):
            check_rows(unwrapped(self.model), path)
        for path, module in saved.items():
            check_head(path, module)
            heads.check_offload(path, module)
        for path, module in targets.items():
            if device_of(module).type == "meta":
                raise AdapterError(f"{path} has no values yet (meta device): a bank needs them")
            beside = [other for parent in self._above(module) for other in parent.children()]
            if any(isinstance(other, nn.MultiheadAttention) and not other.batch_first for other in beside):
                raise AdapterError(f"{path} has the rows of a batch in its second dimension; a bank needs batch_first=True")
        shapes = target_shapes(targets)
        sizes = {f"{name}.vera_lambda_b": (d_out,) for name, (d_out, _) in shapes.items()}
        sizes |= {f"{name}.vera_lambda_d": (config.rank,) for name in shapes}
        vectors = {key: size for key, (size,) in sizes.items()}
        for path, module in saved.items():
            state = heads.tensors(module)
            sizes |= {f"{path}.{key}": tuple(value.shape) for key, value in state.items() if value.is_floating_point()}
        width = sum(math.prod(shape) for shape in sizes.values())
        capacity = 2**62 if self.memory_bytes is None else self.memory_bytes // (width * self.dtype.itemsize)
        if capacity == 0:
            raise AdapterError(f"{self.memory_bytes:,} bytes do not hold one adapter of {width * self.dtype.itemsize:,}")
        projections: dict[tuple, Projection] = {}
        wrappers: dict[str, Wrapper] = {}
        for path, key in projection_keys(config, shapes).items():
            module = targets[path]
            place = (*key, device_of(module), dtype_of(module))
            if place not in projections:
                projections[place] = Projection(*key, device=device_of(module), dtype=dtype_of(module))
            wrappers[path] = Layer(self, path, module, projections[place])
            if any(isinstance(parent, nn.TransformerEncoderLayer) for parent in self._above(module)):
                wrappers[path].register_forward_pre_hook(seen)  # as `attach` does
        starts = dict(zip(sizes, accumulate(map(math.prod, sizes.values()), initial=0), strict=False))
        for path, module in saved.items():
            own = [key for key in sizes if key.startswith(f"{path}.") and key not in vectors]
            places = {key.removeprefix(f"{path}."): (starts[key], sizes[key]) for key in own}
            wrappers[path] = Saved(self, path, module, places)
        self.config, self._width, self._capacity, self._sizes, self._vectors = config, width, capacity, sizes, vectors
        self._device = device_of(next(iter(targets.values())))
        self._trained = [module for module in self.model.modules() if module.training]
        for path, wrapper in wrappers.items():
            if isinstance(wrapper, Layer):  # adapted there alone, as by `attach`; a head is exchanged under all its names
                replace_module(unwrapped(self.model), path, wrapper)
                continue
            for parent in self._above(wrapper.base_layer):
                for attribute, child in parent._modules.items():
                    if child is wrapper.base_layer:
                        parent._modules[attribute] = wrapper
        self.model.eval()
        saving.install(self.model)

    def _above(self, module: nn.Module) -> list[nn.Module]:
        """The modules of which this one is a part."""
        return [parent for parent in self.model.modules() if any(child is module for child in parent._modules.values())]

    def _row(self, slot: int) -> Tensor:
        rows = len(self._blocks[0])
        return self._blocks[slot // rows][slot % rows]

    def _place(self) -> int:
        """A slot of the table: a free one, one of a new block, or that of the adapter used longest ago that no batch reads."""
        there = sum(map(len, self._blocks))
        if not self._free and there < self._capacity:
            rows = min(self._capacity, max(1, _BLOCK // self.adapter_bytes))
            with torch.inference_mode(False):  # to be written in later
                block = torch.empty(min(rows, self._capacity - there), self._width, dtype=self.dtype, device=self._device)
            self._blocks.append(block)
            self._free.extend(reversed(range(there, there + len(block))))
        if not self._free:
            oldest = next((name for name, slot in self._slots.items() if slot not in self._pins), None)
            if oldest is None:
                raise AdapterError(f"{self.memory_bytes:,} bytes hold {self._capacity} adapters, and batches use all of them")
            if oldest not in self._spilled:
                self._write(oldest)
            self._free.append(self._slots.pop(oldest))
        return self._free.pop()

    def _write(self, name: str) -> None:
        row = self._file_free[-1] if self._file_free else self._file_rows
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="adapters-")  # noqa: SIM115 it lives as long as the bank
            self._file.seek(row * self.adapter_bytes)
            self._file.write(self._row(self._slots[name]).cpu().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise AdapterError(f"adapter {name!r} cannot wait in a file in {tempfile.gettempdir()}: {error}") from None
        if self._file_free:
            self._file_free.pop()
        else:
            self._file_rows += 1
        self._spilled[name] = row

    def _fetch(self, name: str) -> None:
        """Bring an adapter back from the file. Its row of the file stays, so that it need not be written again."""
        row = torch.empty(self._width, dtype=self.dtype)
        self._file.seek(self._spilled[name] * self.adapter_bytes)
        if self._file.readinto(row.view(torch.uint8).numpy().data) != self.adapter_bytes:
            raise AdapterError(f"the temporary file with adapter {name!r} was truncated")
        slot = self._place()
        self._row(slot).copy_(row)
        self._slots[name] = slot

    def _forget(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is not None:
            (self._left.add if slot in self._pins else self._free.append)(slot)
        row = self._spilled.pop(name, None)
        if row is not None:
            self._file_free.append(row)
        self._whole.pop(name, None)

    def _pin(self, wanted: list[str]) -> dict[str, int]:
        """Bring adapters into memory, where they stay until `_unpin`. Returns their slots."""
        self._need_kind()
        self._known(wanted)
        if len(wanted) > self._capacity:
            raise AdapterError(
                f"a batch with {len(wanted)} different adapters, but {self.memory_bytes:,} bytes hold {self._capacity}"
            )
        slots: dict[str, int] = {}
        self._in_use += 1
        try:
            for name in sorted(wanted, key=lambda name: name not in self._slots):  # none of them makes room for another
                if name not in self._slots:
                    self._fetch(name)
                self._slots.move_to_end(name)
                slots[name] = self._slots[name]
                self._pins[slots[name]] += 1
        except BaseException:
            self._unpin(slots)
            raise
        return slots

    def _unpin(self, slots: dict[str, int]) -> None:
        self._in_use -= 1
        for slot in slots.values():
            self._pins[slot] -= 1
            if not self._pins[slot]:
                del self._pins[slot]
                if slot in self._left:
                    self._left.remove(slot)
                    self._free.append(slot)

    def _known(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self]
        if unknown:
            some = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            raise AdapterError(f"no adapter in the bank is called {some}; it holds {len(self)}")

    def _need_bare(self) -> None:
        if any(vera_layers(self.model)) or any(isinstance(module, Wrapper) for module in self.model.modules()):
            raise AdapterError("a bank needs a model without adapters")

    def _need_kind(self) -> None:
        if self.config is None:
            raise AdapterError("the bank is empty")

    def _not_in_use(self) -> None:
        if id(self) in batches.get():
            raise AdapterError("the bank is in use by a batch; leave `with bank.use(...)` first")

    def _same_kind(self, config: VeraConfig, values: dict[str, Tensor], folder: str | os.PathLike) -> None:
        keys = ["rank", "projection_seed", "projection_dtype", "init", "sharing"]
        if values.keys() != self._sizes.keys():
            keys += ["targets", "modules_to_save"]
        for key in keys:
            here, there = getattr(self.config, key), getattr(config, key)
            if here != there:
                raise AdapterError(f"{Path(folder) / CONFIG_FILE} has {key}={there!r}, the adapters of this bank have {here!r}")
