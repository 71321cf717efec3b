"""The state of an unfinished run in one safetensors file: tensors as such, all else as JSON in its header. No pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from vera.errors import TrainingError
from vera.files import write_atomic
from vera.json_text import read_json

FILE = "state.safetensors"
KEPT = ("trained", "method")  # tensors of the method, in groups that come back as they were given


class _Scores(TypedDict):
    epoch: int
    step: int
    train_loss: float
    metrics: dict[str, float | None]


class _Progress(TypedDict):
    """What the loop reads of `progress` when it goes on; it may hold more."""

    step: int
    loss_sum: float
    history: list[_Scores]
    final: dict[Literal["metrics", "files", "notes"], dict[str, Any]]
    spent: dict[str, float | None]


_PROGRESS = TypeAdapter(_Progress)


def save(
    folder: Path,
    progress: dict[str, Any],
    kept: dict[str, dict[str, Tensor]],
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write progress (JSON values), the groups of KEPT, optimiser moments and every random generator's state, atomically."""
    tensors = {f"{group}/{name}": tensor for group in KEPT for name, tensor in kept[group].items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).detach().to("cpu").contiguous()
    tensors["rng/torch"] = torch.get_rng_state()
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        tensors[f"rng/cuda{index}"] = torch.cuda.get_rng_state(index)
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors["rng/numpy"] = torch.from_numpy(keys.astype(np.int64))
    header = {"progress": progress, "numpy": [kind, position, has_gauss, gauss], "python": random.getstate()}
    write_atomic(folder / FILE, safetensors_bytes(tensors, {"state": json.dumps(header)}))


def load(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """Restore the optimiser and the generators; return progress and the groups of KEPT, or None when there is no state.

    Raises TrainingError for a file that is not such a state.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = read_json(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _PROGRESS.validate_python(header["progress"])
        return _restore(header, tensors, parameters, optimizer)
    except ValidationError as error:
        problem = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError, OverflowError) as error:
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    raise TrainingError(f"{path} is not the state of this run ({problem}); delete it to start the run again")


def _restore(
    header: dict[str, Any], tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, field, name = key.split("/", 2)
            parameter = parameters[name]
            if value.shape not in ((), parameter.shape):
                raise ValueError(f"{key} has shape {list(value.shape)}")
            optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"rng/cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng/cuda{index}"], index)
    torch.set_rng_state(tensors["rng/torch"])
    kind, position, has_gauss, gauss = header["numpy"]
    np.random.set_state((kind, tensors["rng/numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = header["python"]
    random.setstate((version, tuple(internal), gauss_next))
    named = [(*key.split("/", 1), tensor) for key, tensor in tensors.items()]
    return header["progress"], {kept: {name: tensor for group, name, tensor in named if group == kept} for kept in KEPT}
