"""A finished run's weights for others: as a LoRA adapter, as PEFT writes the method, or as a plain merged model."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from vera.checks.verify import read_record, run_of
from vera.config import RunConfig, build, component
from vera.config.paths import work_of
from vera.errors import AdapterError, ConfigError, RecordError
from vera.io.files import move_folder, os_error_as, read_json, write_atomic
from vera.methods import fused
from vera.methods.adalora import AdaLora
from vera.methods.any_peft import AnyPeft
from vera.methods.base import Method, quantised, shared
from vera.methods.bitfit import BitFit
from vera.methods.full import Full
from vera.methods.head import Head
from vera.methods.ia3 import IA3
from vera.methods.lora import Lora
from vera.methods.peft import ADAPTER, PeftMethod, json_value, write_adapter
from vera.methods.vera import Vera
from vera.models.base import Backbone, Model
from vera.models.gpt2 import join_attention
from vera.models.text import reads_last_token
from vera.nn.base_layer import matrix, transposed
from vera.nn.checkpoint import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from vera.nn.heads import HEADS
from vera.nn.inject import CONFIGS, replace_module
from vera.nn.linear import VeraLinear
from vera.nn.names import inside
from vera.records.kept import check_backbone, kept
from vera.records.record import Record
from vera.records.sources import CLASSES
from vera.records.store import Store
from vera.seeds import seed_everything
from vera.tasks.text import TextTask

Form = Literal["lora", "peft", "merged"]
CHECKPOINTS = ("best", "last")
FLOAT32 = "float32"
_TASK_TYPES = {"text": "SEQ_CLS", "generation": "CAUSAL_LM"}  # PEFT has none for images
_MERGED = (Vera, Lora, AdaLora, IA3, Full, BitFit, Head)
_SAME_OUTPUTS = re.compile("dropout|pdrop|layerdrop|drop_path|attn_implementation")  # of a trained model, whatever they are


class NoSuchForm(ConfigError):
    """A run whose method has no form of the kind that was asked for."""


def export(
    source: Path,
    out: Path,
    form: Form,
    rank: int | None = None,
    checkpoint: str | None = None,
    results: Path | None = None,
    work: Path | None = None,
    overrides: Sequence[str] = (),
) -> list[str]:
    """Write a run's trained weights to the folder `out`; returns what a user should be told, a line each.

    source      the run's record, or its folder below work_dir, or "best" or "last" in that.
    rank        lora: cut the update of every matrix in the file to this rank by a singular value decomposition.
    checkpoint  best (the default) or last epoch.
    results, work  the run's results_dir and work_dir, where they are not `results` and `work/<results>` by their names.
    overrides   local paths again, KEY=VALUE, as vera.checks.verify.run_of takes them.

    `out` appears whole or not at all. Raises VeraError.
    """
    if form != "lora" and rank is not None:
        raise ConfigError(f"--rank cuts a LoRA; with --to {form} nothing is cut")
    record, folder, _ = find(Path(source), checkpoint, results, work)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; name a new folder")
    run = _run(record, overrides)
    method = build(run.method, "method")
    _check(run, method, form)
    backbone = _load(run, record, method, folder)
    if form != "merged":
        _check_names(backbone)
    with os_error_as(ConfigError, f"{out.parent} cannot be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        write = {"lora": _write_lora, "peft": _write_peft, "merged": _write_merged}[form]
        lines = write(run, record, backbone, method, scratch, rank)
        if form != "merged" and (how := held(build(run.model, "model"))[0]) != FLOAT32:
            lines[0] += f", on the backbone in {how}"
        if form != "merged" and component(run.model, "model").modality == "text" and reads_last_token(backbone.model):
            pad = backbone.preprocess.pad_token_id
            lines.append(f"scores are read at the last token before the padding: set model.config.pad_token_id = {pad}")
        write_atomic(scratch / "README.md", _readme(run, record, folder.name, form, lines))
        scratch.chmod(0o755)
        if out.exists():
            out.rmdir()
        move_folder(scratch, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return lines


def find(source: Path, checkpoint: str | None, results: Path | None, work: Path | None) -> tuple[Record, Path, Store]:
    """The record of a run, the folder with its trained weights, and the records beside it. Raises ConfigError, RecordError or
    ModelError."""
    if source.is_dir():
        if source.name in CHECKPOINTS:
            if checkpoint not in (None, source.name):
                raise ConfigError(f"{source} is the {source.name} epoch, not the {checkpoint} one")
            source, checkpoint = source.parent, source.name
        name, work = source.resolve().name, source.resolve().parent
        record, store = _record_of(source, name, work, results)
    elif source.suffix == ".json":
        record, store = read_record(source), Store(source.absolute().parent.parent)
        work = work_of(store.root, record.name) if work is None else work
    elif source.exists():
        raise ConfigError(f"{source} is neither a run's folder nor its record (results/runs/<run>.json)")
    else:
        raise ConfigError(f"{source} does not exist")
    return record, kept(record, work, checkpoint or "best")[0], store


def _record_of(source: Path, name: str, work: Path, results: Path | None) -> tuple[Record, Store]:
    """The record of the run that a folder is of: work/<results_dir>/<run> belongs to <results_dir>/runs/<run>.json."""
    guesses = [results] if results is not None else []
    for at in reversed([at for at, part in enumerate(work.parts) if part == "work" and results is None]):
        guesses += [Path(*work.parts[:at], *work.parts[at + 1 :]), Path("/", *work.parts[at + 1 :])]
    for guess in guesses:
        store = Store(guess)
        record = store.find(name)
        if record is not None:
            return record, store
    if not any((source / kept).is_dir() for kept in CHECKPOINTS):
        raise ConfigError(f"{source} is not a run's folder: it has neither best/ nor last/")
    where = f"{guesses[0]} has none" if guesses else "its results folder is not known"
    raise RecordError(f"no record of the run {name}: {where}; name it with --results DIR, or give the record itself")


def _run(record: Record, overrides: Sequence[str]) -> RunConfig:
    """The run's configuration; its data is not read, so a path of them need not be given again."""
    overrides = list(overrides)
    config = record.run.config
    given = {override.partition("=")[0] for override in overrides}
    if config["task"].get("data_dir") and not config["model"].get("data_dir") and "task.data_dir" not in given:
        overrides.append("task.data_dir=.")
    return run_of(record, overrides, Path("unused"))


