"""Batches on their way to the device: on a GPU, built by a thread while it computes, in page-locked memory, copied without
waiting. Their order and content are those of the iterable, whoever builds them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

DEPTH = 3  # batches that wait, at most


def fed(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches, ahead of a GPU; for a CPU as they are asked for, since nothing waits there while one is built."""
    if device.type != "cuda":
        return iter(batches)
    index = torch.cuda.current_device() if device.index is None else device.index  # Accelerate names a single GPU without
    return ahead(map(pinned, batches), begin=lambda: torch.cuda.set_device(index))


def ahead(batches: Iterable[Any], begin: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """The batches, up to DEPTH of them built before they are asked for, by a thread that begins with `begin`.

    What building one raises is raised where it would have been handed over. The thread ends with the iterator.
    """
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(DEPTH)
    end = threading.Event()

    def hand_over(good: bool, value: Any) -> None:
        while not end.is_set():
            try:
                made.put((good, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def build() -> None:
        try:
            begin()
            for batch in batches:
                hand_over(True, batch)
                if end.is_set():
                    return
            hand_over(False, None)
        except BaseException as error:
            hand_over(False, error)

    builder = threading.Thread(target=build, name="batches", daemon=True)
    builder.start()
    try:
        while True:
            good, value = made.get()
            if not good:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        end.set()
        builder.join()


def pinned(value: Any) -> Any:
    """The same with every tensor in page-locked memory."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: pinned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(pinned(item) for item in value)
    return value
