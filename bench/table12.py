"""Table 12 on random weights: LoRA and VeRA, both at rank 64, on a 4-bit model of Llama 7B's shape (scripts/table12.py).

Neither speed nor memory depends on the weights' values. A step is 16 rows of so many tokens, 4 at a time, as in Table 9. Each
method runs in a process of its own, in turns; what can be compared is the ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from experiments.engine.published import load
from experiments.engine.render import DASH, Table
from vera.config import build, compose
from vera.errors import ConfigError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "table12.py"
METHODS = ("lora", "vera")
RANK = 64


def run_config(method: str, tiny: bool):
    size = ["model.size=tiny"] if tiny else []
    return compose(["model=llama_7b", "task=alpaca", f"method={method}", f"method.rank={RANK}", *size])


def quantise(model, device: str, config):
    """Every linear map but the head in 4 bits, quantised on `device`, as transformers does it for a run with this config. The
    model says so, as PEFT asks it to: it puts its own layers for 4-bit weights on it."""
    import bitsandbytes as bnb
    import torch

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=config.bnb_4bit_compute_dtype,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
            )
            packed.weight = bnb.nn.Params4bit(
                module.weight.data.cpu(),
                requires_grad=False,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
            )
            model.set_submodule(name, packed.to(device))
    model.is_loaded_in_4bit = True
    return model


def measure(method: str, steps: int, warmup: int, length: int, tiny: bool) -> dict:
    """Seconds of each step after the warm-up, and the GPU allocator's peak in bytes over them (None on a CPU)."""
    import torch
    from transformers import LlamaForCausalLM

    from vera.models.base import Backbone
    from vera.models.tiny import architecture
    from vera.train.optim import optimizer

    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    run = run_config(method, tiny)
    model_config, task, adapter = build(run.model, "model"), build(run.task, "task"), build(run.method, "method")
    shape = {**run.model["tiny"], "vocab_size": 257} if tiny else run.model["full"]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(architecture(shape))
    torch.set_default_dtype(torch.float32)
    config = model_config.settings["quantization_config"]
    backbone = Backbone(quantise(model, device, config), None, (), "random weights", None, "")
    adapter.attach(backbone, model_config)
    model.to(device).train()
    groups = adapter.parameter_groups(backbone)
    parameters = [parameter for _, parameter in groups["adapter"]]
    adam = optimizer(groups, run.train)
    micro, accumulated = run.train.micro_batch_size, run.train.batch_size // run.train.micro_batch_size
    ids = torch.randint(0, shape["vocab_size"], (micro, length), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seconds = []
    for step in range(warmup + steps):
        if device == "cuda":
            if step == warmup:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(accumulated):
            with torch.autocast(device, torch.bfloat16):
                logits = model(**batch, use_cache=False).logits
            (task.loss(logits, {"labels": ids}) / accumulated).backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.train.clip)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        if step >= warmup:
            seconds.append(time.perf_counter() - began)
    return {
        "method": method,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def in_a_process(method: str, options: argparse.Namespace) -> dict:
    command = [sys.executable, str(SCRIPT), "--method", method, *(["--tiny"] if options.tiny else [])]
    command += [f"--{name}={getattr(options, name)}" for name in ("steps", "warmup", "length")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{method}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict:
    """Runs in turns, as in results/bench: ours is VeRA, other is LoRA, ratio ours / other by round."""
    rounds = [{method: in_a_process(method, options) for method in METHODS} for _ in range(options.rounds)]
    cases = []
    shapes = f"{'tiny' if options.tiny else 'Llama 7B'}, NF4, rank {RANK}, 4 x 4 rows of {options.length} tokens a step"
    for case, what, value in (
        ("table12_time", "seconds a training step, median", lambda one: statistics.median(one["seconds"])),
        ("table12_memory", "peak memory in bytes", lambda one: one["peak_memory_bytes"]),
    ):
        pairs = [(value(r["vera"]), value(r["lora"])) for r in rounds]
        if any(None in pair for pair in pairs):
            continue
        ratios = [ours / other for ours, other in pairs]
        cases.append(
            {
                "case": case,
                "what": what,
                "ours": statistics.median(ours for ours, _ in pairs),
                "other": statistics.median(other for _, other in pairs),
                "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
                "shapes": shapes,
            }
        )
    first = rounds[0]["vera"]
    return {"machine": {"device": first["device"], "torch": first["torch"]}, "cases": cases}


def table(bench: dict | None) -> Table:
    """The paper's two lines, ours (or dashes), and the ratios."""
    published = load("table12")
    rows = [["paper", row.label, row.cells["time"], row.cells["memory"]] for row in published.rows]
    paper = {row.method: row.cells for row in published.rows}
    cases = {case["case"]: case for case in bench["cases"]} if bench else {}
    for side, label in (("other", "LoRA"), ("ours", "VeRA")):
        seconds, memory = (cases.get(f"table12_{name}", {}).get(side) for name in ("time", "memory"))
        rows.append(["ours", label, f"{seconds:.3f} s a step" if seconds else DASH, f"{memory / 1e9:.2f}" if memory else DASH])
    ratio = [f"{float(paper['vera'][key]) / float(paper['lora'][key]):.3f}" for key in ("time", "memory")]
    rows.append(["paper", "VeRA / LoRA", *ratio])
    mine = [cases.get(f"table12_{name}", {}).get("ratio", {}).get("median") for name in ("time", "memory")]
    rows.append(["ours", "VeRA / LoRA", *(DASH if value is None else f"{value:.3f}" for value in mine)])
    notes = [
        f"ours: {bench['machine']['device']}; {bench['cases'][0]['shapes']}." if bench and cases else "ours: not measured."
    ]
    return Table("table12_random", f"Table 12: {published.title}", ["Source", "Method", "Minutes", "GB"], rows, notes, [2, 4])
