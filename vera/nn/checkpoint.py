"""Adapter files: b, d and the seed in PEFT's own format, without the projections.

A folder holds adapter_config.json and adapter_model.safetensors as PEFT writes them with save_projection=False, so either
library reads the other's. Our additions ride in the safetensors metadata: a fingerprint of A and B, the shapes of the adapted
matrices and the Frobenius norms of their W0, by which loading tells another backbone from the right one.

PEFT's format names every vector of every layer, which is 6% of a RoBERTa-base file at rank 256. The compact form holds all
vectors in one tensor, b then d of each layer in the model's own order; only this library reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from . import heads, norms
from .base_layer import transposed
from .config import PROJECTION_DTYPES, VeraConfig
from .errors import AdapterError
from .files import read_json, write_atomic
from .inject import (
    attach,
    check_no_bank,
    configs,
    find_targets,
    linear_layers,
    projection_keys,
    set_adapter,
    target_shapes,
    vera_layers,
)
from .linear import VeraLinear, variant
from .names import inside, matches, plain_path, unwrapped
from .projection import draw, fingerprint

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
COMPACT = "vera_lambda"  # the one tensor of a compact file
PREFIX = "base_model.model."  # of the names in PEFT's files
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NORM_TOLERANCE = 1e-3  # relative; a bf16 copy of a backbone stays within 1e-5, another checkpoint does not


def save_adapter(model: nn.Module, folder: str | os.PathLike, name: str | None = None, compact: bool = False) -> Path:
    """Write one adapter (default: the active one) and its modules_to_save. Returns the folder.

    Size: 4 (sum of d_out + r) bytes for each matrix plus a header; `compact` makes the header short and the files unreadable
    for PEFT, which then refuses them. Both files are written beside and then renamed. Of a model in parts over processes
    (fully_shard) all processes call it, each with a folder of its own. Raises AdapterError when the model has no such adapter.
    """
    model = unwrapped(model)
    _reshard(model)
    attached = configs(model)
    if name is None:
        name = next((layer.active for _, layer in vera_layers(model) if layer.active), None)
    if name not in attached:
        raise AdapterError(f"no adapter to save: {name!r} is not attached (attached: {', '.join(attached) or 'none'})")
    config = attached[name]
    if any(
        value.is_meta for _, layer in vera_layers(model) if name in layer.vectors for value in layer.vectors[name].parameters()
    ):
        raise AdapterError(f"adapter {name!r} has no values yet (meta device), so there is nothing to save")
    layers = {path: layer for path, layer in vera_layers(model) if name in layer.vectors}
    _refuse_variants(model, name)
    _warn_of_others(model)
    named = ((plain_path(path), module) for path, module in model.named_modules())
    if also := [] if compact else _also_saved(named, config.modules_to_save):
        warnings.warn(
            f"PEFT will ask this file for {', '.join(also)} as well, whose name ends in one of modules_to_save, and not read "
            "it without: give such names there, too",
            stacklevel=2,
        )
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors[f"{path}.vera_lambda_b"] = _gathered(layer.vectors[name].b)
        tensors[f"{path}.vera_lambda_d"] = _gathered(layer.vectors[name].d)
    if compact:
        tensors = {COMPACT: torch.cat([vector.detach().to("cpu") for vector in tensors.values()])}
    for path, module in heads.of(model, name).items():
        tensors |= {plain_path(f"{path}.{key}"): _gathered(value) for key, value in heads.tensors(module).items()}
    tensors = {PREFIX + key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    if config.projection_dtype != "float32" and not compact:  # PEFT would draw the pair in float32
        first = next(iter(layers.values())).projections[name]
        tensors |= dict(zip(("base_model.vera_A", "base_model.vera_B"), draw(*first.key), strict=True))
    pairs = {layer.projections[name].key: layer.projections[name].fingerprint for layer in layers.values()}
    prints = {key: known or fingerprint(*draw(*key)) for key, known in pairs.items()}  # on the meta device none is known
    metadata = {
        "format": "pt",
        "vera": json.dumps(
            {
                "fingerprint": _joint(prints),
                "shapes": [list(shape) for shape in target_shapes(layers).values()],
                "norms": [_norm(path, layer) for path, layer in layers.items()],
                "init": config.init,
                "sharing": config.sharing,
                "train": config.train,
                **({} if config.projection_dtype == "float32" else {"projection_dtype": config.projection_dtype}),
            },
            separators=(",", ":"),
        ),
    }
    folder = Path(folder)
    write_atomic(folder / WEIGHTS_FILE, safetensors_bytes(tensors, metadata))
    peft = _to_peft(model, config, compact)
    peft["fan_in_fan_out"] = any(transposed(layer.base_layer) for layer in layers.values())  # PEFT sets it for a Conv1D, too
    write_atomic(folder / CONFIG_FILE, json.dumps(peft, indent=2, sort_keys=True) + "\n")
    return folder


def load_adapter(model: nn.Module, folder: str | os.PathLike, name: str = "default") -> nn.Module:
    """Read an adapter that `save_adapter` or PEFT wrote, into the model, in place, and make it active. Returns the model.

    A and B are drawn again from the seed. A model that already has an adapter of that name keeps it and takes the values;
    otherwise the adapter is attached. Everything is checked before anything is changed: AdapterError names the file and what
    does not fit (foreign or truncated file, fingerprint of A and B, shape, backbone).
    """
    check_no_bank(model)
    given, model = model, unwrapped(model)
    existing = configs(model).get(name)
    _refuse_variants(model, name)
    _reshard(model)
    parts = {path: layer.vectors[name] for path, layer in vera_layers(model) if name in layer.vectors}
    for path, part in {**parts, **heads.of(model, name)}.items():
        if any(hasattr(value, "full_tensor") for value in part.parameters()):
            raise AdapterError(f"adapter {name!r} on {path} is in parts (fully_shard): load it before that")
    config, values = Reader(model).read(folder, existing)
    if existing is None:
        attach(given, config, name)
    else:
        set_adapter(model, name)
    with torch.no_grad():
        for path, layer in vera_layers(model):
            if name in layer.vectors:
                layer.vectors[name].b.copy_(values.pop(f"{path}.vera_lambda_b"))
                layer.vectors[name].d.copy_(values.pop(f"{path}.vera_lambda_d"))
        for path, module in heads.of(model, name).items():
            for key, tensor in heads.tensors(module).items():
                tensor.copy_(values.pop(plain_path(f"{path}.{key}")))
    return given


def _refuse_variants(model: nn.Module, name: str) -> None:
    for _, layer in vera_layers(model):
        if name in layer.vectors and variant(type(layer)) != variant(VeraLinear):
            kind = type(layer).__name__
            raise AdapterError(f"adapter {name!r} is a variant of VeRA ({kind}), which these files cannot hold")


def _reshard(model: nn.Module) -> None:
    """What fully_shard has gathered for the moment is in parts again: what is written to the whole would be lost."""
    for module in model.modules():
        if hasattr(module, "unshard"):
            module.reshard()


def _gathered(value: Tensor) -> Tensor:
    """A copy of a tensor, whole: where each process holds a part, all of them ask at once."""
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def _warn_of_others(model: nn.Module) -> None:
    """Of what trains beside the adapters, which an adapter's file does not hold."""
    own = {id(value) for _, layer in vera_layers(model) for value in layer.vectors.parameters()}
    copies = [module for name in configs(model) for module in heads.of(model, name).values()]
    own |= {id(value) for module in copies for value in module.parameters()}
    others = [name for name, value in model.named_parameters() if value.requires_grad and id(value) not in own]
    others += [path for path, _ in norms.loose(model, copies)]  # put in after attach, as convert_sync_batchnorm does
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(
            f"save_adapter leaves out {plain_path(others[0])}{more}, which train beside the adapter: name their modules in "
            "modules_to_save",
            stacklevel=3,
        )


