"""What one GPU shows in one go (vera gpu-proof): tests, the cases of the bench, Table 12, a whole epoch, and where its time
goes. Made so that torch, transformers, peft and accelerate are enough; what else is missing is said, and left out."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import RobertaForSequenceClassification

from bench.cases import NeedsMore, Row, timed, trainer
from bench.measure import alternate, clock, load_average
from vera.tasks.base import padded_length

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("hydra", "datasets", "evaluate", "wandb", "bitsandbytes")  # what a machine may lack


def missing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (name in sys.modules and sys.modules[name] is None) or not importlib.util.find_spec(name)]


def tests() -> str:
    """pytest's last line on the tests marked gpu. Raises NeedsMore where pytest is not there, RuntimeError where one fails."""
    if missing(("pytest",)):
        raise NeedsMore("pytest")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-m", "gpu", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "VERA_GPU_TOY": "1"})
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode:
        raise RuntimeError("; ".join([line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-3:]))
    return lines[-1]


def rte_shaped(method: str, toy: bool, examples: int | None = None, longest: int = 16, **train: Any) -> Any:
    """What a Loop is made of: run, backbone, method, task and data, of RoBERTa-base's and RTE's shapes (toy: of a tiny model)
    with random weights, tokens and labels. The lengths are those of RTE's training examples (toy: up to `longest`)."""
    from bench.plain import run_of
    from vera.config import QUANTILES, build
    from vera.models.base import Backbone
    from vera.models.tiny import architecture
    from vera.tasks.base import Data, Task

    run = run_of("roberta_base", "rte", method, **{f"train__{key}": value for key, value in train.items()})
    model_config, built = build(run.model, "model"), build(run.method, "method")
    shape = {**run.model["tiny"], "vocab_size": 257} if toy else dict(run.model["full"])
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(architecture({**shape, "max_position_embeddings": 514}))
    backbone = Backbone(model, None, ("classifier",), "random weights", None, "random")
    built.attach(backbone, model_config)
    draws = np.random.default_rng(0)
    facts = run.task["facts"]
    count = examples or facts["train_rows"]
    lengths = np.interp(100 * draws.random(count), QUANTILES, facts["lengths"]).astype(int).clip(2, longest if toy else None)
    rows = [{"input_ids": draws.integers(3, shape["vocab_size"], n).tolist(), "labels": int(n % 2)} for n in lengths]

    class Shaped(Task):
        @property
        def outputs(self) -> int:
            return 2

        def score(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float | None]:
            return {"accuracy": (logits.argmax(-1) == labels).float().mean().item()}

    task = Shaped(name="rte", version=1, primary="accuracy")
    held = rows[: facts["eval_rows"]]
    data = Data(rows, held, padded, "random tokens", None, "random", lengths=[len(row["input_ids"]) for row in held])
    return run.model_copy(update={"device": "auto"}), backbone, built, task, data


