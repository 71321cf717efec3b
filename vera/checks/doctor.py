"""What can be known before the money is spent: a line for each thing that a sweep needs, and what to do where it is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from huggingface_hub import constants
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from vera.checks.counts import account
from vera.config import RunConfig, build, component
from vera.errors import ConfigError, DataError, VeraError
from vera.io import hub, tables
from vera.io.hub import HubData, HubProblem
from vera.judge.endpoint import JudgeSettings
from vera.judge.grade import find_prompts
from vera.judge.questions import QuestionSource, load_questions
from vera.judge.sources import cached, in_folder
from vera.models.base import Model
from vera.models.causal import CausalLM
from vera.tasks.base import Task
from vera.tasks.e2e import E2E
from vera.tasks.e2e_metrics import unavailable
from vera.tasks.images import Images
from vera.train.tracker import Wandb, login

OK, TODO, NETWORK, UNUSED, NOTE = "ok", "to do", "needs a network", "not needed here", "note"
Status = Literal["ok", "to do", "needs a network", "not needed here", "note"]

DISTRIBUTION = "vera-experiments"
OLDEST_PYTHON = (3, 10)
OPERATIONS_ON_A_CPU = 1e11  # a second, on some cores: to tell hours from weeks
LONG = 86400.0  # seconds of one run on a CPU from which a GPU is asked for
NF4 = 4.127 / 8  # bytes a weight: 4 bits and the scales, which are quantised too (QLoRA, section 3)
ADAM = 12  # bytes a trained value beside the value itself: gradient and two moments in float32
RECORD = 20_000  # bytes
WEIGHTS_NAMES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Line:
    """One check. found: what there is; remedy: what to do, "" where nothing is to be done."""

    status: Status
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Wanted:
    """One cell of a sweep. counts: {adapter, backbone} parameters where they are known; operations: of a run, where known."""

    run: RunConfig
    seeds: int
    counts: dict[str, int] | None
    operations: float | None


def examine(
    wanted: Sequence[Wanted], questions: Sequence[QuestionSource], judge: JudgeSettings, constraints: Path
) -> list[Line]:
    """Every line, in the order in which things are wanted: this machine, its disk, the hub, accounts.

    The hub is asked once whether it answers, then once for each repository; without an answer those lines say so.
    """
    runs = [item.run for item in wanted]
    lines = [python(), *packages(constraints, _extras(runs, bool(questions)))]
    lines += [*memory(wanted), java(runs)]
    silence = None
    needs = [model for run in _distinct(runs, "model") if (model := build(run.model, "model")).source_kind == "hub"]
    data = {(d.repository, d.subset): d for run in runs if (d := build(run.task, "task").hub_data()) is not None}
    if needs or data:
        silence = hub.silent()
        lines.append(Line(NETWORK if silence else OK, "hub", silence or constants.ENDPOINT, _OFFLINE if silence else ""))
    else:
        lines.append(Line(UNUSED, "hub", "nothing is read from it"))
    sizes: dict[str, int] = {}
    lines += [model_line(run, silence, sizes) for run in _distinct(runs, "model")]
    lines += [data_line(item, silence, sizes) for item in data.values()]
    lines += local_data(runs)
    lines += disk(wanted, sizes)
    lines += [tracker(runs), *judging(questions, judge, silence, runs[0].cache_dir)]
    return lines


_OFFLINE = "connect, or give model.path= and task.data_dir= (then nothing is read from the hub)"


def verdict(lines: Iterable[Line]) -> int:
    """Exit status: 1 when something is to be done, else 3 when something could not be known without a network, else 0."""
    found = {line.status for line in lines}
    return 1 if TODO in found else 3 if NETWORK in found else 0


def python() -> Line:
    here = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < OLDEST_PYTHON:
        return Line(TODO, "Python", here, "3.10 or newer: make setup PYTHON=python3.11")
    return Line(OK, "Python", here)


def packages(constraints: Path, extras: set[str]) -> list[Line]:
    """Installed against required, and against the set that the tests have passed with."""
    install = "make setup" + "".join(f" && pip install -c constraints.txt -e '.[{extra}]'" for extra in sorted(extras))
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [Line(TODO, "packages", f"{DISTRIBUTION} is not installed", "make setup")]
    tested = {pin.name.lower().replace("_", "-"): pin for pin in _pins(constraints)}
    lines, others, fine = [], [], 0
    for text in declared:
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            here = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(Line(TODO, wanted.name, "not installed", install))
            continue
        pin = tested.get(wanted.name.lower().replace("_", "-"))
        if not wanted.specifier.contains(Version(here).public, prereleases=True):
            lines.append(Line(TODO, wanted.name, f"{here}, needs {wanted.specifier}", install))
        elif pin is not None and not pin.specifier.contains(Version(here).public, prereleases=True):
            others.append(f"{wanted.name} {here} (tested {str(pin.specifier).lstrip('=')})")
        else:
            fine += 1
    if others:
        lines.append(
            Line(NOTE, "packages", "not the tested versions: " + ", ".join(others), "make setup installs the tested ones")
        )
    return [*lines, Line(OK, "packages", f"{fine} as in {constraints.name}")] if fine else lines


def _pins(constraints: Path) -> list[Requirement]:
    found = []
    for line in constraints.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            pin = Requirement(text) if text else None
        except InvalidRequirement:
            continue
        if pin is not None and (pin.marker is None or pin.marker.evaluate()):
            found.append(pin)
    return found


def _extras(runs: Sequence[RunConfig], judged: bool) -> set[str]:
    extras = {"e2e"} if any(issubclass(component(run.task, "task"), E2E) for run in runs) else set()
    extras |= {"quantise"} if any(run.model.get("quantisation") == "nf4" for run in runs if _full(run)) else set()
    extras |= {"minilm"} if any(run.model.get("package") and not run.model.get("path") for run in runs if _full(run)) else set()
    return extras | ({"judge"} if judged else set())


def java(runs: Sequence[RunConfig]) -> Line:
    if not any(issubclass(component(run.task, "task"), E2E) for run in runs):
        return Line(UNUSED, "Java", "only E2E's METEOR, ROUGE-L and CIDEr use it")
    reason = unavailable()
    return (
        Line(OK, "Java", "METEOR, ROUGE-L and CIDEr can be computed")
        if reason is None
        else Line(TODO, "Java", "missing", reason)
    )


# Memory and disk


def weights_bytes(run: RunConfig, backbone: int) -> float:
    """Of the backbone on the device: 4 a value in float32; Llama 2 (bf16), or NF4 for all but embeddings and output layer."""
    quantisation = run.model.get("quantisation")
    if quantisation is None:
        return 4.0 * backbone
    if quantisation == "none":
        return 2.0 * backbone
    full = run.model.get("full") or {}
    words = 2 * full.get("vocab_size", 0) * full.get("hidden_size", 0)
    return 2.0 * words + NF4 * (backbone - words)


def device_bytes(run: RunConfig, counts: dict[str, int]) -> dict[str, float]:
    """What one run needs on the device, by kind: weights, training (4 + 12 bytes a trained value that is not in the backbone,
    12 where it is), and activations.

    Activations: 34 bytes x examples x tokens x width a layer (Korthikanti et al. 2022, 16 bits, fused attention), the input of
    each layer alone with gradient checkpointing, and 12 bytes a logit of a language model. A rough figure: the longest
    possible examples, nothing for fragments and evaluation.
    """
    full, backbone = run.model.get("full") or {}, counts["backbone"]
    trained = counts["adapter"]
    trains_backbone = trained >= backbone
    width = full.get("hidden_size", full.get("n_embd", 0))
    layers = full.get("num_hidden_layers", full.get("n_layer", 0))
    examples = run.train.micro_batch_size or run.train.batch_size
    tokens = run.task.get("max_length") or (run.task.get("facts") or {}).get("tokens", 0)
    in_batch = min(examples * tokens, run.train.micro_batch_tokens or float("inf"))
    per_value = 2 if run.model.get("gradient_checkpointing") else 34
    activations = in_batch * width * layers * per_value
    if issubclass(component(run.model, "model"), CausalLM):
        activations += 12 * in_batch * full.get("vocab_size", 0)
    return {
        "weights": weights_bytes(run, backbone),
        "training": trained * (ADAM if trains_backbone else ADAM + 4),
        "activations": activations,
    }


def memory(wanted: Sequence[Wanted]) -> list[Line]:
    """Each model's largest need against the GPU that would be used."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    lines = []
    by_model: dict[str, list[Wanted]] = {}
    for item in wanted:
        by_model.setdefault(item.run.model["name"], []).append(item)
    needs_gpu = False
    for name, items in by_model.items():
        known = [(item, counts) for item in items if _full(item.run) and (counts := _counts(item)) is not None]
        if not known:
            lines.append(Line(UNUSED, f"memory: {name}", "a small model"))
            continue
        item, parts = max(((i, device_bytes(i.run, c)) for i, c in known), key=lambda pair: sum(pair[1].values()))
        need = sum(parts.values())
        about = f"{_gb(need)} for {item.run.method['name']} ({', '.join(f'{k} {_gb(v)}' for k, v in parts.items())}; rough)"
        longest = max((i.operations or 0.0) for i, _ in known) / OPERATIONS_ON_A_CPU
        if gpu is None or item.run.device == "cpu":
            slow = longest > LONG or item.run.model.get("quantisation") == "nf4"
            needs_gpu |= slow
            remedy = "a GPU" if slow else ""
            lines.append(
                Line(TODO if slow else OK, f"memory: {name}", f"{about}; on a CPU a run takes {_time(longest)}", remedy)
            )
        elif need > gpu.total_memory:
            fixed = need - parts["activations"]
            examples = item.run.train.micro_batch_size or item.run.train.batch_size
            fitting = int(examples * (0.9 * gpu.total_memory - fixed) / max(1.0, parts["activations"]))
            remedy = f"train.micro_batch_size={fitting}" if fitting >= 1 else f"a GPU with more than {_gb(need)}"
            lines.append(Line(TODO, f"memory: {name}", f"{about}; {gpu.name} has {_gb(gpu.total_memory)}", remedy))
        else:
            lines.append(Line(OK, f"memory: {name}", f"{about}; {gpu.name} has {_gb(gpu.total_memory)}"))
    if gpu is not None:
        return [Line(OK, "GPU", f"{torch.cuda.device_count()} x {gpu.name}"), *lines]
    remedy = "a machine with a CUDA GPU and a torch built for it (torch.cuda.is_available() is false here)"
    return [Line(TODO, "GPU", "none", remedy) if needs_gpu else Line(UNUSED, "GPU", "none"), *lines]


