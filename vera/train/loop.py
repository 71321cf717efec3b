"""The training loop. It knows parameters, batches and metrics; it does not know which method, model or task it runs."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vera.config import RunConfig
from vera.errors import Collapsed, ConfigError, TrainingError
from vera.io.files import move_folder, write_atomic
from vera.methods.base import Method
from vera.models import reuse
from vera.models.attention import allow_cudnn
from vera.models.base import Backbone
from vera.records import interrupt, screen
from vera.records.kept import weights_hash
from vera.records.sources import noted
from vera.seeds import seed_everything
from vera.tasks.base import Data, Final, Task, given
from vera.train import features, state
from vera.train.batches import Batches, MicroBatch
from vera.train.evaluate import finish, predict, to_training
from vera.train.graphs import Graphs, check_recordable
from vera.train.numerics import make_accelerator, precision_of, set_numerics
from vera.train.optim import lr_factor, optimizer, set_lr
from vera.train.processes import together
from vera.train.shard import average_gradients, shard

log = logging.getLogger(__name__)


# Keys of train that decide no more than how a batch is computed: the last digits, and what dropout draws.
PIECES = ("micro_batch_size", "micro_batch_tokens", "eval_batch_size", "deterministic", "cuda_graphs")


class Loop:
    """One run from a prepared model to its history. `work` holds the state of an unfinished run, and the best epoch.

    Several processes (vera.train.processes) each compute their share of every batch and of every evaluation; the gradient is
    that of the whole batch's mean loss, so all hold the same weights. Only the main one writes.

    before_write: called by the main process before anything is written; it raises when the run has become another worker's.
    ran: what the record is to say of this start: when it was (started) and which code runs (git_sha, git_dirty, versions and
    own_code).
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
        ran: dict[str, Any] | None = None,
    ):
        self.run, self.config = run, run.train
        self.backbone, self.method, self.task, self.data = backbone, method, task, data
        self.work, self.on_progress, self.on_log, self.before_write = work, on_progress, on_log, before_write
        self.processes = together(run.device)
        self.processes.on_main(lambda: None)  # none waits in the next collective, which has a time limit, for one still loading
        self.accelerator = make_accelerator(run.device, run.train.precision)
        if run.train.cuda_graphs:
            check_recordable(self.accelerator.device, self.processes.count, method)
        set_numerics(run.train)
        allow_cudnn(data.lengths is None)  # where all are equal
        gc.collect()  # Accelerate ties a model of an earlier run into a cycle
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        groups = method.parameter_groups(backbone)
        self.parameters = dict(groups["adapter"] + groups["head"])
        if self.processes.sharded:
            if data.prompts:
                raise ConfigError(f"task={task.name} writes texts, which one process does; leave --use_fsdp out")
            reuse.forget()
            shard(backbone.model, self.parameters.values(), self.accelerator.device)
        else:
            reuse.to(backbone.model, self.accelerator.device)
        to_training(backbone.model)
        self.optimizer = optimizer(groups, run.train)
        self.computed = backbone  # what a batch goes through
        self._took = 0.0
        if run.train.keep_features:
            if self.processes.sharded:
                raise ConfigError("train.keep_features=true computes the backbone once in each process; leave --use_fsdp out")
            began, size = time.monotonic(), run.train.eval_batch_size
            self.computed, self.data = features.kept(backbone, method, data, size, self.accelerator.autocast)
            self._took = time.monotonic() - began
        self.model = self.computed.model if self.processes.sharded else self._prepared(self.computed.model)
        self.graphs = Graphs(self.model, self.parameters.values(), self._logits) if run.train.cuda_graphs else None
        self.batches = Batches(run, task, self.data, self.processes, self.accelerator.device)
        self.steps_per_epoch = self.batches.per_epoch
        self.total = run.train.epochs * self.steps_per_epoch
        if run.train.max_steps is not None:
            self.total = min(self.total, run.train.max_steps)
        self.step = 0
        self.started = {"step": 0, **(ran or {}), **self._worked(), **{key: getattr(self.config, key) for key in PIECES}}
        self.earlier: list[dict[str, Any]] = []  # the same of each earlier start that this one goes on from
        # Of this process's share of the batches: summed over the processes when they are told.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        self.counted = {"examples": 0, "tokens": 0}
        self.history: list[dict[str, Any]] = []
        self.final = Final()
        self.collapsed: str | None = None
        self.weights: dict[str, str] = {}  # hashes of what was kept
        self.chosen: dict[str, torch.Tensor] = {}  # what is trained, as it was at the best epoch, where there is a test set
        self.test: dict[str, float | None] | None = None  # metrics of the test set at the best epoch
        self.spent: dict[str, Any] = {"seconds": 0.0, "examples": 0, "tokens": 0, "restarts": 0, "peak_memory_bytes": None}
        self._saving = 0.0
        self._clock = time.monotonic()
        self._urgency = 0

    def _prepared(self, model: nn.Module) -> nn.Module:
        with warnings.catch_warnings():  # torch has a newer name for broadcast_buffers, which Accelerate does not know yet
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            return self.accelerator.prepare(model)

    def fit(self) -> None:
        """Train to the end, from the kept state when there is one; `collapsed` then says why it came too soon, if it did.

        A signal (vera.records.interrupt) ends it with a checkpoint after the step at hand, or in an evaluation at once.
        """
        seed_everything(self.run.seed, "dropout", self.processes.rank)
        self._resume()
        self._clock = time.monotonic() - self._took
        with interrupt.deferred(), self._until_collapsed():
            while self.step < self.total or self._unscored():
                if not self._unscored():
                    if self.graphs is not None:
                        self.graphs.check()
                    for batches in self.batches.after(self.step, self.total):
                        self._step(batches)
                        if self.step % self.steps_per_epoch and self.step < self.total:
                            self._checkpoint_when_due(self._urgency)
                self._end_epoch()
                self._checkpoint_when_due(self._agree())
            if self.data.test is not None:
                self._checkpoint()  # before what may take long, and is done with the best epoch's weights
                self._score_test(self.data.test)
        self.spent["seconds"] += time.monotonic() - self._clock
        self._settle()
        if (left := self.unreached()) and self.processes.main:
            log.warning(
                "%s: nothing that is scored depends on %d of the %d trained tensors, such as %s",
                *(self.run.run_name, len(left), len(self.parameters), left[0]),
            )

    def unreached(self) -> list[str]:
        """Trainable parameters on which no loss depended, such as those of an adapter on a layer that the model never calls."""
        state = self.optimizer.state
        return [name for name, parameter in self.parameters.items() if state and not state.get(parameter)]

    def _all_reached(self) -> None:
        """Several processes wait for the gradient of every trained parameter. Raises ConfigError."""
        left = [name for name, parameter in self.parameters.items() if parameter.grad is None]
        if left:
            raise ConfigError(
                f"nothing that is scored depends on {len(left)} of the {len(self.parameters)} trained tensors, such as "
                f"{left[0]}, and several processes would wait for its gradient: leave its layer out (method.targets), or use "
                "one process"
            )

    @contextlib.contextmanager
    def _until_collapsed(self) -> Iterator[None]:
        try:
            yield
        except Collapsed as reason:  # in all processes alike
            self.collapsed = str(reason)

    def _unscored(self) -> bool:
        """Whether an epoch is trained and to be evaluated, but is not: it was interrupted in between."""
        ended = self.step > 0 and (self.step % self.steps_per_epoch == 0 or self.step == self.total)
        return ended and self._evaluated() and (not self.history or self.history[-1]["step"] < self.step)

    def _evaluated(self) -> bool:
        """Whether train.evaluate wants the epoch scored that ends with this step. The last one always is."""
        if self.step == self.total or self.config.evaluate == "epoch":
            return True
        return self.config.evaluate != "last" and self._epoch() % int(self.config.evaluate) == 0

    def _epoch(self) -> int:
        """The epoch that the last step belongs to, from 1."""
        return -(-self.step // self.steps_per_epoch)

    def _step(self, batches: list[MicroBatch]) -> None:
        factor = lr_factor(self.step, self.total, self.config)
        set_lr(self.optimizer, factor)
        self.method.on_step(self.backbone, self.step, self.total, factor * self.config.lr)
        loss_sum = torch.zeros_like(self.loss_sum)
        for index, (weight, batch) in enumerate(batches, start=1):
            if weight is not None:
                self.counted["examples"] += len(batch["labels"])
                self.counted["tokens"] += self.task.tokens(batch)
            batch = self.data.arrived(batch, self.accelerator.device)
            last = index == len(batches) or self.processes.sharded
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                logits = (self.graphs or self._logits)(given(batch))
                loss = (weight or 0.0) * self.task.loss(logits, batch)
                self.accelerator.backward(loss * self.processes.count)
            loss_sum += loss.detach()
            del logits, loss  # and with them the graph, before another piece is recorded
        if self.processes.sharded:
            average_gradients(self.parameters.values())
        elif self.processes.count > 1 and self.step == self.started["step"]:
            self._all_reached()
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
        self._urgency = self._agree(loss_sum if on_cpu or self.step % 20 == 0 or self.step == self.total else None)

    def _logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.accelerator.autocast():
            return self.model(**inputs).logits

    def _agree(self, loss: torch.Tensor | None = None) -> int:
        """The one exchange of a step with the other processes. Its loss, where it is told, must be finite. Returned is how
        urgent a checkpoint is to any of them: 1 it is due, 2 then leave."""
        # A large state takes long to write: never more than a twentieth of the time.
        due = time.monotonic() - self._clock >= max(self.config.checkpoint_seconds, 20 * self._saving)
        own = (0.0, 0.0) if loss is None else (loss.item(), self.loss_sum.item())
        value, loss_sum, due_in, asked_in = self.processes.sum(*own, float(due), float(interrupt.requested()))
        if loss is not None:
            if not math.isfinite(loss_sum):
                raise Collapsed(f"the loss is {value} at step {self.step} of {self.total}; lower train.lr or train.head_lr")
            self.on_progress(self.step, self.total, value)
            self.on_log({"train/loss": value, "train/lr_factor": lr_factor(self.step, self.total, self.config)}, self.step)
        return 2 if asked_in else int(due_in > 0)

    def _end_epoch(self) -> None:
        epoch = self._epoch()
        steps = self.step - (epoch - 1) * self.steps_per_epoch
        broken = [name for name, parameter in self.parameters.items() if not torch.isfinite(parameter).all()]
        if self.processes.any(bool(broken)):
            first = broken[0] if broken else "a parameter"
            raise Collapsed(f"{first} is not finite after epoch {epoch}; lower train.lr or train.head_lr")
        if not self._evaluated():
            self._close_epoch(steps)
            return
        before = state.generators()
        try:
            metrics = self._evaluate(epoch)
        except interrupt.Interrupted as left:
            if not left.again and self.processes.count == 1:  # several are not at the same point now
                self._checkpoint(before)
            raise interrupt.Interrupted(left.args[0], f"interrupted at step {self.step} of {self.total}", left.again) from None
        train_loss = self._close_epoch(steps)
        self.history.append({"epoch": epoch, "step": self.step, "train_loss": train_loss, "metrics": metrics})
        primary = self.task.primary
        screen.scored(epoch, -(-self.total // self.steps_per_epoch), primary, metrics.get(primary))
        defined = {f"eval/{key}": value for key, value in metrics.items() if value is not None}
        if defined:
            self.on_log(defined, self.step)
        best = best_epoch(self.history, self.task.primary) == epoch
        if best and self.data.test is not None:
            self.chosen = {name: tensor.clone() for name, tensor in self.method.trained(self.backbone).items()}
        if self.config.save and best:
            self._save("best")
        if self.config.save and self.step == self.total:
            self._save("last")

    def _close_epoch(self, steps: int) -> float:
        """The mean loss of the epoch's steps, told and no longer summed."""
        train_loss = self.processes.sum(self.loss_sum.item())[0] / steps
        self.loss_sum.zero_()
        self.on_log({"train/epoch_loss": train_loss}, self.step)
        return train_loss

    def _evaluate(self, epoch: int) -> dict[str, float | None]:
        """The epoch's metrics, and after the last one the task's last word."""
        metrics = self._scored(self.data, f"after epoch {epoch}")
        if self.step == self.total:
            parts = (self.computed, self.method, self.task, self.data, self.config.eval_batch_size)
            self.final = Final(**self.processes.on_main(lambda: self._finish(*parts)))
            metrics = {**metrics, **self.final.metrics}
        return metrics

    def _scored(self, data: Data, when: str) -> dict[str, float | None]:
        parts = (self.computed, self.method, self.task, data, self.config.eval_batch_size)
        kept, labels = predict(self.accelerator, self.processes, *parts)
        if not torch.isfinite(kept).all():
            raise Collapsed(f"predictions are not finite {when}; lower train.lr or train.head_lr")
        with interrupt.immediate():
            return self.processes.on_main(lambda: self.task.score(kept, labels))

    def _score_test(self, test: Sequence[Any]) -> None:
        """The test set at the best epoch's weights; the last epoch's are put back."""
        last = {name: tensor.clone() for name, tensor in self.method.trained(self.backbone).items()}
        self.method.restore(self.backbone, self.chosen or last)
        self.test = self._scored(replace(self.data, evaluation=test, lengths=self.data.test_lengths), "on the test set")
        self.method.restore(self.backbone, last)
        self.on_log({f"test/{key}": value for key, value in self.test.items() if value is not None}, self.step)

    def _finish(self, *parts: Any) -> dict[str, Any]:
        """The main process alone: texts are written once, whatever the number of processes."""
        final = finish(self.accelerator, *parts)
        self.before_write()
        for suffix, text in final.files.items():
            write_atomic(self.work / f"outputs.{suffix}", text)
        return asdict(final)

    def _save(self, name: str) -> None:
        if self.processes.sharded and not self.processes.main:
            with tempfile.TemporaryDirectory() as scratch:  # what is said of the frozen weights needs all their parts
                self.method.save(self.backbone, Path(scratch))
        self.weights[name] = self.processes.on_main(lambda: self._write(name))

    def _write(self, name: str) -> str:
        """The hash of what is written, taken before another run of a shared work_dir could replace it."""
        self.before_write()
        self.work.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.work, prefix=f".{name}-"))
        try:
            self.method.save(self.backbone, scratch)
            scratch.chmod(0o755)
            written = weights_hash(scratch)
            move_folder(scratch, self.work / name)
        except OSError as error:
            raise TrainingError(f"{self.work / name} cannot be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return written

    def _checkpoint_when_due(self, urgency: int) -> None:
        """Of `_agree`: asked in any process, all leave."""
        if urgency:
            self._checkpoint()
        if urgency == 2:
            interrupt.leave(f"interrupted at step {self.step} of {self.total}")

    def _checkpoint(self, generators: dict[str, torch.Tensor] | None = None) -> None:
        """Write the state, with the random generators as they are now or as they were."""
        now = time.monotonic()
        self.spent["seconds"] += now - self._clock
        self._settle()
        progress = {
            **self._sources(),
            "step": self.step,
            "history": self.history,
            "final": asdict(self.final),
            "spent": self.spent,
            "weights": self.weights,
            "starts": [*self.earlier, self.started],
        }
        trained = self.method.trained(self.backbone)
        kept = {"trained": trained, "chosen": self.chosen, "method": self.method.state(self.backbone)}
        own = self.processes.gather({"loss_sum": self.loss_sum, **(generators or state.generators())})

        def write() -> None:
            self.before_write()
            state.save(self.work, progress, kept, self.parameters, self.optimizer, own)

        self.processes.on_main(write)
        self._clock = time.monotonic()
        self._saving = self._clock - now

    def _settle(self) -> None:
        """Bring `spent` up to date with what all processes have counted."""
        examples, tokens = self.processes.sum(*self.counted.values())
        self.spent["examples"] += int(examples)
        self.spent["tokens"] += int(tokens)
        self.counted = dict.fromkeys(self.counted, 0)
        if any(start.get("cuda_graphs") for start in (*self.earlier, self.started)):
            self.spent["peak_memory_bytes"] = None  # of a replay the allocator sees nothing
        elif self.accelerator.device.type == "cuda":
            peak = self.processes.max(torch.cuda.max_memory_allocated())
            self.spent["peak_memory_bytes"] = max(self.spent["peak_memory_bytes"] or 0, int(peak))

    def _sources(self) -> dict[str, str]:
        """What an unfinished run must have in common with the one that goes on from it."""
        return {
            "cell_id": self.run.cell_id,
            "model_fingerprint": self.backbone.fingerprint,
            "data_fingerprint": self.data.fingerprint,
            **noted(self.backbone.notes),
            **noted(self.data.notes),
        }

    def _resume(self) -> None:
        found = state.load(self.work, self.parameters, self.optimizer, self.processes.rank, self.processes.count)
        if self.processes.any(found is None):
            if self.processes.any(found is not None):
                raise TrainingError(f"{self.work} holds a state that not every process sees; work_dir must be a shared folder")
            return
        progress, kept, own = found
        for key, value in self._sources().items():
            if progress.get(key, value) != value:  # what an older state does not say is not compared
                raise TrainingError(f"{self.work} holds the state of another run (its {key} differs); delete it to start again")
        self.earlier = progress.get("starts", [])
        now = self.started["precision"]
        for start in self.earlier:
            if start.get("precision", now) != now:
                raise TrainingError(
                    f"{self.work} holds a run that began in {start['precision']} on {start.get('device')}, and this start "
                    f"computes in {now} on {self.started['device']}; go on where it began, or delete it to start again"
                )
        self.started["step"] = progress["step"]
        self.method.restore(self.backbone, kept["trained"])
        self.method.restore_state(self.backbone, kept["method"])
        self.chosen = kept["chosen"]
        self.step, self.history, self.spent = progress["step"], progress["history"], progress["spent"]
        self.final = Final(**progress["final"])
        self.weights = progress.get("weights", {}) if self.config.save else {}  # of an epoch that may no longer be the best
        self.spent["restarts"] += 1
        self.loss_sum.copy_(own["loss_sum"])
        log.info("resuming at step %d of %d", self.step, self.total)
        best = best_epoch(self.history, self.task.primary)
        if self.config.save and best is not None and "best" not in self.weights and self.processes.main:
            log.warning(
                "%s: an earlier start had train.save=false and kept no weights of epoch %d, the best so far; without a better "
                "one to come there will be none (delete %s to start again)",
                *(self.run.run_name, best, self.work),
            )

    def notes(self) -> dict[str, Any]:
        """What the record should say of the training: what earlier starts had that differs from the last one, when no step can
        have changed anything, and which of the counted parameters none has reached."""
        found: dict[str, Any] = {}
        resumed = [
            {"step": start.get("step"), "started": start.get("started"), **changed}
            for start in self.earlier
            if (changed := _changed(start, self.started))
        ]
        if resumed:
            found["resumed"] = resumed
        if not any(lr_factor(step, self.total, self.config) for step in range(self.total)):
            found["untrained"] = "the only step is the first of the warm-up, at rate 0"
        if left := self.unreached():
            found["unreached"] = {"names": left, "parameters": sum(self.parameters[name].numel() for name in left)}
        return found

    def cost(self) -> dict[str, Any]:
        """The record's cost."""
        return {**self.spent, "steps": self.step, "processes": self.processes.count, **self._worked()}

    def _worked(self) -> dict[str, Any]:
        """On what it computes, and in which precision."""
        gpu = self.accelerator.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "precision": precision_of(self.accelerator, self.backbone.model, self.config.tf32),
            "threads": torch.get_num_threads(),
        }


def _changed(start: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What an earlier start says of code and machine that differs now; of the versions those that do."""
    keys = ("git_sha", "git_dirty", "own_code", "device", "threads", *PIECES)
    changed = {key: start[key] for key in keys if key in start and start[key] != now.get(key)}
    versions = {key: value for key, value in start.get("versions", {}).items() if now.get("versions", {}).get(key) != value}
    return {**changed, "versions": versions} if versions else changed


def best_epoch(history: list[dict[str, Any]], metric: str) -> int | None:
    """The first epoch with the highest value of a metric; None while none has one: undefined, or computed at the end only."""
    scored = [(entry["metrics"][metric], -entry["epoch"]) for entry in history if entry["metrics"].get(metric) is not None]
    return -max(scored)[1] if scored else None