class Reader:
    """Reads and checks adapter files for one backbone. What the checks need of the backbone is computed once."""

    def __init__(self, model: nn.Module):
        self.model = model = unwrapped(model)
        self._modules = [(plain_path(path), module) for path, module in model.named_modules(remove_duplicate=False)]
        self._heads: dict[tuple, dict[str, tuple[tuple[int, ...], torch.dtype, str]]] = {}
        self._targets: dict[tuple, dict[str, nn.Module]] = {}
        self._linear: dict[tuple[str, ...], tuple] = {}
        self._norms: dict[str, float | None] = {}
        self._prints: dict[tuple, str] = {}

    def read(self, folder: str | os.PathLike, existing: VeraConfig | None = None) -> tuple[VeraConfig, dict[str, Tensor]]:
        """The adapter's settings, and its tensors: "<layer>.vera_lambda_b", "<layer>.vera_lambda_d" and modules_to_save.

        Raises AdapterError, naming the file, when it is broken, does not fit the model or differs from `existing`.
        """
        folder = Path(folder)
        raw, weights_file = _read_config(folder / CONFIG_FILE), folder / WEIGHTS_FILE
        tensors, ours = read_weights(weights_file)
        config = _config(folder / CONFIG_FILE, raw, tensors, ours)
        # PEFT lists every name a head may have; those that are neither in the model nor in the file mean nothing.
        known = [*(path for path, _ in self._modules), *tensors]
        saved = tuple(module for module in config.modules_to_save if any(inside(path, (module,)) for path in known))
        if not ours:
            also = _also_saved(self._modules, config.modules_to_save)
            saved += tuple(path for path in also if any(inside(key, (path,)) for key in tensors))
        # ... and all-linear lists the layers of a head, which is trained whole instead. PEFT takes targets of several models.
        if saved not in self._linear:
            self._linear[saved] = linear_layers(self.model, saved)
        _, names, in_heads = self._linear[saved]
        linear = [path for paths in names.values() for path in paths]
        dropped = in_heads if ours else config.targets
        wanted = [name for name in config.targets if any(matches(path, [name]) for path in linear) or name not in dropped]
        config = replace(config, modules_to_save=saved, targets=tuple(wanted) or config.targets)
        if existing is not None:
            _same_adapter(folder / CONFIG_FILE, existing, config)
            on = [list(self.targets(folder / CONFIG_FILE, one)) for one in (config, existing)]
            if on[0] != on[1]:  # a compact file names no layers
                raise AdapterError(
                    f"{folder / CONFIG_FILE} is for other layers than the attached adapter, such as {_apart(*on)}"
                )
            config = existing
        targets = self.targets(folder / CONFIG_FILE, config)
        shapes = target_shapes(targets)
        if COMPACT in tensors:
            tensors = _spread(weights_file, tensors, shapes, config.rank)
        if not ours:
            tensors = _without_base(weights_file, tensors, targets)
        values = self._match(weights_file, tensors, shapes, config.rank, self._saved(folder / CONFIG_FILE, config))
        self._check_backbone(weights_file, targets, ours)
        rounded = self._check_projection(weights_file, tensors, config, shapes, ours)
        if existing is not None and rounded != existing.projection_dtype:
            raise AdapterError(f"{weights_file}: A and B are rounded to {rounded}, those of the attached adapter are not")
        return replace(config, projection_dtype=rounded), values

    def targets(self, path: Path, config: VeraConfig) -> dict[str, nn.Module]:
        """The model's layers that the adapter goes on."""
        key = (config.targets, config.modules_to_save)
        if key not in self._targets:
            try:
                self._targets[key] = find_targets(self.model, config)
            except AdapterError as error:
                raise AdapterError(f"{path} does not fit this model: {error}") from None
        return self._targets[key]

    def _saved(self, path: Path, config: VeraConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype, str]]:
        """Shape, dtype and first name of every tensor of the modules that the adapter brings copies of."""
        names = config.modules_to_save
        if names not in self._heads:
            expected: dict[str, tuple[tuple[int, ...], torch.dtype, str]] = {}
            try:
                for name, module in heads.find(self._modules, names).items():
                    first: dict[int, str] = {}  # a tensor may have two names in one copy; two copies share none
                    for key, value in heads.tensors(module).items():
                        plain = plain_path(f"{name}.{key}")
                        expected[plain] = (tuple(value.shape), value.dtype, first.setdefault(id(value), plain))
            except AdapterError as error:
                raise AdapterError(f"{path} does not fit this model: {error}") from None
            self._heads[names] = expected
        return self._heads[names]

    def _match(self, path: Path, tensors: dict[str, Tensor], shapes: dict, rank: int, saved: dict) -> dict[str, Tensor]:
        """The file's tensors by the model's names, after checking that names, shapes and dtypes are the expected ones."""
        expected = {}
        for name, (d_out, _) in shapes.items():
            for key, size in ((f"{name}.vera_lambda_b", d_out), (f"{name}.vera_lambda_d", rank)):
                expected[key] = ((size,), torch.float32, key)
        expected |= saved
        values = {key: value for key, value in tensors.items() if not key.endswith(("vera_A", "vera_B"))}
        missing, foreign = sorted(expected.keys() - values.keys()), sorted(values.keys() - expected.keys())
        if missing or foreign:
            what = [
                f"{verb} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                for verb, names in (("lacks", missing), ("has", foreign))
                if names
            ]
            raise AdapterError(f"{path} does not fit this model: it {' and '.join(what)}")
        for key, (shape, dtype, first) in expected.items():
            found = values[key]
            if tuple(found.shape) != shape:
                raise AdapterError(f"{path}: {key} has shape {list(found.shape)}, this model needs {list(shape)}")
            if found.dtype not in _DTYPES if dtype.is_floating_point else found.dtype != dtype:
                kind, needed = (str(each).removeprefix("torch.") for each in (found.dtype, dtype))
                raise AdapterError(f"{path}: {key} holds {kind}, this model needs {needed}")
            if not torch.isfinite(found).all():
                raise AdapterError(f"{path}: {key} holds values that are not finite")
            if first != key and not torch.equal(found, values[first]):
                raise AdapterError(f"{path}: {key} and {first} differ, but they are one tensor in this model")
        return values

    def _check_backbone(self, path: Path, targets: dict[str, nn.Module], ours: dict) -> None:
        shapes = [list(shape) for shape in target_shapes(targets).values()]
        if "shapes" in ours and ours["shapes"] != shapes:
            trained = _short(ours["shapes"])
            raise AdapterError(f"{path} was trained on matrices of shapes {trained}, this model has {_short(shapes)}")
        for (name, module), recorded in zip(targets.items(), ours.get("norms", ()), strict=False):
            if name not in self._norms:
                self._norms[name] = _norm(name, module)
            here = self._norms[name]
            if recorded is not None and here is not None and abs(here - recorded) > _NORM_TOLERANCE * abs(recorded):
                raise AdapterError(
                    f"{path} was trained on another backbone: the norm of {name} was {recorded}, here it is {here}"
                )

    def _check_projection(self, path: Path, tensors: dict[str, Tensor], config: VeraConfig, shapes: dict, ours: dict) -> str:
        """To which dtype A and B are rounded, after checking that those drawn here are the ones of the training."""
        keys = projection_keys(config, shapes)
        if "fingerprint" in ours:
            for key in set(keys.values()) - self._prints.keys():
                self._prints[key] = fingerprint(*draw(*key))
            here = _joint({key: self._prints[key] for key in keys.values()})
            if ours["fingerprint"] != here:
                raise AdapterError(
                    f"{path}: the random matrices drawn here have fingerprint {here}, the adapter was trained with "
                    f"{ours['fingerprint']}; another torch release or another generator drew them"
                )
        stored = {key: tensors[key] for key in tensors if key.endswith(("vera_A", "vera_B"))}
        if not stored:
            return config.projection_dtype  # PEFT with save_projection=False: the seed is all there is
        first = next(iter(keys.values()))
        different = None
        for rounded in PROJECTION_DTYPES:  # PEFT rounds what it has drawn to the backbone's dtype, and writes float32 or that
            A, B = draw(*(*first[:-1], rounded))
            unequal = [key for key, value in stored.items() if not _same(value, A if key.endswith("vera_A") else B)]
            if not unequal:
                return rounded
            different = different or unequal[0]
        raise AdapterError(f"{path}: the stored {different} differs from the matrix that its seed draws here")