def _load(run: RunConfig, record: Record, method: Method, folder: Path) -> Backbone:
    task, model_config = build(run.task, "task"), build(run.model, "model")
    seed_everything(run.seed, "head")
    backbone = model_config.load(task.outputs, Path(run.cache_dir))
    check_backbone(record, backbone.fingerprint, backbone.notes)
    method.load(backbone, model_config, folder)
    backbone.model.eval()
    return backbone


def _check(run: RunConfig, method: Method, form: Form) -> None:
    """Raises NoSuchForm for what a method has no such form of, ConfigError for a run that no form can hold."""
    if form == "lora" and not isinstance(method, (Vera, Lora, AdaLora)):
        peft = "; --to peft writes it as PEFT does" if isinstance(method, PeftMethod) else ""
        raise NoSuchForm(f"method={method.name} cannot be written as a LoRA here{peft}")
    if form == "peft" and not isinstance(method, (Vera, PeftMethod)):
        raise NoSuchForm(f"PEFT has no format for method={method.name}")
    if form == "merged" and isinstance(method, AnyPeft) and method.merge == "exact":
        raise NoSuchForm(
            f"method={method.name} is merged by PEFT alone: export it --to peft, and call merge_and_unload() there"
        )
    if form == "merged" and not isinstance(method, _MERGED):
        raise NoSuchForm(f"method={method.name} is not known to leave a plain model: it is not merged")
    changed = [key for key in run.model.get("config", {}) if not _SAME_OUTPUTS.search(key)]
    if form != "merged" and changed:
        merges = isinstance(method, _MERGED)
        raise (NoSuchForm if merges else ConfigError)(
            f"model.config.{changed[0]} is the run's, not its checkpoint's, which no adapter file can say, so others would "
            f"compute something else; {'--to merged holds it' if merges else f'and method={method.name} cannot be merged'}"
        )


