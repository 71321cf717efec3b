"""The batches of an epoch: their order, each process's share of one, and the pieces of it that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from vera.config import RunConfig
from vera.seeds import generator
from vera.tasks.base import Data, Task
from vera.train.feed import fed
from vera.train.graphs import collated
from vera.train.processes import Processes

# Its weight in the batch's mean loss (None: no example of the batch, but a pass that other processes wait for), and the model's
# arguments.
MicroBatch = tuple[float | None, dict[str, torch.Tensor]]


class Batches:
    """A run's training batches, each a list of micro-batches: this process's share of it."""

    def __init__(self, run: RunConfig, task: Task, data: Data, processes: Processes, device: torch.device):
        self.seed, self.config, self.task, self.data = run.seed, run.train, task, data
        self.processes, self.device = processes, device
        self.collate = collated(data) if run.train.cuda_graphs else data.collate
        self.per_epoch = -(-len(data.train) // run.train.batch_size)

    def after(self, step: int, total: int) -> Iterator[list[MicroBatch]]:
        """Those that are left, after so many steps of `total`, of the epoch at hand.

        The order of the examples depends on seed and epoch alone, not on the number of processes.
        """
        epoch, done = divmod(step, self.per_epoch)
        order = torch.randperm(len(self.data.train), generator=generator(self.seed, "order", epoch)).tolist()
        size = self.config.batch_size
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        return fed(map(self._micro_batches, steps[done : done + total - step]), self.device)

    def _micro_batches(self, rows: list[int]) -> list[MicroBatch]:
        """This process's share of a batch in pieces that fit the memory, each with its weight in the whole batch's mean loss.

        What the other processes do follows from the rows, so that none has to be asked.
        """
        shares = [rows[rank :: self.processes.count] for rank in range(self.processes.count)]
        train = self.data.train
        batches = [self.collate([train[row] for row in piece]) for piece in self._pieces(shares[self.processes.rank])]
        weights = [self.task.weight(batch) for batch in batches]
        total = sum(weights) if len(shares) == 1 else self.task.total_weight(train, rows)
        made: list[MicroBatch] = [(weight / (total or 1), batch) for weight, batch in zip(weights, batches, strict=True)]
        # Gradients are averaged in the backward pass, in which a process without a share has to take part as well; with a
        # sharded backbone in every forward pass.
        needed = max(len(self._pieces(share)) for share in shares) if self.processes.sharded else 1
        idle: MicroBatch = (None, self.collate([train[0]])) if len(made) < needed else made[0]
        return made + [idle] * (needed - len(made))

    def _pieces(self, rows: list[int]) -> list[list[int]]:
        size = self.config.micro_batch_size or max(1, len(rows))
        if self.config.micro_batch_tokens is None:
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        return similar_lengths(rows, lambda row: self.task.length(self.data.train[row]), self.config.micro_batch_tokens, size)


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