def padded(examples: list[dict[str, Any]], multiple: int = 1) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, padded to the longest."""
    longest = padded_length((len(example["input_ids"]) for example in examples), multiple, None)
    ids = torch.full((len(examples), longest), 1)
    mask = torch.zeros_like(ids)
    for index, example in enumerate(examples):
        ids[index, : len(example["input_ids"])] = torch.tensor(example["input_ids"])
        mask[index, : len(example["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([example["labels"] for example in examples])}


def loop_of(toy: bool, folder: str, **changes: Any) -> Any:
    from vera.train.loop import Loop

    changes = {"epochs": 1, "save": False, "batch_size": 8 if toy else 64, **changes}
    run, *parts = rte_shaped("vera", toy, examples=24 if toy else None, **changes)
    return Loop(run, *parts, work=Path(folder) / "work")


def epoch(loop: Any) -> Callable[[], None]:
    """The steps of one epoch, with what builds their batches."""

    def call() -> None:
        loop.step = 0
        for batches in loop.batches.after(loop.step, loop.total):
            loop._step(batches)

    return call


def trained_by_trainer(loop: Any, folder: str, device: str) -> tuple[Callable[[], None], dict[str, Any]]:
    """The same epoch by transformers' Trainer with PEFT's VeRA, and its settings: those of its own that make it fast."""
    from transformers import TrainingArguments

    torch.manual_seed(0)
    model = RobertaForSequenceClassification(loop.backbone.model.config)
    known = TrainingArguments.__dataclass_fields__
    fast: dict[str, Any] = (
        {"group_by_length": True} if "group_by_length" in known else {"train_sampling_strategy": "group_by_length"}
    )
    gpu = device == "cuda"
    fast |= {
        "dataloader_num_workers": 4 if gpu else 0,
        "dataloader_persistent_workers": gpu,
        "dataloader_pin_memory": gpu,
        "optim": "adamw_torch_fused" if gpu else "adamw_torch",
    }
    train = loop.run.train
    given = {"per_device_train_batch_size": train.batch_size, "num_train_epochs": 1, "learning_rate": train.lr, **fast}
    call = trainer(model, loop.run.method["rank"], loop.data.train, _to_eights, folder, device, **given)
    return call, {**fast, "bf16": gpu, "padded to a multiple of": 8}


def _to_eights(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return padded(examples, 8)


def whole_epoch(device: str, rounds: int, toy: bool) -> tuple[list[Row], dict[str, Any]]:
    """An epoch by our loop, on a GPU also by its CUDA graphs, and by the Trainer, in turns; and of our epochs how long the GPU
    was idle, and what it did."""
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_of(toy, folder)
        calls = {"ours": epoch(loop)}
        if device == "cuda":
            calls["graphs"] = epoch(loop_of(toy, folder, cuda_graphs=True))
        calls["Trainer"], settings = trained_by_trainer(loop, folder, device)
        seconds = alternate(calls, rounds, device)
        looked: dict[str, Any] = looked_at(calls["ours"], device)
        if "graphs" in calls:
            looked["cuda_graphs"] = looked_at(calls["graphs"], device)
    shapes = f"RoBERTa-base, r=1024, {len(loop.data.train)} examples of RTE's lengths, batch {loop.run.train.batch_size}"
    whats = {"ours": "an epoch", "graphs": "an epoch with train.cuda_graphs"}
    rows = [
        timed("p", f"{what} / Trainer + PEFT VeRA", seconds, side, "Trainer", shapes, None)
        for side, what in whats.items()
        if side in calls
    ]
    return [{**row, "load_average": load_average()} for row in rows], {**looked, "trainer": settings, "shapes": shapes}


def looked_at(call: Callable[[], None], device: str) -> dict[str, Any]:
    """The share of a call's time in which the GPU computed nothing (None without one), and its kernels by time. The time is
    that of a call without the profiler, whose start alone takes seconds, and which slows the CPU."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU  # not both: to note the CPU's slows it
    call()  # what is done once for each new shape is no part of it
    began = clock(device)
    call()
    wall = clock(device) - began
    with profile(activities=[activity]) as profiler:
        call()
        clock(device)
    kernels = [e for e in profiler.events() if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    spent: dict[str, float] = {}
    for event in kernels:
        spent[event.name] = spent.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e6
    busy = sum(end - start for start, end in _joined(sorted((e.time_range.start, e.time_range.end) for e in kernels))) / 1e6
    names = sorted(spent, key=lambda name: -spent[name])[:12]
    return {
        "seconds": wall,
        "idle": 1 - busy / wall if kernels else None,
        "kernels": {name[:120]: spent[name] for name in names},
    }


def _joined(intervals: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Intervals that do not overlap, from sorted ones."""
    for index, (start, end) in enumerate(intervals):
        if index == 0:
            low, high = start, end
        elif start > high:
            yield low, high
            low, high = start, end
        else:
            high = max(high, end)
    if intervals:
        yield low, high


def step_profile(device: str, toy: bool) -> dict[str, Any]:
    """One training step after three others: its time, what the GPU did of it, and how long it was idle."""
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_of(toy, folder)
        batches = iter(loop.batches.after(loop.step, loop.total))
        for _ in range(2 if toy else 3):
            loop._step(next(batches))
        step = next(batches)
        return looked_at(lambda: loop._step(step), device)
