"""Table 12 on random weights: LoRA and VeRA, both at rank 64, on a 4-bit model of Llama 7B's shape (scripts/table12.py).

Neither speed nor memory depends on the weights' values. A step is 16 rows of so many tokens, 4 at a time, as in Table 9. The
methods take turns on one model; what can be compared is the ratio.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import statistics
import tempfile
from functools import partial
from pathlib import Path

from bench.plain import run_of
from vera.config import build
from vera.errors import ConfigError

METHODS = ("lora", "vera")
RANK = 64


def run_config(method: str, four_bits: bool, graphs: bool = False):
    """The run of Table 12's row, as conf/ has it; or with the same pieces of a batch, of one shape, as CUDA graphs."""
    pieces = {"train__micro_batch_tokens": None, "train__micro_batch_size": 4, "train__cuda_graphs": True} if graphs else {}
    quantisation = "nf4" if four_bits else "none"
    return run_of("llama_7b", "alpaca", method, method__rank=RANK, model__quantisation=quantisation, **pieces)


def quantise(model, device: str, config):
    """Every linear map but the head in 4 bits, quantised on `device`, as transformers does it for a run with this config. The
    model says so, as PEFT asks it to: it puts its own layers for 4-bit weights on it."""
    import bitsandbytes as bnb
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    for name in names:
        module = model.get_submodule(name)
        packed = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=config.bnb_4bit_compute_dtype,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            module.weight.data,
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
        model.set_submodule(name, packed.to(device))
    model.is_loaded_in_4bit = True
    return model


def random_model(tiny: bool, device: str):
    """A model of Llama 7B's shape on the device, in NF4, or in bf16 where bitsandbytes is missing; and which of them."""
    import torch
    from transformers import LlamaForCausalLM

    from vera.models.tiny import architecture

    four_bits = importlib.util.find_spec("bitsandbytes") is not None
    run = run_config("vera", four_bits)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(architecture({**run.model["tiny"], "vocab_size": 257} if tiny else run.model["full"]))
    torch.set_default_dtype(torch.float32)
    if four_bits:
        model = quantise(model, device, build(run.model, "model").settings["quantization_config"])
    return model, four_bits


