"""The training loop. It knows parameters, batches and metrics; it does not know which method, model or task it runs."""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from vera import interrupt
from vera.config import RunConfig
from vera.errors import ConfigError, TrainingError
from vera.files import move_folder, write_atomic
from vera.methods.base import Method
from vera.models.base import Backbone
from vera.seeds import generator, seed_everything
from vera.tasks.base import Data, Final, Task
from vera.train import state
from vera.train.evaluate import finish, predict
from vera.train.optim import lr_factor, optimizer, set_lr

log = logging.getLogger(__name__)


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate for one run. precision "auto" is bf16 autocast on a GPU and fp32 elsewhere. Raises ConfigError."""
    gpu = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not gpu:
        raise ConfigError("device=cuda: this machine has no CUDA GPU that torch can use")
    AcceleratorState._reset_state(reset_partial_state=True)  # the last run of this sweep may have had another precision
    mixed = {"auto": "bf16" if gpu else "no", "bf16": "bf16", "fp32": "no"}[precision]
    accelerator = Accelerator(cpu=not gpu, mixed_precision=mixed)
    if accelerator.num_processes > 1:
        raise ConfigError(
            "one run uses one process; start the runs of a sweep as separate processes instead of a distributed one"
        )
    return accelerator


MicroBatch = tuple[float, dict[str, torch.Tensor]]  # its weight in the batch's mean loss, and the model's arguments


class Loop:
    """One run from a prepared model to its history. `work` holds the state of an unfinished run, and the best epoch.

    before_write: called before anything is written there; it raises when the run has become another worker's.
    """

    def __init__(
        self,
        run: RunConfig,
        backbone: Backbone,
        method: Method,
        task: Task,
        data: Data,
        work: Path,
        on_progress: Callable[[int, int, float | None], None] = lambda step, total, loss: None,
        on_log: Callable[[dict[str, float], int], None] = lambda values, step: None,
        before_write: Callable[[], None] = lambda: None,
    ):
        self.run, self.config = run, run.train
        self.backbone, self.method, self.task, self.data = backbone, method, task, data
        self.work, self.on_progress, self.on_log, self.before_write = work, on_progress, on_log, before_write
        self.accelerator = make_accelerator(run.device, run.train.precision)
        gc.collect()  # Accelerate ties a model of an earlier run into a cycle
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        backbone.model.to(self.accelerator.device).train()
        groups = method.parameter_groups(backbone)
        self.parameters = dict(groups["adapter"] + groups["head"])
        self.optimizer = optimizer(groups, run.train)
        self.model = self.accelerator.prepare(backbone.model)
        self.steps_per_epoch = -(-len(data.train) // run.train.batch_size)
        self.total = run.train.epochs * self.steps_per_epoch
        if run.train.max_steps is not None:
            self.total = min(self.total, run.train.max_steps)
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        self.history: list[dict[str, Any]] = []
        self.final = Final()
        self.spent: dict[str, Any] = {"seconds": 0.0, "examples": 0, "tokens": 0, "restarts": 0, "peak_memory_bytes": None}
        self._saving = 0.0

    def fit(self) -> None:
        """Train to the end, from the kept state when there is one. Raises TrainingError when the loss is not finite.

        A signal (vera.interrupt) ends it with a checkpoint after the step at hand, or in an evaluation at once.
        """
        seed_everything(self.run.seed, "dropout")
        self._resume()
        self._clock = time.monotonic()
        with interrupt.deferred():
            while self.step < self.total or self._unscored():
                if not self._unscored():
                    for batches in self._rest_of_epoch():
                        self._step(batches)
                        if self.step % self.steps_per_epoch and self.step < self.total:
                            self._checkpoint_when_due()
                self._end_epoch()
                self._checkpoint_when_due()
        self.spent["seconds"] += time.monotonic() - self._clock

    def _unscored(self) -> bool:
        """Whether an epoch is trained but not evaluated: it was interrupted in between."""
        ended = self.step > 0 and (self.step % self.steps_per_epoch == 0 or self.step == self.total)
        return ended and (not self.history or self.history[-1]["step"] < self.step)

    def _rest_of_epoch(self) -> Iterator[list[MicroBatch]]:
        """The epoch's remaining steps, each a list of micro-batches. The order depends on seed and epoch alone."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.data.train), generator=generator(self.run.seed, "order", epoch)).tolist()
        size = self.config.batch_size
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        steps = steps[done : done + self.total - self.step]
        # A generator of its own: otherwise every start of a loader would draw from the one that dropout uses.
        own = torch.Generator()
        return iter(DataLoader(self.data.train, batch_sampler=steps, collate_fn=self._micro_batches, generator=own))

    def _micro_batches(self, examples: list[Any]) -> list[MicroBatch]:
        """A batch in pieces that fit the memory, each with its weight in the batch's mean loss."""
        size = self.config.micro_batch_size or len(examples)
        if self.config.micro_batch_tokens is None:
            pieces = [examples[start : start + size] for start in range(0, len(examples), size)]
        else:
            pieces = similar_lengths(examples, self.task.length, self.config.micro_batch_tokens, size)
        batches = [self.data.collate(piece) for piece in pieces]
        weights = [self.task.weight(batch) for batch in batches]
        total = sum(weights) or 1
        return [(weight / total, batch) for weight, batch in zip(weights, batches, strict=True)]

    def _step(self, batches: list[MicroBatch]) -> None:
        set_lr(self.optimizer, lr_factor(self.step, self.total, self.config))
        self.method.on_step(self.backbone, self.step, self.total)
        loss_sum = torch.zeros_like(self.loss_sum)
        for weight, batch in batches:
            self.spent["examples"] += len(batch["labels"])
            self.spent["tokens"] += self.task.tokens(batch)
            batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            with self.accelerator.autocast():
                logits = self.model(**inputs).logits
            loss = weight * self.task.loss(logits, batch)
            self.accelerator.backward(loss)
            loss_sum += loss.detach()
        penalty = self.method.penalty(self.backbone)
        if penalty is not None:
            self.accelerator.backward(penalty)
        if self.config.clip:
            self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.config.clip)
        self.optimizer.step()
        self.method.after_step(self.backbone, self.step, self.total)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss_sum += loss_sum
        on_cpu = self.accelerator.device.type == "cpu"
        if on_cpu or self.step % 20 == 0 or self.step == self.total:
            value = loss_sum.item()
            if not torch.isfinite(self.loss_sum):
                raise TrainingError(f"the loss is {value} at step {self.step} of {self.total}; lower train.lr or train.head_lr")
            self.on_progress(self.step, self.total, value)
            self.on_log({"train/loss": value, "train/lr_factor": lr_factor(self.step, self.total, self.config)}, self.step)

    def _end_epoch(self) -> None:
        epoch = -(-self.step // self.steps_per_epoch)
        steps = self.step - (epoch - 1) * self.steps_per_epoch
        for name, parameter in self.parameters.items():
            if not torch.isfinite(parameter).all():
                raise TrainingError(f"{name} is not finite after epoch {epoch}; lower train.lr or train.head_lr")
        before = state.random_state()
        try:
            metrics = self._evaluate(epoch)
        except interrupt.Interrupted as left:
            if not left.again:
                self._checkpoint(before)
            raise interrupt.Interrupted(left.args[0], f"interrupted at step {self.step} of {self.total}", left.again) from None
        if self.step == self.total:
            self.before_write()
            for suffix, text in self.final.files.items():
                write_atomic(self.work / f"outputs.{suffix}", text)
        train_loss = self.loss_sum.item() / steps
        self.loss_sum.zero_()
        self.history.append({"epoch": epoch, "step": self.step, "train_loss": train_loss, "metrics": metrics})
        defined = {f"eval/{key}": value for key, value in metrics.items() if value is not None}
        self.on_log({**defined, "train/epoch_loss": train_loss}, self.step)
        if self.config.save and best_epoch(self.history, self.task.primary) == epoch:
            self._save("best")
        if self.config.save and self.step == self.total:
            self._save("last")

    def _evaluate(self, epoch: int) -> dict[str, float | None]:
        """The epoch's metrics, and after the last one the task's last word."""
        parts = (self.accelerator, self.backbone, self.method, self.task, self.data, self.config.eval_batch_size)
        kept, labels = predict(*parts)
        if not torch.isfinite(kept).all():
            raise TrainingError(f"predictions are not finite after epoch {epoch}; lower train.lr or train.head_lr")
        with interrupt.immediate():
            metrics = self.task.score(kept, labels)
        if self.step == self.total:
            self.final = finish(*parts)
            metrics = {**metrics, **self.final.metrics}
        return metrics

    def _save(self, name: str) -> None:
        self.before_write()
        self.work.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.work, prefix=f".{name}-"))
        try:
            self.method.save(self.backbone, scratch)
            scratch.chmod(0o755)
            move_folder(scratch, self.work / name)
        except OSError as error:
            raise TrainingError(f"{self.work / name} cannot be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _checkpoint_when_due(self) -> None:
        if interrupt.requested():
            self._checkpoint()
            interrupt.check(f"interrupted at step {self.step} of {self.total}")
        # A large state takes long to write: never more than a twentieth of the time.
        if time.monotonic() - self._clock >= max(self.config.checkpoint_seconds, 20 * self._saving):
            self._checkpoint()

    def _checkpoint(self, generators: Any = None) -> None:
        """Write the state, with the random generators as they are now or as they were."""
        self.before_write()
        now = time.monotonic()
        self.spent["seconds"] += now - self._clock
        self.spent["peak_memory_bytes"] = self._peak_memory()
        progress = {
            **self._sources(),
            "step": self.step,
            "loss_sum": self.loss_sum.item(),
            "history": self.history,
            "final": asdict(self.final),
            "spent": self.spent,
        }
        kept = {"trained": self.method.trained(self.backbone), "method": self.method.state(self.backbone)}
        state.save(self.work, progress, kept, self.parameters, self.optimizer, generators)
        self._clock = time.monotonic()
        self._saving = self._clock - now

    def _sources(self) -> dict[str, str]:
        """What an unfinished run must have in common with the one that goes on from it."""
        return {
            "cell_id": self.run.cell_id,
            "model_fingerprint": self.backbone.fingerprint,
            "data_fingerprint": self.data.fingerprint,
        }

    def _peak_memory(self) -> int | None:
        """The allocator's peak on a GPU over all starts of the run; None on a CPU."""
        if self.accelerator.device.type != "cuda":
            return None
        return max(self.spent["peak_memory_bytes"] or 0, torch.cuda.max_memory_allocated())

    def _resume(self) -> None:
        found = state.load(self.work, self.parameters, self.optimizer)
        if found is None:
            return
        progress, kept = found
        for key, value in self._sources().items():
            if progress.get(key) != value:
                raise TrainingError(f"{self.work} holds the state of another run (its {key} differs); delete it to start again")
        self.method.restore(self.backbone, kept["trained"])
        self.method.restore_state(self.backbone, kept["method"])
        self.step, self.history, self.spent = progress["step"], progress["history"], progress["spent"]
        self.final = Final(**progress["final"])
        self.spent["restarts"] += 1
        self.loss_sum.fill_(progress["loss_sum"])
        log.info("resuming at step %d of %d", self.step, self.total)

    def cost(self) -> dict[str, Any]:
        """The record's cost."""
        gpu = self.accelerator.device.type == "cuda"
        return {
            **self.spent,
            "steps": self.step,
            "peak_memory_bytes": self._peak_memory(),
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "precision": "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            "threads": torch.get_num_threads(),
        }


def similar_lengths(examples: list[Any], length: Callable[[Any], int], tokens: int, size: int) -> list[list[Any]]:
    """The examples in pieces of similar length, longest first: at most `tokens` after padding, at most `size` examples.

    An example longer than `tokens` is a piece of its own.
    """
    pieces: list[list[Any]] = []
    for example in sorted(examples, key=length, reverse=True):
        fits = pieces and len(pieces[-1]) < size and (len(pieces[-1]) + 1) * length(pieces[-1][0]) <= tokens
        if fits:
            pieces[-1].append(example)
        else:
            pieces.append([example])
    return pieces


def best_epoch(history: list[dict[str, Any]], metric: str) -> int | None:
    """The first epoch with the highest value of a metric; None while none has one: undefined, or computed at the end only."""
    scored = [(entry["metrics"][metric], -entry["epoch"]) for entry in history if entry["metrics"].get(metric) is not None]
    return -max(scored)[1] if scored else None
