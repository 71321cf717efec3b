"""Memory of the GPU, and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import constants

from vera.checks.doctor.lines import OK, TODO, UNUSED, Line, Wanted, counts_of, distinct, full, gb, time
from vera.checks.doctor.sources import in_cache
from vera.config import RunConfig, build, component
from vera.config.facts import row_counts
from vera.models.base import Model
from vera.models.causal import CausalLM
from vera.tasks.images import Images

OPERATIONS_ON_A_CPU = 1e11  # a second, on some cores: to tell hours from weeks
LONG = 86400.0  # seconds of one run on a CPU from which a GPU is asked for
NF4 = 4.127 / 8  # bytes a weight: 4 bits and the scales, which are quantised too (QLoRA, section 3)
ADAM = 12  # bytes a trained value beside the value itself: gradient and two moments in float32
RECORD = 20_000  # bytes
CONTEXT = 1e9  # bytes that CUDA and its libraries take on a GPU for each process; a rough figure


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
    in_batch = tokens_in_batch(run)
    per_value = 2 if run.model.get("gradient_checkpointing") else 34
    activations = in_batch * width * layers * per_value
    if issubclass(component(run.model, "model"), CausalLM):
        activations += 12 * in_batch * full.get("vocab_size", 0)
    return {
        "weights": weights_bytes(run, backbone),
        "training": trained * (ADAM if trains_backbone else ADAM + 4),
        "activations": activations,
    }


def tokens_of(run: RunConfig) -> float:
    """Of the longest example, or of one on average where nothing cuts it; 0 where neither is known."""
    return run.task.get("max_length") or (run.task.get("facts") or {}).get("tokens", 0)


def tokens_in_batch(run: RunConfig) -> float:
    """Most tokens that are on the device at once, in training; an example beyond train.micro_batch_tokens is there alone."""
    tokens = tokens_of(run)
    every = (run.train.micro_batch_size or run.train.batch_size) * tokens
    return every if run.train.micro_batch_tokens is None else min(every, max(tokens, run.train.micro_batch_tokens))


def memory(wanted: Sequence[Wanted]) -> list[Line]:
    """Each model's largest need against the GPU that would be used."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    lines = []
    by_model: dict[str, list[Wanted]] = {}
    for item in wanted:
        by_model.setdefault(item.run.model["name"], []).append(item)
    needs_gpu = False
    for name, items in by_model.items():
        known = [(item, counts) for item in items if full(item.run) and (counts := counts_of(item)) is not None]
        if not known:
            lines.append(Line(UNUSED, f"memory: {name}", "a small model"))
            continue
        item, parts = max(((i, device_bytes(i.run, c)) for i, c in known), key=lambda pair: sum(pair[1].values()))
        need = sum(parts.values())
        about = f"{gb(need)} for {item.run.method['name']} ({', '.join(f'{k} {gb(v)}' for k, v in parts.items())}; rough)"
        longest = max((i.operations or 0.0) for i, _ in known) / OPERATIONS_ON_A_CPU
        if gpu is None or item.run.device == "cpu":
            slow = longest > LONG or item.run.model.get("quantisation") == "nf4"
            needs_gpu |= slow
            remedy = "a GPU" if slow else ""
            lines.append(
                Line(TODO if slow else OK, f"memory: {name}", f"{about}; on a CPU a run takes {time(longest)}", remedy)
            )
        elif need > gpu.total_memory:
            fixed = need - parts["activations"]
            examples = tokens_in_batch(item.run) / max(1.0, tokens_of(item.run))
            fitting = int(examples * (0.9 * gpu.total_memory - fixed) / max(1.0, parts["activations"]))
            remedy = f"train.micro_batch_size={fitting}" if fitting >= 1 else f"a GPU with more than {gb(need)}"
            lines.append(Line(TODO, f"memory: {name}", f"{about}; {gpu.name} has {gb(gpu.total_memory)}", remedy))
        else:
            at_once = int(0.9 * gpu.total_memory / (need + CONTEXT))
            several = (
                f", where {at_once} runs fit at once (workers={at_once * torch.cuda.device_count()})" if at_once > 1 else ""
            )
            lines.append(Line(OK, f"memory: {name}", f"{about}; {gpu.name} has {gb(gpu.total_memory)}{several}"))
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
        counted = counts_of(item) if model.source_kind == "hub" else None
        if counted is not None and model.checkpoint not in sizes and in_cache(model) is None:
            needs[Path(constants.HF_HUB_CACHE)] += counted["backbone"] * (2 if "quantisation" in item.run.model else 4)
    largest, unknown = 0.0, dict[str, None]()
    for item in wanted:
        needs[results] += item.seeds * RECORD
        counted = counts_of(item) if full(item.run) else None
        if counted is None:
            unknown[item.run.model["name"]] = None
        trained = 4.0 * (counted["adapter"] + counted.get("head", 0)) if counted else 0.0
        largest = max(largest, 3 * trained)  # the state of the one unfinished run: values and two moments
        needs[work] += item.seeds * 2 * trained * item.run.train.save  # best and last
    needs[work] += largest
    for run in distinct([item.run for item in wanted], "task"):
        task = build(run.task, "task")
        if isinstance(task, Images) and not task.synthetic:
            train, scored = row_counts(run.task)
            side = (run.model.get("full") or {}).get("image_size", 224)
            needs[cache] += 3 * side**2 * (scored + 5 * train)
    systems: dict[int, tuple[Path, float]] = {}
    for folder, need in needs.items():
        there = existing(folder)
        first, total = systems.get(there.stat().st_dev, (there, 0.0))
        systems[there.stat().st_dev] = (first, total + need)
    lines = []
    for device, (folder, need) in systems.items():
        free = shutil.disk_usage(folder).free
        without = ""
        if unknown and device == existing(work).stat().st_dev:
            without = f" without trained weights of {', '.join(unknown)}, whose sizes are not known"
        found = f"{gb(need)} wanted{without}, {gb(free)} free at {folder}"
        kept = f", or train.save=false ({gb(needs[work])} of it are trained weights)" if needs[work] > need / 2 else ""
        lines.append(
            Line(OK, "disk", found) if free > need else Line(TODO, "disk", found, f"free {gb(need - free)} there{kept}")
        )
    for key, folder in (("results_dir", results), ("work_dir", work), ("cache_dir", cache)):
        there = existing(folder)
        if not there.is_dir():
            lines.append(Line(TODO, "disk", f"{folder} cannot be written: {there} is no folder", f"{key}= another folder"))
        elif not os.access(there, os.W_OK):
            lines.append(Line(TODO, "disk", f"{folder} cannot be written", f"{key}= another folder"))
    return lines


def existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