def disk(wanted: Sequence[Wanted], sizes: dict[str, int]) -> list[Line]:
    """One line a file system: downloads still to come, decoded images, what is kept of each run, records."""
    results, work, cache = (Path(getattr(wanted[0].run, key)) for key in ("results_dir", "work_dir", "cache_dir"))
    needs: dict[Path, float] = {results: 0.0, work: 0.0, cache: 0.0}
    needs[Path(constants.HF_HUB_CACHE)] = float(sum(sizes.values()))
    for item in {item.run.model["name"]: item for item in wanted}.values():
        model: Model = build(item.run.model, "model")
        counts = _counts(item) if model.source_kind == "hub" else None
        if counts is not None and model.checkpoint not in sizes and not _cached_weights(model):
            needs[Path(constants.HF_HUB_CACHE)] += counts["backbone"] * (2 if "quantisation" in item.run.model else 4)
    largest = 0.0
    for item in wanted:
        needs[results] += item.seeds * RECORD
        counts = _counts(item) if _full(item.run) else None
        trained = 4.0 * counts["adapter"] if counts else 0.0
        largest = max(largest, 3 * trained)  # the state of the one unfinished run: values and two moments
        needs[work] += item.seeds * 2 * trained * item.run.train.save  # best and last
    needs[work] += largest
    for run in _distinct([item.run for item in wanted], "task"):
        task = build(run.task, "task")
        if isinstance(task, Images) and not task.synthetic:
            side = (run.model.get("full") or {}).get("image_size", 224)
            needs[cache] += 3 * side**2 * (task.facts.get("eval_rows", 0) + 5 * task.facts.get("train_rows", 0))
    systems: dict[int, tuple[Path, float]] = {}
    for folder, need in needs.items():
        there = _existing(folder)
        first, total = systems.get(there.stat().st_dev, (there, 0.0))
        systems[there.stat().st_dev] = (first, total + need)
    lines = []
    for folder, need in systems.values():
        free = shutil.disk_usage(folder).free
        found = f"{_gb(need)} wanted, {_gb(free)} free at {folder}"
        kept = f", or train.save=false ({_gb(needs[work])} of it are trained weights)" if needs[work] > need / 2 else ""
        lines.append(
            Line(OK, "disk", found) if free > need else Line(TODO, "disk", found, f"free {_gb(need - free)} there{kept}")
        )
    for key, folder in (("results_dir", results), ("work_dir", work), ("cache_dir", cache)):
        if not os.access(_existing(folder), os.W_OK):
            lines.append(Line(TODO, "disk", f"{folder} cannot be written", f"{key}= another folder"))
    return lines


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _counts(item: Wanted) -> dict[str, int] | None:
    if item.counts is not None:
        return item.counts
    try:
        return account(item.run)
    except ConfigError:
        return None