def measure(method: str, model, four_bits: bool, steps: int, warmup: int, length: int, graphs: bool = False) -> dict:
    """Seconds of each step after the warm-up, and the GPU allocator's peak in bytes over them (None on a CPU): of a run's own
    steps on batches of its own loader. The adapters are put on modules of their own around the model's tensors, which stay."""
    import torch

    from bench.measure import clock
    from vera.models.base import Backbone
    from vera.tasks.base import Data
    from vera.tasks.language import collate
    from vera.train.loop import Loop

    device = model.device.type
    run = run_config(method, four_bits, graphs).model_copy(update={"device": device})
    model_config, task, adapter = build(run.model, "model"), build(run.task, "task"), build(run.method, "method")
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    backbone = Backbone(copy.deepcopy(model, kept), None, (), "random weights", None, "random")
    adapter.attach(backbone, model_config)
    torch.manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, ((warmup + steps) * run.train.batch_size, length)).tolist()
    rows = [{"input_ids": row, "labels": row} for row in ids]
    data = Data(rows, rows[:1], partial(collate, pad=0), "random tokens", None, "random", lengths=[length])  # as Alpaca has
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(run, backbone, adapter, task, data, Path(folder))
        batches = loop.batches.after(loop.step, loop.total)
        for step in range(warmup + steps):
            if device == "cuda" and step == warmup:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            began = clock(device)
            loop._step(next(batches))
            ended = clock(device)
            if step >= warmup:
                seconds.append(ended - began)
    return {
        "method": method,
        "parameters": sum(parameter.numel() for parameter in loop.parameters.values()),
        "seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def rounds_of(options: argparse.Namespace, model, four_bits: bool, device: str, graphs: bool = False) -> list[dict[str, dict]]:
    """Of each round what `measure` gives of both methods, which take turns on one model, every other round in the reverse
    order. Raises RuntimeError where a round leaves memory behind, which the next one's peak would count."""
    from bench.measure import owned_bytes

    rounds: list[dict[str, dict]] = []
    left: list[int] = []
    for index in range(options.rounds):
        rounds.append({})
        for method in METHODS[:: -1 if index % 2 else 1]:
            found = measure(method, model, four_bits, options.steps, options.warmup, options.length, graphs)
            rounds[-1][method] = found
            took = statistics.median(found["seconds"])
            how = " by CUDA graphs" * graphs
            print(f"round {index + 1} of {options.rounds}: {method} {took:.3f} s a step{how}", flush=True)
            if device == "cuda":
                gc.collect()  # Accelerate ties a model into a cycle
                left.append(owned_bytes(device))
    if left and max(left) > 1.01 * min(left):
        raise RuntimeError(f"memory that rounds left behind, in MiB: {[value >> 20 for value in left]}")
    return rounds


def compare(options: argparse.Namespace) -> dict:
    """Both methods on one model, on a GPU also with their passes replayed, and rows as in results/bench: ours is VeRA, other is
    LoRA."""
    import torch

    from bench.measure import machine, ratio

    device = "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"
    model, four_bits = random_model(options.tiny, device)
    ways = {False: rounds_of(options, model, four_bits, device)}
    if device == "cuda":
        try:
            ways[True] = rounds_of(options, model, four_bits, device, graphs=True)
        except ConfigError as error:
            print(f"not by CUDA graphs: {error}", flush=True)
    cases, name = [], "tiny" if options.tiny else "Llama 7B"
    shapes = f"{name}, {'NF4' if four_bits else 'bf16'}, rank {RANK}, 4 x 4 rows of {options.length} tokens a step"
    for case, what, unit, graphs, value in (
        ("table12_time", "seconds a training step, median", "s", False, lambda one: statistics.median(one["seconds"])),
        ("table12_memory", "peak memory in bytes", "bytes", False, lambda one: one["peak_memory_bytes"]),
        ("table12_time_graphs", "seconds a training step, median", "s", True, lambda one: statistics.median(one["seconds"])),
    ):
        rounds = ways.get(graphs, [])
        ours, other = ([value(one[method]) for one in rounds] for method in ("vera", "lora"))
        if not rounds or None in (*ours, *other):
            continue
        cases.append(
            {
                "case": case,
                "what": what,
                "unit": unit,
                "ours": statistics.median(ours),
                "other": statistics.median(other),
                "ratio": ratio(ours, other),
                "rounds": len(rounds),
                "shapes": f"{shapes}{', by CUDA graphs' * graphs}",
            }
        )
    return {"machine": machine(device), "cases": cases}


def table(bench: dict | None):
    """The paper's two lines, ours (or dashes), and the ratios, as a Table."""
    from experiments.engine.published import load  # brings Hydra, without which a GPU box can still measure
    from experiments.engine.render import DASH, Table

    published = load("table12")
    rows = [["paper", row.label, row.cells["time"], row.cells["memory"]] for row in published.rows]
    paper = {row.method: row.cells for row in published.rows}
    cases = {case["case"]: case for case in bench["cases"]} if bench else {}
    found = {"ours": ("time", "memory")}
    if "table12_time_graphs" in cases:
        found["ours, CUDA graphs"] = ("time_graphs", "")
    for source, names in found.items():
        for side, label in (("other", "LoRA"), ("ours", "VeRA")):
            seconds, memory = (cases.get(f"table12_{name}", {}).get(side) for name in names)
            took = f"{seconds:.3f} s a step" if seconds else DASH
            rows.append([source, label, took, f"{memory / 1e9:.2f}" if memory else DASH])
    ratio = [f"{float(paper['vera'][key]) / float(paper['lora'][key]):.3f}" for key in ("time", "memory")]
    rows.append(["paper", "VeRA / LoRA", *ratio])
    for source, names in found.items():
        mine = [cases.get(f"table12_{name}", {}).get("ratio", {}).get("median") for name in names]
        rows.append([source, "VeRA / LoRA", *(DASH if value is None else f"{value:.3f}" for value in mine)])
    notes = ["ours: not measured."]
    if bench and cases:
        first = bench["cases"][0]
        over = f"; medians of {first['rounds']} rounds" if "rounds" in first else ""  # older files do not say
        notes = [f"ours: {bench['machine']['device']}; {first['shapes']}{over}."]
    return Table(
        "table12_random",
        f"Table 12: {published.title}",
        ["Source", "Method", "Minutes", "GB"],
        rows,
        notes,
        [2, 2 + 2 * len(found)],
    )
