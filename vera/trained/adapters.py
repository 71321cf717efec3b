"""What saved adapters look like inside: size of the trained d, weight differences and their similarity (Figures 3 and 5)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from vera.errors import AdapterError
from vera.nn.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_weights
from vera.nn.functional import compose
from vera.nn.names import matches
from vera.nn.projection import draw, fingerprint

# Of PEFT's LoRA: what scales or changes an update, and the ways to begin that leave W0 as it is.
_NOT_PLAIN = (
    *(
        "use_rslora",
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "rank_pattern",
        "alpha_pattern",
        "kasa_config",
        "monteclora_config",
    ),
    *("velora_config", "arrow_config", "alora_invocation_tokens", "layer_replication"),
)
_LEAVE_W0 = (True, False, "gaussian", "orthogonal")


def trained_vectors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """b [d_out] and d [rank] of every adapted matrix, by its dotted name, of a saved VeRA adapter. Raises AdapterError."""
    tensors, *_ = _read(folder)
    names = [name.removesuffix(".vera_lambda_d") for name in tensors if name.endswith(".vera_lambda_d")]
    if not names:
        raise AdapterError(f"{folder} holds no VeRA adapter")
    return {name: (tensors[f"{name}.vera_lambda_b"], tensors[f"{name}.vera_lambda_d"]) for name in _in_order(names)}


def weight_differences(folder: Path) -> dict[str, Tensor]:
    """W - W0 [d_out, d_in] of every adapted matrix, by its dotted name, of a saved VeRA or LoRA adapter.

    Raises AdapterError for another kind of adapter, for a LoRA that is not W0 + alpha / r B A, for VeRA with unique or
    unequal matrices, and when the random matrices drawn here are not those of the training.
    """
    tensors, config, ours = _read(folder)
    if config.get("peft_type") == "LORA":
        other = [key for key in _NOT_PLAIN if config.get(key)]
        if config.get("init_lora_weights", True) not in _LEAVE_W0:
            other.append("init_lora_weights")
        if other:
            raise AdapterError(f"{folder}: W - W0 is not alpha / r B A with {other[0]}={config[other[0]]!r}")
        names = _in_order([name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")])
        scale = config["lora_alpha"] / config["r"]
        return {name: scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}
    if not str(config.get("peft_type")).startswith("VERA"):
        raise AdapterError(f"{folder} holds neither a VeRA nor a LoRA adapter (peft_type is {config.get('peft_type')!r})")
    if not {"shapes", "sharing", "init", "fingerprint"} <= ours.keys():
        raise AdapterError(f"{folder} was not written by this project: it lacks the fingerprint of the random matrices")
    shapes = {tuple(shape) for shape in ours["shapes"]}
    if ours["sharing"] != "shared" or len(shapes) != 1:
        raise AdapterError(f"{folder}: weight differences are formed for one shared pair of matrices of one shape alone")
    ((d_out, d_in),) = shapes
    A, B = draw(config["r"], d_in, d_out, config["projection_prng_key"], ours["init"], ours.get("projection_dtype", "float32"))
    if fingerprint(A, B) != ours["fingerprint"]:
        raise AdapterError(f"{folder}: the random matrices drawn here are not those of the training (another torch release?)")
    zero = torch.zeros(d_out, d_in)
    return {name: compose(zero, A, B, b, d) for name, (b, d) in trained_vectors(folder).items()}


def by_target(names: list[str], targets: dict[str, str | list[str]]) -> dict[str, list[str]]:
    """Dotted names under the logical names of a model's yaml (query, value ...), in the order of the layers."""
    found: dict[str, list[str]] = {}
    for target, candidates in targets.items():
        modules = [candidates] if isinstance(candidates, str) else candidates
        fitting = [name for name in names if matches(name, modules)]
        if fitting:
            found[target] = _in_order(fitting)
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two matrices of one shape, read as long vectors; in float64."""
    a, b = a.flatten().double(), b.flatten().double()
    return (a @ b / (a.norm() * b.norm())).item()


def random_matrix(shape: torch.Size, seed: int, layer: int) -> Tensor:
    """Independent standard normal entries, from seed and layer alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1_000_003 * (layer + 1) + seed))


def _in_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _read(folder: Path) -> tuple[dict[str, Tensor], dict, dict]:
    """The tensors of an adapter, its configuration, and our part of the metadata. Raises AdapterError."""
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        tensors, ours = read_weights(path.with_name(WEIGHTS_FILE))
    except FileNotFoundError:
        raise AdapterError(f"no adapter here: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder} holds no readable adapter: {error}") from None
    return tensors, config, ours