# The hub


def model_line(run: RunConfig, silence: str | None, sizes: dict[str, int]) -> Line:
    """Where one model comes from, and whether its files are those that are read. Puts what is to be fetched into `sizes`."""
    model: Model = build(run.model, "model")
    what = f"model: {model.name}"
    if model.source_kind != "hub":
        if model.source_kind == "made here":
            return Line(UNUSED, what, "made on this machine")
        try:
            folder = Path(model.source(Path(run.cache_dir)))
        except VeraError as error:
            return Line(TODO, what, str(error), "model.path=/path/to/a/folder in transformers' format")
        missing = _missing({path.name for path in folder.iterdir()}, model)
        return Line(TODO, what, f"{folder}: {missing}", _SAFE) if missing else Line(OK, what, f"{folder}")
    if hub.cached_commit(model.checkpoint, model.revision) is not None and _cached_weights(model):
        return Line(OK, what, f"{model.checkpoint} is in the cache")
    if silence:
        return Line(NETWORK, what, model.checkpoint, f"or model.path=/path/to/{model.checkpoint.rpartition('/')[2]}")
    try:
        found = hub.look_up(model.checkpoint, model.revision, "model")
    except HubProblem as problem:
        return _refused(what, problem, model.checkpoint, "model.path=")
    sizes[model.checkpoint] = sum(size for name, size in found.files.items() if name.endswith(".safetensors"))
    missing = _missing(set(found.files), model)
    if missing:
        return Line(TODO, what, f"{model.checkpoint}: {missing}", _SAFE)
    return Line(OK, what, f"{model.checkpoint}@{found.commit[:8]}, {_gb(sizes[model.checkpoint])}")


