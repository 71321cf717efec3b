"""The whole paper as a list of runs: what every sweep would run, what is there, and what the rest would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from experiments.engine.aggregate import whole
from experiments.engine.render import DASH
from experiments.engine.sweeps import Cell
from vera.config import QUANTILES, RunConfig, TrainConfig
from vera.config.facts import row_counts
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.io.files import read_json
from vera.records.store import Store, stems

# In fp32 whatever the sweep says: in bf16 a tiny model gives every example the same output, and no correlation is defined.
REHEARSAL = ("scale=rehearsal", "train.precision=fp32")
TFLOPS = 50.0
PARTS = ("training", "padding", "evaluation", "decoding")
COLUMNS = ["Runs", "Done", "Failed", "Missing", "Rehearsed", *(part.capitalize() for part in PARTS), "GPU-hours left", "From"]


@dataclass
class Status:
    """Of one sweep or many: run names by state, and hours still to pay. A run is counted once however many sweeps want it."""

    wanted: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    rehearsed: int = 0
    hours: float | None = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    bases: set[str] = field(default_factory=set)

    @property
    def missing(self) -> int:
        return len(self.wanted - self.done - self.failed)


def rehearsal(overrides: Sequence[str]) -> list[str]:
    """The same run as a rehearsal. A miniature, which is a scale as well, keeps its model and task."""
    return [*(override for override in overrides if not override.startswith("scale=")), *REHEARSAL]


class Plan:
    """The state of cells against a results folder and a folder of rehearsals."""

    def __init__(self, results: Path, scratch: Path | None = None, tflops: float = TFLOPS):
        self.results, self.tflops = results, tflops
        self.store = Store(results)
        self.done, self.failed = set(self.store.names()), set(stems(self.store.failed))
        self.rehearsed = set(Store(scratch).names()) if scratch else set()

    def status(self, wanted: Sequence[Cell]) -> Status:
        """Of these cells together."""
        status = Status()
        rehearsals: set[str] = set()
        for cell in wanted:
            names = set(cell.names())
            new = names - status.wanted
            status.wanted |= names
            status.done |= names & self.done
            status.failed |= (names & self.failed) - self.done
            if self.rehearsed:
                trial = composed(rehearsal(cell.overrides))
                rehearsals |= {name for name, of in zip(cell.names(), cell.names(trial), strict=True) if of in self.rehearsed}
            left = len(new - self.done)
            if left:
                hours, basis = self.hours(cell)
                known = hours is not None and status.hours is not None
                status.hours = status.hours + left * sum(hours.values()) if known else None
                for part in PARTS:
                    status.parts[part] += left * (hours or {}).get(part, 0.0)
                status.bases.add(basis)
        status.rehearsed = len(rehearsals)
        return status

    def hours(self, cell: Cell) -> tuple[dict[str, float] | None, str]:
        """Hours of one run by part and where they come from: records of the same cell that did not collapse, which know no
        parts, of a GPU before those of a CPU; operation counts; or nothing."""
        costs = [
            record.cost
            for record in whole([self.store.read(self.store.path(name)) for name in cell.names() if name in self.done])
        ]
        on_gpu = [cost for cost in costs if cost.device != "cpu"]
        if costs:
            basis = "recorded" if on_gpu else "recorded on a CPU"
            return {"recorded": median(cost.seconds * cost.processes for cost in on_gpu or costs) / 3600}, basis
        operations = estimate(cell.run)
        if operations is None:
            return None, "unknown"
        return {part: count / (self.tflops * 1e12) / 3600 for part, count in operations.items()}, "operations"


def figures(status: Status) -> list[str]:
    """A status as printed under COLUMNS."""
    by_part = [_hours(value) if value else DASH for value in status.parts.values()]
    hours = DASH if status.hours is None else _hours(status.hours)
    counted = [len(status.wanted), len(status.done), len(status.failed), status.missing, status.rehearsed]
    return [*map(str, counted), *by_part, hours, ", ".join(sorted(status.bases)) or DASH]


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours < 100 else f"{hours:,.0f}"


def estimate(run: RunConfig) -> dict[str, float] | None:
    """Floating-point operations of a run's matrix products by PARTS; None for unknown sizes.

    A token costs 2 operations a weight in a forward pass (of a language model's output layer, too) and 4 T d a layer for
    attention over T tokens. Backward costs as much
    again for the activations, and once more for the weights where the whole backbone is trained; nothing where the head alone
    is. training: of the examples' own tokens; padding: what a batch of random examples adds to them in training (those of an
    evaluation are sorted by length); decoding: prompts and what is written after them, on every beam. The adapter itself is
    not counted, nor that a GPU is idle between operations: a lower bound.
    """
    facts, shape = run.task.get("facts") or {}, run.model.get("full") or run.model.get("architecture") or {}
    if not {"train_rows", "eval_rows", "tokens"} <= facts.keys() or not shape:
        return None
    width = shape.get("hidden_size", shape.get("n_embd"))
    layers = shape.get("num_hidden_layers", shape.get("n_layer"))
    inner = shape.get("intermediate_size", 4 * width)
    mlp = 3 if shape.get("family") == "llama" else 2
    words = shape.get("vocab_size", 0) if shape.get("family") in ("gpt2", "llama") else 0
    limit = run.task.get("max_length") or float("inf")

    def forward(tokens: float, context: float | None = None) -> float:
        """Of so many tokens, each of which attends to `context` positions."""
        a_layer = 2 * (4 * width**2 + mlp * width * inner) + 4 * (context or tokens) * width
        return tokens * (layers * a_layer + 2 * width * words)

    length, train = min(facts["tokens"], limit), run.train
    rows, scored = row_counts(run.task)
    reported = 0.0
    if not isinstance(held := run.task.get("validation", "dev"), str):  # a part of the training rows chooses the epoch
        rows, scored, reported = (1 - held) * rows, held * rows, scored
    examples = train.epochs * rows
    if train.max_steps is not None:
        examples = min(examples, train.max_steps * train.batch_size)
    epochs = min(train.epochs, math.ceil(examples / rows))
    evaluations = {"epoch": epochs, "last": 1}.get(str(train.evaluate)) or math.ceil(epochs / int(train.evaluate))
    if train.keep_features:
        examples, evaluations = min(examples, rows), 1
    trained = _passes(run) * examples
    padded = max(length, _padded([min(value, limit) for value in facts["lengths"]], train)) if "lengths" in facts else length
    decoding = run.task.get("decoding", {})
    beams, written = (decoding or {}).get("beams", 1), 0 if decoding is None else facts.get("written", 0)
    return {
        "training": trained * forward(length),
        "padding": trained * (forward(padded, length) - forward(length)),
        "evaluation": (evaluations * scored + reported) * forward(length),
        "decoding": facts.get("prompts", 0) * beams * forward(length, length) if written else 0.0,
    }


def _padded(quantiles: Sequence[float], train: TrainConfig) -> float:
    """Tokens of a training example with its padding: of a batch whose lengths lie evenly in their distribution, cut as the loop
    cuts it, into pieces that are each as long as their longest."""
    if len(quantiles) != len(QUANTILES):
        raise ConfigError(f"task.facts.lengths has {len(quantiles)} values, and there are {len(QUANTILES)} quantiles")
    count, size = train.batch_size, train.micro_batch_size or train.batch_size
    if train.micro_batch_tokens is None:
        return longest_of(quantiles, min(size, count))
    pieces: list[tuple[float, int]] = []  # length of the longest, examples
    for index in reversed(range(count)):
        if pieces and pieces[-1][1] < size and (pieces[-1][1] + 1) * pieces[-1][0] <= train.micro_batch_tokens:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1)
        else:
            pieces.append((float(np.interp(100 * (index + 0.5) / count, QUANTILES, quantiles)), 1))
    return sum(longest * examples for longest, examples in pieces) / count


def longest_of(quantiles: Sequence[float], count: int) -> float:
    """The expected largest of `count` random lengths, whose distribution is given at QUANTILES and linear in between:
    the integral of the quantile function over u^count."""
    shares = [percent / 100 for percent in QUANTILES]
    total = 0.0
    for (u, low), (v, high) in pairwise(zip(shares, quantiles, strict=True)):
        slope = (high - low) / (v - u)
        power = (v**count - u**count, count / (count + 1) * (v ** (count + 1) - u ** (count + 1)))
        total += (low - slope * u) * power[0] + slope * power[1]
    return total


def _passes(run: RunConfig) -> int:
    """How often a training step costs a forward pass."""
    return {"Head": 1, "Full": 3}.get(run.method["_target_"].rpartition(".")[2], 2)  # of other classes, something inside


def failure(results: Path, name: str) -> str:
    """Why a run failed, as its file in failed/ says."""
    try:
        return str(read_json((results / "failed" / f"{name}.json").read_bytes())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its file in failed/ cannot be read"
