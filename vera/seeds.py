"""One seed, several independent streams. Seed 0 is a seed like any other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What a run draws, each from a stream of its own, so that drawing more of one thing never changes another.
STREAMS = {
    "head": 0,
    "dropout": 1,
    "order": 2,
    "few_shot": 3,
    "pretrain": 4,
    "tiny": 5,
    "synthetic": 6,
    "rank": 7,
    "answers": 8,
}


def derive(seed: int, stream: str, index: int = 0) -> int:
    """A 63-bit seed for one stream of a run, and one epoch or item of it."""
    state = np.random.SeedSequence([seed, STREAMS[stream], index]).generate_state(1, np.uint64)[0]
    return int(state) >> 1


def seed_everything(seed: int, stream: str, index: int = 0) -> None:
    """Seed Python, numpy and torch (every device) from one stream."""
    _seed(derive(seed, stream, index), torch.manual_seed)


def _seed(value: int, seed_torch: Callable[[int], object]) -> None:
    random.seed(value)
    np.random.seed(value % 2**32)
    seed_torch(value)


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one stream."""
    return torch.Generator().manual_seed(derive(seed, stream, index))


@contextmanager
def forked(seed: int, stream: str) -> Iterator[None]:
    """Draw from one stream inside the block and leave all global generators as they were; those of GPUs are not used."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed(derive(seed, stream), torch.default_generator.manual_seed)  # torch.manual_seed would seed every GPU's, too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside the block, whatever OMP_NUM_THREADS and the number of cores are: how a sum is divided
    among threads decides its last bits, and training makes other weights of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