def _check_names(backbone: Backbone) -> None:
    """Raises NoSuchForm for an adapted layer that PEFT takes for a head, whose names it compares as plain endings."""
    for name, layer in backbone.model.named_modules():
        for head in backbone.head if isinstance(layer, (VeraLinear, BaseTunerLayer)) else ():
            if name.endswith(head) and not inside(name, [head]):
                raise NoSuchForm(f"PEFT takes the adapted layer {name} for the head {head}, and refuses both: see --to merged")


def _factors(backbone: Backbone, method: Method) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """By name of an adapted layer: what it was, and A [r, d_in], B [d_out, r] with W = W0 + B A; float32 on the CPU."""
    found = {}
    for name, layer in backbone.model.named_modules():
        if isinstance(layer, VeraLinear):
            A, B, b, d = (tensor.detach().float().cpu() for tensor in layer.matrices(layer.active))
            found[name] = (layer.base_layer, d[:, None] * A, b[:, None] * B)
        elif isinstance(method, PeftMethod) and name in method.layers(backbone):
            A, B, scale = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.scaling[ADAPTER]
            if isinstance(method, AdaLora):
                A, scale = layer.lora_E[ADAPTER] * A, scale / (layer.ranknum[ADAPTER] + 1e-5)
            else:
                A, B = A.weight, B.weight
            found[name] = (layer.get_base_layer(), A.detach().float().cpu(), (scale * B).detach().float().cpu())
    return found