def _also_saved(modules: Iterable[tuple[str, nn.Module]], saved: tuple[str, ...]) -> list[str]:
    """Paths of what PEFT takes for modules_to_save as well, since their names end in the same letters: pre_classifier. Of
    modules with a state."""
    fitting = [(path, module) for path, module in modules if path.endswith(saved) and not inside(path, saved)]
    return [path for path, module in fitting if module.state_dict()]


def _without_base(path: Path, tensors: dict[str, Tensor], targets: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Without W0 of an adapted output layer, which PEFT writes as well. Raises AdapterError where it is not the model's."""
    kept = {}
    for key, value in tensors.items():
        name, base, own = key.rpartition(".base_layer.")
        if not base or name not in targets:
            kept[key] = value
            continue
        layer = targets[name]
        here = getattr(layer.base_layer if isinstance(layer, VeraLinear) else layer, own, None)
        known = isinstance(here, Tensor) and not here.is_meta
        if known and not (here.shape == value.shape and _equal(here.detach().cpu(), value)):
            raise AdapterError(f"{path} was trained on another backbone: its {key} is not that of this model's {name}")
    return kept


def _equal(here: Tensor, there: Tensor) -> bool:
    """But for rounding to the dtype of the other, where one of the two is held in fewer bits."""
    return torch.equal(here, there.to(here.dtype)) or torch.equal(here.to(there.dtype), there)


def _same(stored: Tensor, drawn: Tensor) -> bool:
    return stored.shape == drawn.shape and torch.equal(stored.float(), drawn.to(stored.dtype).float())


def _norm(path: str, layer: nn.Module) -> float | None:
    """Frobenius norm of W0 to seven digits; None where W0 is quantised or has no storage."""
    weight = (layer.base_layer if isinstance(layer, VeraLinear) else layer).weight
    if not weight.is_floating_point() or weight.is_meta:
        return None
    if weight.dim() != 2:
        raise AdapterError(f"the weight of {path} is in parts (FullyShardedDataParallel): do this inside summon_full_params")
    return float(f"{_gathered(torch.linalg.vector_norm(weight.detach().float())).item():.7g}")


def _joint(prints: dict[tuple, str]) -> str:
    """The fingerprint of the one pair, or one for several pairs (sharing=unique) in the order of the layers."""
    if len(prints) == 1:
        return next(iter(prints.values()))
    return hashlib.sha256("".join(str(value) for value in prints.values()).encode()).hexdigest()[:16]


def _to_peft(model: nn.Module, config: VeraConfig, compact: bool) -> dict:
    """PEFT's configuration of the same adapter. What PEFT cannot express or read gets a type that PEFT refuses."""
    expressible = config.init == "kaiming_uniform" and config.sharing == "shared" and not compact
    base = getattr(getattr(model, "config", None), "_name_or_path", None)
    return {
        "peft_type": "VERA" if expressible else "VERA_VARIANT",
        "base_model_name_or_path": None if not base or Path(base).exists() else base,  # no path of this machine
        "r": config.rank,
        "target_modules": list(config.targets),
        "projection_prng_key": config.projection_seed,
        "save_projection": config.projection_dtype != "float32" and not compact,
        "vera_dropout": config.dropout,
        "d_initial": config.d_init,
        "bias": "none",
        "modules_to_save": list(config.modules_to_save) or None,
        "init_weights": True,
        "inference_mode": True,
        "task_type": None,
    }


def _read_config(path: Path) -> dict:
    """A VeRA configuration as it stands in the file."""
    try:
        raw = read_json(path.read_bytes())
    except FileNotFoundError:
        raise AdapterError(f"no adapter here: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is not an adapter configuration: {error}") from None
    if not isinstance(raw, dict) or raw.get("peft_type") not in ("VERA", "VERA_VARIANT"):
        kind = raw.get("peft_type") if isinstance(raw, dict) else type(raw).__name__
        raise AdapterError(f"{path} is not a VeRA adapter: peft_type is {kind!r}, expected 'VERA'")
    if raw.get("bias") not in ("none", None):
        raise AdapterError(f"{path}: bias={raw['bias']!r} is not supported: the adapter would bring biases of the backbone")
    if not isinstance(raw.get("target_modules"), (list, str)):
        raise AdapterError(f"{path}: target_modules must be names or a pattern, got {raw.get('target_modules')!r}")
    return raw


def _config(path: Path, raw: dict, tensors: dict[str, Tensor], ours: dict) -> VeraConfig:
    """The settings of an adapter. Where PEFT's file chooses layers by a pattern or by their numbers, they are the ones that
    have vectors in the weights file: no pattern of strangers is run."""
    targets = raw["target_modules"]
    if isinstance(targets, str) or any(raw.get(key) not in (None, []) for key in ("layers_to_transform", "exclude_modules")):
        end = ".vera_lambda_d"
        targets = [key.removesuffix(end) for key in tensors if key.endswith(end)]
    try:
        return VeraConfig(
            rank=raw["r"],
            targets=tuple(sorted(targets)),
            projection_seed=raw.get("projection_prng_key", 0),
            d_init=raw.get("d_initial", 0.1),
            dropout=raw.get("vera_dropout", 0.0),
            modules_to_save=raw.get("modules_to_save"),
            **{key: ours[key] for key in ("init", "sharing", "train", "projection_dtype") if key in ours},
        )
    except KeyError as error:
        raise AdapterError(f"{path} has no key {error}") from None
    except (AdapterError, TypeError) as error:
        raise AdapterError(f"{path}: {error}") from None


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of an adapter file without PEFT's prefix, and our part of its metadata. Raises AdapterError."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        ours = read_json(metadata.get("vera", "{}"))
    except FileNotFoundError:
        pickled = path.with_suffix(".bin")
        if pickled.exists():
            raise AdapterError(
                f"{pickled} is pickled, as which weights are never read; convert them once with PEFT's save_pretrained() to "
                "another folder"
            ) from None
        raise AdapterError(f"no adapter here: {path} does not exist") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"{path} is truncated or not a safetensors file: {error}") from None
    problem = _problem(ours)
    if problem:
        raise AdapterError(f"{path}: the metadata {problem}")
    return {key.removeprefix(PREFIX): value for key, value in tensors.items()}, ours


