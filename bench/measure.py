"""Times, memory and operations of calls that are to be compared."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from experiments.engine.aggregate import median_interval

Calls = dict[str, Callable[[], object]]
OCCASION = ("ours", "other", "ratio", "cpu", "rounds", "load_average")  # what a row keeps of each time it was measured


class Seconds(list[float]):
    """Of each round by the clock; `cpu`: those that this process's threads have computed."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: list[float] = []


def alternate(calls: Calls, rounds: int, device: str) -> dict[str, Seconds]:
    """Seconds of each call, `rounds` times in turn after an untimed round, every other round from the last to the first.

    Other work on the machine, and what a call leaves in the caches, hits all of them alike.
    """
    seconds = {name: Seconds() for name in calls}
    for index in range(rounds + 1):
        for name, call in list(calls.items())[:: -1 if index % 2 else 1]:
            began, computed = clock(device), time.process_time()
            call()
            ended = clock(device)
            if index:
                seconds[name].append(ended - began)
                seconds[name].cpu.append(time.process_time() - computed)
    return seconds


def clock(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(ours: list[float], other: list[float]) -> dict[str, float]:
    """Of ours / other over the rounds: median, its interval (`median_interval`: 95% from six rounds on), smallest, largest."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    low, high = median_interval(ratios)
    return {"median": statistics.median(ratios), "low": low, "high": high, "min": min(ratios), "max": max(ratios)}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="minutes")


LOOPED = ("f", "p")  # cases that go through a run's loop


def code(case: str) -> str:
    """What decides a case's figures beside the machine: a hash over the method, this yardstick, the versions of the packages,
    and the runs' loop where the case goes through it."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(repr(sorted(machine("cpu")["versions"].items())).encode())
    loop = ("vera/run.py", "vera/train/*.py") if case in LOOPED else ("vera/train/graphs.py",)
    for part in ("vera/nn/*.py", *loop, "bench/*.py"):
        for path in sorted(root.glob(part)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def accumulated(before: list[dict], found: list[dict], when: str, code: str) -> list[dict]:
    """The rows of a case measured now, each with the occasions before on which the same was measured by the same code.

    An occasion is a row's own figures; the row shows the median over its occasions, the widest of their bounds (low, high: of
    intervals; min, max: of single rounds), and `interval`, the smallest and the largest median of an occasion.
    """
    earlier = {(row["case"], row["what"], row["shapes"]): row.get("occasions", []) for row in before}
    rows = []
    for row in found:
        now = {"when": when, "code": code, **{key: row[key] for key in OCCASION if key in row}}
        same = [one for one in earlier.get((row["case"], row["what"], row["shapes"]), []) if one["code"] == code]
        occasions = [*same, now]
        medians = [one["ratio"]["median"] for one in occasions]
        summed = {
            "ours": statistics.median(one["ours"] for one in occasions),
            "other": statistics.median(one["other"] for one in occasions),
            "ratio": _widest([one["ratio"] for one in occasions]),
            "rounds": sum(one["rounds"] for one in occasions) if row["rounds"] > 1 else 1,
            "load_average": max(one["load_average"] for one in occasions),
        }
        if row.get("cpu") is not None:
            summed["cpu"] = _widest([one["cpu"] for one in occasions])
        rows.append({**row, **summed, "interval": [min(medians), max(medians)], "occasions": occasions})
    return rows


def _widest(ratios: list[dict[str, float]]) -> dict[str, float]:
    """The median over occasions, and the widest of their bounds."""
    return {
        "median": statistics.median(one["median"] for one in ratios),
        "low": min(one.get("low", one["min"]) for one in ratios),
        "high": max(one.get("high", one["max"]) for one in ratios),
        "min": min(one["min"] for one in ratios),
        "max": max(one["max"] for one in ratios),
    }


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most that is allocated at once during a call, beyond what was there before: call it once before this."""
    if device == "cuda":
        clock(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        clock(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def owned_bytes(device: str) -> int:
    """What this process holds: on a GPU its tensors there, else its resident memory once what is free has been given back."""
    if device == "cuda":
        clock(device)
        return torch.cuda.memory_allocated()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def multiply_adds(call: Callable[[], object]) -> int:
    """Multiply-adds of all matrix products of a call, backward included."""
    with _Products() as counter:
        call()
    return counter.flops // 2


class _Products(TorchDispatchMode):
    """Counts by torch's own formulas, as its FlopCounterMode does, which however puts a hook on every module: layers that ask
    whether hooks look on would compute in another way than in a step that is timed."""

    flops = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        kind = operation.overloadpacket
        if kind is torch.ops.aten.addmm_:  # the one form of a product that torch has no formula for
            self.flops += 2 * args[1].shape.numel() * args[2].shape[1]
        elif kind in flop_registry:
            self.flops += flop_registry[kind](*args, **(kwargs or {}), out_val=result)
        return result


def machine(device: str) -> dict:
    """What the figures depend on."""
    gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "kind": "gpu" if gpu else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def load_average() -> float:
    """Processes that wanted a core in the last minute; above the number of cores, others were working too."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    """The processor with its vector width, since a virtual machine's model name says little."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in found.items()}
    name = found.get("model name", platform.processor() or platform.machine())
    return f"{name}, AVX-512" if "avx512f" in found.get("flags", "") else name