def cut(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest B' A' of rank `rank` to B A, A' [rank, d_in] and B' [d_out, rank], and the part of |B A| (Frobenius) lost."""
    Qa, Ra = torch.linalg.qr(A.T.double())
    Qb, Rb = torch.linalg.qr(B.double())
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T)
    size = min(rank, len(S))
    root = S[:size].sqrt()
    new_A, new_B = (root[:, None] * Vh[:size]) @ Qa.T, Qb @ (U[:, :size] * root)
    pad = rank - size
    lost = (S[size:].norm() / S.norm()).item() if S.norm() > 0 else 0.0
    return nn.functional.pad(new_A, (0, 0, 0, pad)).float(), nn.functional.pad(new_B, (0, pad)).float(), lost


def _write_lora(run, record, backbone, method, folder, rank) -> list[str]:
    tensors, lines = {}, []
    factors = _factors(backbone, method)
    for name, (_, A, B) in factors.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = A, B
    r = max(len(A) for _, A, _ in factors.values())
    config = LoraConfig(r=r, lora_alpha=r, target_modules=sorted(factors)).to_dict()
    config = fused.plain_config(backbone.model, json.loads(json.dumps(config, default=json_value)))
    tensors = fused.together(backbone.model, tensors)
    if rank is not None:  # of the matrices that the file is for: GPT-2's have the adapters of several maps
        full, lost = config["r"], {}
        if not 1 <= rank <= full:
            raise ConfigError(f"--rank {rank}: this adapter's rank is {full}; a cut is of rank 1 to {full}")
        for name in config["target_modules"]:
            a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            tensors[a], tensors[b], lost[name] = cut(tensors[a], tensors[b], rank)
        config |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
        worst = max(lost, key=lambda name: lost[name])
        mean = sum(lost.values()) / len(lost)
        lines.append(
            f"cut from rank {full} to {rank}: {mean:.1%} of a matrix's update is lost on average (Frobenius norm), "
            f"{lost[worst]:.1%} of {worst}, the worst"
        )
    lines.insert(0, f"LoRA of rank {config['r']} on {len(config['target_modules'])} matrices" + ("" if rank else ", exact"))
    tensors = {PREFIX + name: tensor for name, tensor in tensors.items()} | _head(backbone)
    _write_adapter(run, record, backbone, folder, tensors, config)
    return lines


def _write_peft(run, record, backbone, method, folder, rank) -> list[str]:
    if isinstance(method, Vera) and fused.splits(backbone.model):
        raise NoSuchForm("PEFT's VeRA cannot say what this run has on GPT-2's attention: see --to lora, which is exact")
    if isinstance(method, AnyPeft) and fused.splits(backbone.model):
        raise NoSuchForm(f"PEFT's {method.type} cannot say what this run has on GPT-2's attention, which is split here")
    method.save(backbone, folder)
    config = read_json((folder / CONFIG_FILE).read_bytes())
    if config["peft_type"] == "VERA_VARIANT":
        raise NoSuchForm(f"PEFT's VeRA has no init={method.init} with sharing={method.sharing}: see --to lora, which is exact")
    prefix = method.prefix if isinstance(method, PeftMethod) else PREFIX
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        told = file.metadata()  # a VeRA's: which A and B, and which backbone, it is for
    tensors = load_file(folder / WEIGHTS_FILE) | _head(backbone, prefix)
    _write_adapter(run, record, backbone, folder, tensors, config, told)
    return [f"{config['peft_type']} in PEFT's format"]


def _write_adapter(run, record, backbone, folder, tensors, config, metadata=None) -> None:
    base, revision = _base(run, record)
    config |= {
        "base_model_name_or_path": base,
        "revision": revision,
        "task_type": _TASK_TYPES.get(component(run.model, "model").modality),
        "inference_mode": True,
        "modules_to_save": list(backbone.head) or None,
    }
    write_adapter(folder, {name: tensor.contiguous() for name, tensor in tensors.items()}, config, metadata or {})


def _head(backbone: Backbone, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The head's tensors by their names in PEFT's files, trained or as the seed drew them: no checkpoint has them."""
    state = {name: value for name, value in backbone.model.state_dict().items() if not inside(name, [HEADS])}
    return {prefix + name: state[name].detach().cpu() for name in state if inside(name, backbone.head)}


@torch.no_grad()
def _write_merged(run, record, backbone, method, folder, rank) -> list[str]:
    model, lines, lost = backbone.model, [], 0.0
    if isinstance(method, (Vera, Lora, AdaLora, IA3)):
        scaled = method.layers(backbone) if isinstance(method, IA3) else {}
        factors = {} if scaled else _factors(backbone, method)
        bases = {name: layer.get_base_layer() for name, layer in scaled.items()} | {name: f[0] for name, f in factors.items()}
        _check_mergeable(model, bases, "peft" if scaled else "lora")
        for name, base in bases.items():
            W0 = matrix(base).float().cpu()
            W = W0 * scaled[name].ia3_l[ADAPTER].float().cpu() if name in scaled else W0 + factors[name][2] @ factors[name][1]
            update = (W - W0).norm().clamp_min(1e-30)
            if name in scaled:
                scaled[name].merge()
            else:
                matrix(base).copy_(W.to(base.weight.dtype))
            if not all(torch.isfinite(parameter).all() for parameter in base.parameters()):
                raise AdapterError(f"merging into {name} gives weights that are not finite in {base.weight.dtype}")
            lost = max(lost, ((matrix(base).float().cpu() - W).norm() / update).item())
            replace_module(model, name, base)
        if model.dtype != torch.float32:
            dtype = str(model.dtype).removeprefix("torch.")
            lines.append(
                f"W0 + dW is formed in float32 and rounded to {dtype}, which changes up to {lost:.1%} of a matrix's update"
            )
    for name in ("peft_config", CONFIGS, HEADS):
        if hasattr(model, name):
            delattr(model, name)
    join_attention(model)
    labels = _labels(run, record)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    preprocess = getattr(backbone.preprocess, "processor", backbone.preprocess)
    task = build(run.task, "task")
    if isinstance(task, TextTask):
        preprocess.model_max_length = task.max_length  # what `truncation=True` cuts to
    preprocess.save_pretrained(folder)
    return ["a plain model of transformers'", *lines]


def _check_mergeable(model: nn.Module, bases: Mapping[str, nn.Module], instead: Form) -> None:
    """Raises AdapterError, by name, for a layer into which nothing can be written alone."""
    tied = {id(base) for base in shared(model, bases.values())}
    for name, base in bases.items():
        if type(base) is not nn.Linear and not transposed(base):
            reason = f"is a {type(base).__name__}"
        elif quantised(base.weight):
            reason = "is quantised"
        elif id(base) in tied:
            reason = "has a weight that another module has too, such as the embeddings"
        else:
            continue
        raise AdapterError(f"{name} {reason}, so nothing can be merged into it; export with --to {instead}")


def _base(run: RunConfig, record: Record) -> tuple[str | None, str | None]:
    """The base model's id and commit on the hub, where the run took it from there."""
    checkpoint = run.model.get("checkpoint")
    return (checkpoint, record.provenance.model_commit) if record.provenance.model_source == checkpoint else (None, None)


def _labels(run: RunConfig, record: Record) -> Sequence[str] | None:
    """The names of the classes, as the task has them, or as the data had them that it was trained on."""
    return build(run.task, "task").class_names or record.provenance.notes.get(CLASSES)


def _code(start: Mapping[str, Any]) -> str:
    return f"commit {start['git_sha'] or 'unknown'}" + " with changes" * bool(start["git_dirty"])


def held(model: Model) -> tuple[str, str, str | None]:
    """How a backbone's weights are held: in a word (float32, nf4), the dtype of all that is not quantised, and as code, where
    there is one, the quantisation that from_pretrained takes."""
    dtype = str(model.settings.get("dtype", FLOAT32)).removeprefix("torch.")
    quantised = model.settings.get("quantization_config")
    if quantised is None:
        return dtype, dtype, None
    name = type(quantised).__name__
    values = [f"{key}={value!r}" for key, value in quantised.to_diff_dict().items() if not key.startswith("_")]
    word = quantised.quantization_method() if isinstance(quantised, BitsAndBytesConfig) else name
    return word, dtype, f"{name}({', '.join(values)})"


def _readme(run: RunConfig, record: Record, checkpoint: str, form: Form, lines: list[str]) -> str:
    base, revision = _base(run, record)
    provenance, chosen = record.provenance, getattr(record.scores, checkpoint)
    task, labels = build(run.task, "task"), _labels(run, record)
    front = [f"base_model: {base}"] * bool(base) + ["library_name: " + ("transformers" if form == "merged" else "peft")]
    where = f"`{base}` at commit `{revision}`" if base else provenance.model_source
    tested = record.scores.test if checkpoint == "best" else None
    data = provenance.data_source + (f" at commit {provenance.data_commit}" if provenance.data_commit else "")
    scored, test = (", ".join(f"{n} {value:.4f}" for n, value in s.metrics.items()) if s else None for s in (chosen, tested))
    how, dtype, quantised = held(build(run.model, "model"))
    weights = f"{how}: `{quantised}`, all else {dtype}" if quantised else how
    rows: list[tuple[str, Any]] = [
        ("form", "; ".join(lines)),
        ("base model", f"{where}, weights with fingerprint {provenance.model_fingerprint}"),
        ("its weights", weights if form != "merged" and how != FLOAT32 else None),
        ("data", f"{data}, rows with fingerprint {provenance.data_fingerprint}"),
        ("model.config", ", ".join(f"{key}: {value}" for key, value in run.model.get("config", {}).items()) or None),
        ("run", f"{record.name} (model {record.run.model}, task {record.run.task}, method {record.run.method})"),
        ("cell", record.run.cell_id),
        ("seed", record.run.seed),
        ("epoch", f"{chosen.epoch}, the {checkpoint} one: {scored}"),
        ("test set", test),
        ("input", task.reads(provenance.notes)),
        ("labels", ", ".join(f"{index} {label}" for index, label in enumerate(labels)) if labels else None),
        ("code", "; begun at ".join(dict.fromkeys(map(_code, provenance.starts)))),
        (
            "versions",
            ", ".join(f"{n} {provenance.versions[n]}" for n in ("torch", "transformers", "peft") if n in provenance.versions),
        ),
    ]
    cells = [(key, str(value).replace("|", r"\|")) for key, value in rows if value is not None]  # a class's name may have one
    table = "\n".join(f"| {key} | {value} |" for key, value in cells)
    return "---\n" + "\n".join(front) + f"\n---\n\n# {record.name}\n\n| | |\n|---|---|\n{table}\n"
