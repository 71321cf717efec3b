"""The state of an unfinished run in one safetensors file: tensors as such, all else as JSON. No pickle."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict  # pydantic wants this one before Python 3.12

from vera.errors import TrainingError
from vera.io.files import os_error_as, read_json, write_atomic

FILE = "state.safetensors"
KEPT = ("trained", "chosen", "method")  # tensors of the method, in groups that come back as they were given


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Scores(TypedDict):
    epoch: int
    step: int
    train_loss: float
    metrics: dict[str, float | None]


class _Start(TypedDict, total=False):
    step: int
    started: str
    versions: dict[str, str]
    device: str
    precision: str


class _Progress(TypedDict):
    """What the loop reads of `progress` when it goes on; it may hold more."""

    step: int
    history: list[_Scores]
    final: dict[Literal["metrics", "files", "notes"], dict[str, Any]]
    spent: dict[str, float | None]
    weights: NotRequired[dict[Literal["best", "last"], Digest]]
    starts: NotRequired[list[_Start]]


_PROGRESS = TypeAdapter(_Progress)


def save(
    folder: Path,
    progress: dict[str, Any],
    kept: dict[str, dict[str, Tensor]],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    processes: list[dict[str, Tensor]],
) -> None:
    """Write progress (JSON values), the groups of KEPT, optimiser moments, and what each process has for itself, by rank,
    atomically. Raises TrainingError when the disk is full."""
    tensors = {f"{group}/{name}": tensor for group in KEPT for name, tensor in kept[group].items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).detach().to("cpu").contiguous()
    for rank, own in enumerate(processes):
        tensors |= {f"process/{rank}/{name}": tensor for name, tensor in own.items()}
    state = json.dumps({"progress": progress, "processes": len(processes)})
    with os_error_as(TrainingError, f"{folder / FILE} cannot be written"):
        write_atomic(folder / FILE, safetensors_bytes(tensors, {"state": state, "crc32": _crc32(state, tensors)}))


def load(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, rank: int = 0, count: int = 1
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], dict[str, Tensor]] | None:
    """Restore the optimiser and the random generators; return progress, the groups of KEPT and what process `rank` of `count`
    had for itself, or None when there is no state.

    Raises TrainingError for a file that is not such a state, and for the state of another number of processes.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            written = file.metadata()
            header = read_json(written["state"])
            found = header["processes"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if "crc32" in written and written["crc32"] != _crc32(written["state"], tensors):  # older ones have none
            raise ValueError("its bytes have changed since it was written")
        _PROGRESS.validate_python(header["progress"])
        if found == count:
            return _restore(header, tensors, parameters, optimizer, rank)
        if not isinstance(found, int):
            raise ValueError(f"processes is {found!r}")
    except ValidationError as error:
        problem = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError, OverflowError) as error:
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    else:
        raise TrainingError(
            f"{path} is the state of {found} process{'es' * (found > 1)}, and this is {count}; "
            f"go on with --num_processes {found}, or delete it to start the run again"
        )
    raise TrainingError(f"{path} is not the state of this run ({problem}); delete it to start the run again")


def _crc32(state: str, tensors: dict[str, Tensor]) -> str:
    """Of all that a state holds: a disk or a copy that changed a byte would otherwise change the run's numbers unseen."""
    total = zlib.crc32(state.encode())
    for key in sorted(tensors):
        total = zlib.crc32(tensors[key].cpu().reshape(-1).view(torch.uint8).numpy(), zlib.crc32(key.encode(), total))
    return f"{total:08x}"


def _restore(
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rank: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, field, name = key.split("/", 2)
            parameter = parameters[name]
            if value.shape not in ((), parameter.shape):
                raise ValueError(f"{key} has shape {list(value.shape)}")
            here = field != "step" or optimizer.defaults.get("fused")  # a fused optimiser counts on the device
            optimizer.state[parameter][field] = value.to(parameter.device) if here else value

    def group(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    own = group(f"process/{rank}/")
    if own["loss_sum"].shape != ():
        raise ValueError("loss_sum is not a number")
    restore_generators(own)
    return header["progress"], {kept: group(f"{kept}/") for kept in KEPT}, own


def generators() -> dict[str, Tensor]:
    """The state of every random generator of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    rest = json.dumps({"numpy": [kind, position, has_gauss, gauss], "python": random.getstate()})
    found = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    found["rest"] = torch.frombuffer(bytearray(rest.encode()), dtype=torch.uint8)
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()  # of the process's own GPU
    return found


def restore_generators(found: dict[str, Tensor]) -> None:
    """Put `generators` back."""
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
    torch.set_rng_state(found["torch"])
    rest = read_json(found["rest"].numpy().tobytes())
    kind, position, has_gauss, gauss = rest["numpy"]
    np.random.set_state((kind, found["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = rest["python"]
    random.setstate((version, tuple(internal), gauss_next))
