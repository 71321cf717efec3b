"""The whole paper as a list of runs: what every sweep would run, what is there, and what the rest would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from experiments.engine.accounting import counts
from experiments.engine.render import DASH
from experiments.engine.sweeps import Cell
from vera.config import RunConfig
from vera.config.memory import composed
from vera.io.files import read_json
from vera.records.record import parse
from vera.records.store import stems

# In fp32 whatever the sweep says: in bf16 a tiny model gives every example the same output, and no correlation is defined.
REHEARSAL = ("scale=rehearsal", "train.precision=fp32")
TFLOPS = 50.0
COLUMNS = ["Runs", "Done", "Failed", "Missing", "Rehearsed", "GPU-hours left", "From"]


@dataclass
class Status:
    """Of one sweep or many: run names by state, and hours still to pay. A run is counted once however many sweeps want it."""

    wanted: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    rehearsed: int = 0
    hours: float | None = 0.0
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
        self.done, self.failed = set(stems(results / "runs")), set(stems(results / "failed"))
        self.rehearsed = set(stems(scratch / "runs")) if scratch else set()

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
            if left and status.hours is not None:
                hours, basis = self.hours(cell)
                status.hours = None if hours is None else status.hours + left * hours
                status.bases.add(basis)
        status.rehearsed = len(rehearsals)
        return status

    def hours(self, cell: Cell) -> tuple[float | None, str]:
        """Hours of one run and where the figure comes from: records of the same cell, operation counts, or nothing."""
        seconds = [self._seconds(name) for name in cell.names() if name in self.done]
        if seconds:
            return median(seconds) / 3600, "recorded"
        operations = estimate(cell.run)
        return (None, "unknown") if operations is None else (operations / (self.tflops * 1e12) / 3600, "operations")

    def _seconds(self, name: str) -> float:
        """Of all devices together."""
        path = self.results / "runs" / f"{name}.json"
        cost = parse(path.read_bytes(), str(path)).cost
        return cost.seconds * cost.processes


def figures(status: Status) -> list[str]:
    """A status as printed under COLUMNS."""
    hours = DASH if status.hours is None else f"{status.hours:.1f}" if status.hours < 100 else f"{status.hours:,.0f}"
    counted = [len(status.wanted), len(status.done), len(status.failed), status.missing, status.rehearsed]
    return [*map(str, counted), hours, ", ".join(sorted(status.bases)) or DASH]


def estimate(run: RunConfig) -> float | None:
    """Floating-point operations of a run's matrix products: training and one evaluation an epoch; None for unknown sizes.

    A token costs 2 operations a weight in a forward pass and 4 T d a layer for attention over T tokens. Backward costs as much
    again for the activations, and once more for the weights where the whole backbone is trained; nothing where the head alone
    is. Padding, the adapter itself and the decoding of text are not counted, so this is a lower bound.
    """
    facts, shape = run.task.get("facts") or {}, run.model.get("full") or run.model.get("architecture") or {}
    if not {"train_rows", "eval_rows", "tokens"} <= facts.keys() or not shape:
        return None
    width = shape.get("hidden_size", shape.get("n_embd"))
    layers = shape.get("num_hidden_layers", shape.get("n_layer"))
    inner = shape.get("intermediate_size", 4 * width)
    mlp = 3 if shape.get("family") == "llama" else 2
    length = min(facts["tokens"], run.task.get("max_length") or facts["tokens"])
    forward = length * layers * (2 * (4 * width**2 + mlp * width * inner) + 4 * length * width)
    epochs = run.train.epochs
    train_rows, scored = facts["train_rows"], epochs * facts["eval_rows"]
    if not isinstance(held := run.task.get("validation", "dev"), str):
        train_rows, scored = (1 - held) * train_rows, epochs * held * train_rows + facts["eval_rows"]
    examples = epochs * train_rows
    if run.train.max_steps is not None:
        examples = min(examples, run.train.max_steps * run.train.batch_size)
    return forward * (_passes(run) * examples + scored)


def _passes(run: RunConfig) -> int:
    counted = counts().get(f"model={run.model['name']} method={run.method['name']}")
    if counted is None:
        return 2
    return 1 if counted["adapter"] == 0 else 3 if counted["adapter"] >= counted["backbone"] else 2


def failure(results: Path, name: str) -> str:
    """Why a run failed, as its file in failed/ says."""
    try:
        return str(read_json((results / "failed" / f"{name}.json").read_bytes())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its file in failed/ cannot be read"