_SAFE = "another revision, or save_pretrained() to a folder and model.path="


def _missing(names: set[str], model: Model) -> str | None:
    if "config.json" not in names:
        return "no config.json"
    if not names & set(WEIGHTS_NAMES):
        return "no weights in safetensors (pickled ones are never read)"
    if model.modality == "image":
        return None if "preprocessor_config.json" in names else "no preprocessor_config.json"
    return None if names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"} else "no tokenizer"


def _cached_weights(model: Model) -> bool:
    return any(hub.cached_commit(model.checkpoint, model.revision, name) is not None for name in WEIGHTS_NAMES)


def data_line(data: HubData, silence: str | None, sizes: dict[str, int]) -> Line:
    """Whether a data set is there with the splits and columns that its task reads."""
    name = f"{data.repository} {data.subset}" if data.subset else data.repository
    what = f"data: {name}"
    folder = Path(datasets.config.HF_DATASETS_CACHE) / data.repository.replace("/", "___")
    files = hub.snapshot(data.repository, data.revision)
    if files is not None and all(tables.split_files(files, split, data.subset) for split in data.splits):
        return Line(OK, what, f"in the cache ({files.name[:8]})")
    if any(folder.glob(f"{data.subset or '*'}/**/*.arrow")):
        return Line(OK, what, "in the cache")
    if silence:
        return Line(NETWORK, what, f"columns {', '.join(data.columns)}", "or task.data_dir=/path/to/the/official/files")
    try:
        found = hub.look_up(data.repository, data.revision, "dataset")
        columns = hub.columns(data.repository, found, data.subset, data.splits)
    except HubProblem as problem:
        return _refused(what, problem, data.repository, "task.data_dir=")
    files = {n: size for n, size in found.files.items() if data.subset is None or data.subset in n.split("/")}
    sizes[name] = 2 * sum(size for n, size in files.items() if n.endswith(".parquet"))  # the files, and the copy that is read
    if columns is None:
        return Line(
            NOTE, what, f"@{found.commit[:8]}; neither card nor files name columns", "they are checked when a run starts"
        )
    for split in data.splits:
        missing = set(data.columns) - set(columns.get(split, ()))
        if split not in columns:
            return Line(TODO, what, f"no split {split!r}; it has {', '.join(columns)}", "task.data_dir=, or another revision")
        if missing:
            found_columns = ", ".join(columns[split])
            return Line(TODO, what, f"{split} has no column {min(missing)!r}; it has {found_columns}", "task.data_dir=")
    return Line(OK, what, f"@{found.commit[:8]}, {', '.join(data.columns)}")