def _problem(ours: Any) -> str | None:
    """What is wrong with our part of a file's metadata, of which each key may be missing; None when nothing is."""
    if not isinstance(ours, dict):
        return "is not a mapping"
    shapes, norms, mark = ours.get("shapes", []), ours.get("norms", []), ours.get("fingerprint")
    if not isinstance(shapes, list) or not all(isinstance(s, list) and [type(n) for n in s] == [int, int] for s in shapes):
        return "has shapes that are not pairs of whole numbers"
    if not isinstance(norms, list) or not all(norm is None or (type(norm) is float and norm == norm) for norm in norms):
        return "has norms that are not numbers"
    if shapes and norms and len(shapes) != len(norms):
        return "has another number of norms than of shapes"
    if mark is not None and not isinstance(mark, str):
        return "has a fingerprint that is not a text"
    return None


def _same_adapter(path: Path, existing: VeraConfig, config: VeraConfig) -> None:
    for key in ("rank", "projection_seed", "init", "sharing", "modules_to_save"):
        if getattr(existing, key) != getattr(config, key):
            raise AdapterError(
                f"{path} has {key}={getattr(config, key)!r}, the attached adapter has {getattr(existing, key)!r}"
            )


def _apart(ours: list[str], theirs: list[str]) -> str:
    return next((name for name in [*ours, *theirs] if (name in ours) != (name in theirs)), ours[0])


def _spread(path: Path, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, int]], rank: int) -> dict[str, Tensor]:
    """A compact file's one tensor as b and d of each layer."""
    vectors = tensors[COMPACT]
    sizes = {f"{name}.vera_lambda_{v}": size for name, (d_out, _) in shapes.items() for v, size in (("b", d_out), ("d", rank))}
    if vectors.shape != (sum(sizes.values()),):
        raise AdapterError(f"{path}: {COMPACT} has shape {list(vectors.shape)}, this model needs [{sum(sizes.values())}]")
    rest = {key: value for key, value in tensors.items() if key != COMPACT}
    return {**dict(zip(sizes, vectors.split(list(sizes.values())), strict=True)), **rest}


def _short(shapes: list) -> str:
    return ", ".join(f"{a}x{b}" for a, b in dict.fromkeys(map(tuple, shapes)))
