"""What a bank puts into a model: layers and heads that compute each row of a batch with that row's own adapter."""

from __future__ import annotations

import math
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from . import heads, saving
from .base_layer import called, nested, shape_of, taken
from .errors import AdapterError
from .functional import autocast_dtype, projected, without_autocast
from .names import plain_path, unwrapped
from .projection import Projection
from .rows import RowWise

if TYPE_CHECKING:
    from .bank import AdapterBank

# transformers' families that compute some layers on [time, rows, ...], like [rows, time, ...] where both are of one size
_ROWS_SECOND = {"bridgetower", "fsmt", "led", "longformer", "mask2former", "oneformer", "xlnet"}

_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # of torch 2.7 and later

# The batches of this thread, or of this asyncio task, by the id of their bank.
batches: ContextVar[dict[int, Batch]] = ContextVar("batches", default={})  # noqa: B039 never changed in place


class Batch:
    """The adapters of one batch: b and d of each name gathered once, and which rows belong to which adapter."""

    def __init__(
        self,
        names: list[str | None],
        copies: int,
        adapters: dict[str, Tensor],
        whole: dict[str, dict[str, Tensor]],
        sizes: dict[str, int],
        bare: Tensor,
    ):
        """adapters: row of the table of each name. whole: its buffers of whole numbers. sizes: of each b and d, with which a
        row begins. bare: what the rows without an adapter have in their place, [sum of sizes]."""
        self.names, self.copies, self.adapters, self.whole = names, copies, adapters, whole
        order = {name: number for number, name in enumerate([*adapters, None])}
        table = torch.stack([*(row[: len(bare)] for row in adapters.values()), bare])
        index = torch.tensor([order[name] for name in names for _ in range(copies)], dtype=torch.int64, device=bare.device)
        gathered = table.index_select(0, index).split(list(sizes.values()), 1)
        self.vectors = dict(zip(sizes, gathered, strict=True))
        self.product: Tensor | None = None  # keeps the latest A x for the layers that read the same x

    def check(self, layer: Wrapper, rows: int) -> int:
        """Copies of each name in a call with this many rows. Raises AdapterError for a call that the batch cannot serve."""
        if layer.training:
            raise AdapterError("a model in training mode (dropout, batch statistics) in a bank; call model.eval() first")
        if torch.is_grad_enabled():
            raise AdapterError("a bank computes no gradients; call the model under torch.no_grad()")
        for copies in (self.copies, 1):
            if rows == len(self.names) * copies:
                return copies
        raise AdapterError(f"a batch of {rows} rows, but {len(self.names) * self.copies} adapter names")

    def vector(self, key: str, x: Tensor, dtype: torch.dtype, copies: int) -> Tensor:
        """The rows' own b or d, [rows, 1, ..., size], to be multiplied with something of the dimensions of x."""
        value = self.vectors[key][:: self.copies // copies].to(x.device, dtype)
        return value.view(len(value), *[1] * (x.dim() - 2), -1)

    def members(self, copies: int, device: torch.device) -> dict[str | None, Tensor]:
        """The rows of each adapter."""
        rows = [name for name in self.names for _ in range(copies)]
        found: dict[str | None, list[int]] = {}
        for number, name in enumerate(rows):
            found.setdefault(name, []).append(number)
        return {name: torch.tensor(numbers, device=device) for name, numbers in found.items()}


class Wrapper(nn.Module):
    def __init__(self, bank: AdapterBank, path: str, base_layer: nn.Module):
        super().__init__()
        self.base_layer, self.path = base_layer, path
        self.__dict__[saving.BANK] = bank  # the bank holds the model: no submodule

    def forward(self, *args, **kwargs):
        if torch.jit.is_tracing() or _exporting():
            raise AdapterError("a trace of a model in an AdapterBank would keep the batch that it sees; trace the bare model")
        if torch.compiler.is_compiling():  # a compiler must not remember the batch that it sees
            return torch.compiler.disable(self.call)(*args, **kwargs)
        return self.call(*args, **kwargs)

    @property
    def batch(self) -> Batch | None:
        return batches.get().get(id(self.vera_bank))


class Layer(Wrapper):
    """A frozen linear map [rows, ..., d_in] -> [rows, ..., d_out], adapted row by row."""

    def __init__(self, bank: AdapterBank, path: str, base_layer: nn.Module, projection: Projection):
        super().__init__(bank, path, base_layer)
        self.out_features, self.in_features = shape_of(base_layer)
        self.projection = projection

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def call(self, *args, **kwargs) -> Tensor:
        batch = self.batch
        if batch is None:
            return self.base_layer(*args, **kwargs)
        x, args, kwargs = taken(self.base_layer, args, kwargs)
        if nested(x):
            h = self.call(torch.nested.to_padded_tensor(x, 0.0), *args, **kwargs)
            return torch.nested.as_nested_tensor([row[: len(part)] for row, part in zip(h, x.unbind(), strict=True)])
        if x.dim() < 2:
            raise AdapterError(f"{self.path} is called with one row alone: a bank needs [rows, ..., {self.in_features}]")
        copies = batch.check(self, len(x))
        h = called(self.base_layer, x, args, kwargs)
        dtype = autocast_dtype(x) or x.dtype
        dtype = torch.float32 if dtype == torch.float16 else dtype  # as VeraLinear: fp16's range is too small for a sum over x
        with without_autocast(x):
            A, B = self.projection.sliced(self.in_features, self.out_features)
            batch.product = projected(x.to(dtype), A, x, self)
            u = batch.product.view(*x.shape[:-1], -1)
            y = F.linear(u * batch.vector(f"{self.path}.vera_lambda_d", x, dtype, copies), B.to(dtype))
            b = batch.vector(f"{self.path}.vera_lambda_b", x, dtype, copies)
            if h.dtype != dtype:
                return y.mul_(b).to(h.dtype).add_(h)
            return torch.addcmul(h, y, b, out=y)  # h may be kept by a hook


class Saved(Wrapper):
    """A module that every adapter has its own copy of, such as a head."""

    def __init__(self, bank: AdapterBank, path: str, base_layer: nn.Module, places: dict[str, tuple[int, tuple[int, ...]]]):
        super().__init__(bank, path, base_layer)
        self.places = places  # of its tensors in a row of the table: start and shape
        self.__dict__["row_wise"] = RowWise(base_layer, path)
        self.__dict__["lock"] = threading.RLock()  # an adapter's tensors stand in the one module while it computes for them

    def call(self, *args, **named):
        with self.lock:
            batch = self.batch
            return self.base_layer(*args, **named) if batch is None else self._by_rows(batch, args, named)

    def _by_rows(self, batch: Batch, args: tuple, named: dict):
        found = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor) and leaf.dim()]
        if not found:
            raise AdapterError(f"{self.path} is called without a tensor: its rows are not known")
        sizes = [len(tensor) for tensor in found]
        rows = next((rows for rows in (len(batch.names) * batch.copies, len(batch.names)) if rows in sizes), sizes[0])
        members = batch.members(batch.check(self, rows), found[0].device)
        own = heads.tensors(self.base_layer)
        parts = [({} if name is None else self._tensors(batch, name, own), index) for name, index in members.items()]
        return self.row_wise(parts, rows, args, named)

    def _tensors(self, batch: Batch, name: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's tensors of this module, each on the device and in the dtype of the module's own."""
        made = {}
        for key, like in own.items():
            if key in self.places:
                start, shape = self.places[key]
                value = batch.adapters[name][start : start + math.prod(shape)].view(shape)
            else:
                value = batch.whole[name][f"{self.path}.{key}"]
            # A parameter is only read; a buffer may be written to, which must not reach the table.
            made[key] = value.to(like.device, like.dtype, copy=not isinstance(like, nn.Parameter))
        return made

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            with self.lock:
                value = getattr(super().__getattr__("base_layer"), name)
        return self._outside(value, f".{name}") if isinstance(value, (Tensor, nn.Module)) else value

    def _outside(self, value, what: str):
        if self.batch is not None:
            raise AdapterError(
                f"{self.path}{what} is read by itself: in a bank {self.path} must be called, once for each adapter"
            )
        return value

    def __getitem__(self, key):
        return self._outside(self.base_layer[key], f"[{key!r}]")

    def __iter__(self):
        return iter(self._outside(self.base_layer, "'s modules"))

    def __len__(self) -> int:
        return len(self.base_layer)

    def __bool__(self) -> bool:
        return True


def check_rows_first(model: nn.Module) -> None:
    """Raises AdapterError for a model that holds one of _ROWS_SECOND, or a class derived from it."""
    for kind in (kind for module in model.modules() for kind in type(module).__mro__):
        family = kind.__module__.split(".")[2:3] if kind.__module__.startswith("transformers.models.") else []
        if _ROWS_SECOND.intersection(family):
            raise AdapterError(
                f"{family[0]} ({kind.__name__}) has the rows of a batch in the second dimension of some layers, so a bank may "
                "take others for them; use one adapter at a time"
            )


def check_rows(model: nn.Module, path: str) -> None:
    """Raises AdapterError for a layer in a part of the model that reads images or sound, where the model itself reads texts:
    one row of a batch may have several of them, or none. And for one among experts, by the names of the modules above it."""
    whole = getattr(model, "main_input_name", None)
    for end in [index for index, letter in enumerate(path) if letter == "."]:
        part = model.get_submodule(path[:end])
        called = f"{path[:end].rpartition('.')[2]} {type(unwrapped(part)).__name__}".lower()
        if "expert" in called and "shared" not in called:
            raise AdapterError(
                f"{path} lies in {path[:end]}, where experts read the tokens that a router sends them, not the batch's rows; "
                "use one adapter at a time"
            )
        reads = getattr(part, "main_input_name", "input_ids")
        if reads not in (whole, "input_ids"):
            raise AdapterError(
                f"{path} lies in {type(part).__name__}, which reads {reads}: its rows need not be the batch's; adapt the "
                "language model alone, or use one adapter at a time"
            )


def check_head(path: str, module: nn.Module) -> None:
    """Raises AdapterError for a module that cannot be called with the tensors of each adapter in turn."""
    if any(plain_path(f"head.{name}") != f"head.{name}" for name, _ in module.named_modules()):
        raise AdapterError(f"{path} in modules_to_save is compiled or wrapped in part: a bank cannot exchange its tensors")
    if type(module).forward is nn.Module.forward:
        raise AdapterError(
            f"{path} in modules_to_save is a {type(module).__name__}, which is not called: a bank cannot switch it"
        )
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        if isinstance(part, nn.RNNBase):  # torch exchanges its list of weights itself
            continue
        for name, value in vars(part).items():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            if name not in ("_parameters", "_buffers") and any(id(item) in own for item in held):
                raise AdapterError(f"{path} in modules_to_save keeps a parameter in {name}, where a bank cannot exchange it")