def _refused(what: str, problem: HubProblem, repository: str, instead: str) -> Line:
    remedies = {
        "gated": f"ask for access at https://huggingface.co/{repository} and log in with `hf auth login`, or {instead}",
        "login": "`hf auth login` again, or unset HF_TOKEN",
        "missing": f"is the name right, and may this account see it (`hf auth whoami`)? Or {instead}",
        "network": _OFFLINE,
        "other": f"try again later, or {instead}",
    }
    return Line(NETWORK if problem.kind == "network" else TODO, what, str(problem), remedies[problem.kind])


def local_data(runs: Sequence[RunConfig]) -> list[Line]:
    """Tasks that read this machine's files: whether these are the expected ones, row by row where that takes seconds."""
    lines = []
    for run in _distinct(runs, "task"):
        task: Task = build(run.task, "task")
        folder = run.task.get("data_dir")
        if task.hub_data() is not None:
            continue
        if folder is None or task.synthetic:
            lines.append(Line(UNUSED, f"data: {task.name}", "made on this machine"))
            continue
        try:
            task.inspect()
            lines.append(Line(OK, f"data: {task.name}", str(folder)))
        except (DataError, OSError) as error:
            lines.append(Line(TODO, f"data: {task.name}", str(error), "task.data_dir=/path/to/the/official/files"))
    return lines


# Accounts


def tracker(runs: Sequence[RunConfig]) -> Line:
    online = [run for run in runs if issubclass(component(run.tracker, "tracker"), Wandb) and run.tracker["mode"] == "online"]
    if not online:
        return Line(UNUSED, "wandb login", "nothing is sent (tracker=none, or offline)")
    known = login()
    return Line(OK if known else TODO, "wandb login", known or "none", "" if known else "wandb login, or tracker.mode=offline")


def judging(questions: Sequence[QuestionSource], judge: JudgeSettings, silence: str | None, cache_dir: str) -> list[Line]:
    """The key of the judge (its name, never its value), and the official questions."""
    if not questions:
        return [Line(UNUSED, "judge", "no answers are graded")]
    present = bool(os.environ.get(judge.key_env, "").strip())
    remedy = "" if present else f"export {judge.key_env}=..., or judge.key_env= another variable's name"
    lines = [Line(OK if present else TODO, "judge key", f"{judge.key_env} is {'set' if present else 'not set'}", remedy)]
    for source in (source for source in questions if not source.synthetic):
        lines += [_questions(source, silence, cache_dir), _wording(source, judge.prompts, silence, cache_dir)]
    return lines


def _questions(source: QuestionSource, silence: str | None, cache_dir: str) -> Line:
    what, remedy = f"questions: {source.name}", "questions.data_dir=/path/to/it"
    files = [file for file in (source.files.questions, source.files.references) if file is not None]
    away = [file for file in files if source.data_dir is None and not cached(file, cache_dir)]
    if silence and away:
        return Line(NETWORK, what, away[0].url, f"or {remedy}")
    try:
        found = load_questions(source, cache_dir)
    except DataError as error:
        return Line(TODO, what, str(error), remedy)
    name = source.files.questions.names[0]
    return Line(OK, what, name if found.official else f"{name}, not the official one, which Tables 4 and 13 want")


def _wording(source: QuestionSource, choice: str, silence: str | None, cache_dir: str) -> Line:
    what, file = f"judge's wording: {source.name}", source.files.prompts.get(source.grading)
    here = file is not None and source.data_dir is not None and in_folder(file, source.data_dir) is not None
    if silence and file is not None and choice != "own" and not here and not cached(file, cache_dir):
        return Line(NETWORK, what, file.url, f"or {file.names[0]} in questions.data_dir, or judge.prompts=own")
    try:
        prompts = find_prompts(source, choice, cache_dir)
    except (ConfigError, DataError) as error:
        return Line(TODO, what, str(error), "judge.prompts=own, or the official file")
    if prompts.source != "official":
        return Line(NOTE, what, f"{prompts.source} wording", "Tables 4 and 13 take the official one alone")
    return Line(OK, what, file.names[0])


def _full(run: RunConfig) -> bool:
    return run.model.get("size") == "full"


def _distinct(runs: Iterable[RunConfig], group: str) -> list[RunConfig]:
    """One run for each different setting of a group."""
    return list({repr(getattr(run, group)): run for run in runs}.values())


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"some {seconds / length:,.0f} {unit}"
    return "a minute or two"


def describe(lines: Sequence[Line]) -> dict[str, Any]:
    """How many lines there are of each status."""
    return {status: sum(line.status == status for line in lines) for status in (OK, TODO, NETWORK, NOTE, UNUSED)}
