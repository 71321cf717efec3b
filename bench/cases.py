"""What is measured: (a) to (h), each on sizes for two CPU cores or for a GPU."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, RobertaConfig, RobertaForSequenceClassification, RobertaModel

from bench.measure import Calls, Seconds, alternate, load_average, multiply_adds, owned_bytes, peak_bytes, ratio
from vera.errors import AdapterError, ConfigError
from vera.models.attention import allow_cudnn
from vera.nn import AdapterBank, VeraConfig, attach, merge, save_adapter
from vera.nn.count import stored_bytes, vera_parameters
from vera.train.graphs import Graphs

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUERY_VALUE = ("query", "value")
Row = dict[str, Any]
_toy = False  # whether every model is a tiny one (measure_case)


class NeedsMore(Exception):
    """A case that this machine cannot run; the message says what it needs."""


class Sizes:
    """Layers, rounds and shapes. A GPU gets the paper's; a CPU fewer layers, and a Llama of a quarter of the width."""

    def __init__(self, device: str, toy: bool = False):
        gpu = device == "cuda"
        self.device = device
        self.layers = {"base": 12, "large": 24, "llama": 4, "mixed": 12, "epoch": 12}
        if not gpu:
            self.layers = {"base": 3, "large": 2, "llama": 2, "mixed": 2, "epoch": 2}
        self.rounds = 20 if gpu else 10
        self.llama = (4096, 11008, 32) if gpu else (1024, 2752, 8)  # width, feed-forward, heads
        self.llama_ranks = (64, 1024) if gpu else (64, 256)
        self.llama_batch = (4, 512) if gpu else (2, 512)
        self.adapters = (64, 128)
        self.banks: tuple[int, ...] = (10_000, 100_000)
        self.epoch_steps, self.epoch_batch = (39, 64) if gpu else (1, 32)  # an epoch of RTE, or a part of one
        if toy:
            self.layers = dict.fromkeys(self.layers, 1)
            self.rounds, self.adapters, self.llama_ranks = 1, (3, 4), (8, 16)
            self.llama, self.llama_batch = (32, 64, 2), (1, 8)


def roberta(d: int, layers: int, labels: int | None = None) -> nn.Module:
    """RoBERTa's layers with random weights, few embeddings and no dropout."""
    if _toy:
        d, layers = 64, 1
    torch.manual_seed(0)
    config = RobertaConfig(
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=d // 64,
        intermediate_size=4 * d,
        vocab_size=1000,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=labels or 2,
    )
    return RobertaForSequenceClassification(config) if labels else RobertaModel(config, add_pooling_layer=False)


def llama(d: int, ff: int, heads: int, layers: int) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=d, intermediate_size=ff, num_attention_heads=heads, num_hidden_layers=layers, vocab_size=1000
    )
    return LlamaModel(config)


def methods(base: Callable[[], nn.Module], targets: tuple[str, ...], rank: int, lora: int) -> dict[str, nn.Module]:
    """The same backbone with our VeRA, PEFT's VeRA and PEFT's LoRA."""
    return {
        "ours": attach(base(), VeraConfig(rank=rank, targets=targets)),
        "PEFT VeRA": peft.get_peft_model(base(), peft.VeraConfig(r=rank, target_modules=list(targets))),
        f"LoRA r={lora}": peft.get_peft_model(base(), peft.LoraConfig(r=lora, target_modules=list(targets))),
    }


def training(
    models: dict[str, nn.Module], inputs: torch.Tensor, case: str, shapes: str, goals: dict, sizes: Sizes
) -> list[Row]:
    """Step time, peak memory and operations of one training step, ours against each other."""
    device, steps, replayed, owned = sizes.device, {}, {}, {}
    inputs = inputs.to(device)

    def stepper(model: nn.Module, graphs: bool = False):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)

        def states(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                return model(**inputs).last_hidden_state

        compute = Graphs(model, trained, states) if graphs else states

        def step() -> None:
            optimizer.zero_grad()
            loss = compute({"input_ids": inputs}).float().pow(2).mean()  # kept by the graph alone
            loss.backward()
            optimizer.step()

        return step

    for name, model in models.items():
        steps[name] = stepper(model.to(device))
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        tensors = [*model.parameters(), *model.buffers()]
        # weights, A and B, and AdamW's two moments; gradients are made within the step
        owned[name] = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values()) + 2 * trained
    seconds = alternate(steps, sizes.rounds, device)
    memory = {name: owned[name] + peak_bytes(step, device) for name, step in steps.items()}
    products = {name: multiply_adds(step) for name, step in steps.items()}
    if device == "cuda":
        try:
            replayed = alternate({name: stepper(model, graphs=True) for name, model in models.items()}, sizes.rounds, device)
        except ConfigError as error:
            print(f"({case}) not by CUDA graphs: {error}", file=sys.stderr, flush=True)
    rows = []
    for other in [name for name in models if name != "ours"]:
        counted = products["ours"] / products[other]
        goal = goals.get(("time", other))
        rows.append(timed(case, f"training step / {other}", seconds, "ours", other, shapes, goal, counted))
        if replayed:
            by_graphs = f"{shapes}, by CUDA graphs"
            rows.append(timed(case, f"training step / {other}", replayed, "ours", other, by_graphs, goal, counted))
        rows.append(
            single(case, f"peak memory of a step / {other}", "MiB", memory, other, 2**20, shapes, goals.get(("memory", other)))
        )
        rows.append(single(case, f"multiply-adds of a step / {other}", "10^9", products, other, 1e9, shapes, None))
    return rows


def timed(
    case: str,
    what: str,
    seconds: dict[str, Seconds],
    ours: str,
    other: str,
    shapes: str,
    goal: float | None,
    products: float | None = None,
) -> Row:
    """A ratio of times, and beside it that of the CPU time and, where it was counted, that of the matrix products."""
    computed = [getattr(seconds[side], "cpu", None) for side in (ours, other)]
    return {
        "case": case,
        "what": what,
        "unit": "s",
        "ours": statistics.median(seconds[ours]),
        "other": statistics.median(seconds[other]),
        "ratio": ratio(seconds[ours], seconds[other]),
        "cpu": ratio(*computed) if all(computed) else None,
        "products": products,
        "rounds": len(seconds[ours]),
        "goal": goal,
        "shapes": shapes,
    }


def single(case: str, what: str, unit: str, values: dict, other: str, scale: float, shapes: str, goal: float | None) -> Row:
    """A figure that does not vary: bytes, operations."""
    quotient = values["ours"] / values[other]
    return {
        "case": case,
        "what": what,
        "unit": unit,
        "ours": values["ours"] / scale,
        "other": values[other] / scale,
        "ratio": {"median": quotient, "min": quotient, "max": quotient},
        "rounds": 1,
        "goal": goal,
        "shapes": shapes,
    }


def case_a(sizes: Sizes) -> list[Row]:
    """A training step of RoBERTa-base's layers at Table 8's rank."""
    layers = sizes.layers["base"]
    models = methods(lambda: roberta(768, layers), QUERY_VALUE, 1024, 8)
    goals = {("time", "PEFT VeRA"): 0.78, ("time", "LoRA r=8"): 1.06, ("memory", "PEFT VeRA"): 0.80}
    shapes = f"{layers} layers, d=768, r=1024, query and value, 64 x 128 tokens"
    return training(models, torch.randint(5, 999, (64, 128)), "a", shapes, goals, sizes)


def case_b(sizes: Sizes) -> list[Row]:
    """A training step of RoBERTa-large's layers at Table 8's rank."""
    layers = sizes.layers["large"]
    models = methods(lambda: roberta(1024, layers), QUERY_VALUE, 256, 8)
    equal = peft.LoraConfig(r=256, target_modules=list(QUERY_VALUE))
    models["LoRA r=256"] = peft.get_peft_model(roberta(1024, layers), equal)
    goals = {("time", "PEFT VeRA"): 0.96, ("memory", "PEFT VeRA"): 0.92}
    shapes = f"{layers} layers, d=1024, r=256, query and value, 32 x 128 tokens"
    return training(models, torch.randint(5, 999, (32, 128)), "b", shapes, goals, sizes)


def case_c(sizes: Sizes) -> list[Row]:
    """Table 12's setting: all linear layers of Llama, VeRA against LoRA r=64."""
    (d, ff, heads), layers, rows = sizes.llama, sizes.layers["llama"], []
    for rank in sizes.llama_ranks:
        models = methods(lambda: llama(d, ff, heads, layers), LLAMA, rank, 64)
        goals = {("time", "LoRA r=64"): 1.00, ("memory", "LoRA r=64"): 0.92} if rank == 64 else {}
        batch, length = sizes.llama_batch
        shapes = f"{layers} Llama blocks, d={d}, ff={ff}, r={rank}, all linear, {batch} x {length} tokens"
        rows += training(models, torch.randint(5, 999, (batch, length)), "c", shapes, goals, sizes)
    return rows


def case_d(sizes: Sizes) -> list[Row]:
    """A batch whose every row uses another adapter."""
    device, rows = sizes.device, []
    for count in sizes.adapters:
        calls, names, ids, shapes = _mixed(sizes, count, VeraConfig(rank=256, targets=QUERY_VALUE))
        config = peft.LoraConfig(r=8, target_modules=list(QUERY_VALUE))
        lora = peft.get_peft_model(roberta(768, sizes.layers["mixed"]), config, adapter_name=names[0])
        for name in names[1:]:
            lora.add_adapter(name, peft.LoraConfig(r=8, target_modules=list(QUERY_VALUE)))
        calls["LoRA"] = torch.no_grad()(partial(lora.eval().to(device), input_ids=ids, adapter_names=names))
        seconds = alternate(calls, sizes.rounds, device)
        goal = 1.15 if count == 64 else None
        rows.append(timed("d", "mixed batch / bare backbone", seconds, "ours", "bare", shapes, goal))
        rows.append(timed("d", "mixed batch / PEFT's LoRA r=8 with adapter_names", seconds, "ours", "LoRA", shapes, None))
    config = VeraConfig(rank=256, targets=QUERY_VALUE, modules_to_save=("classifier",))
    calls, _, _, shapes = _mixed(sizes, sizes.adapters[0], config, labels=2)
    seconds = alternate(calls, sizes.rounds, device)
    return [*rows, timed("d", "mixed batch with heads / bare", seconds, "ours", "bare", f"{shapes} and heads", None)]


def _mixed(sizes: Sizes, count: int, config: VeraConfig, **shape: int) -> tuple[Calls, list[str], torch.Tensor, str]:
    """The bare backbone, and a bank with a batch for so many adapters; their names, the batch, and the shapes in words."""
    layers, device, length = sizes.layers["mixed"], sizes.device, 128
    ids = torch.randint(5, 999, (count, length)).to(device)
    bare, ours = (roberta(768, layers, **shape).eval().to(device) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        names = _random_adapters(roberta(768, layers, **shape), config, Path(folder), count)
        bank = AdapterBank(ours)
        bank.load(folder)

    def mixed() -> None:
        with bank.use(names):
            ours(input_ids=ids)

    shapes = f"{layers} layers, d=768, r=256, query and value, {count} x {length} tokens, {count} adapters"
    return {"bare": torch.no_grad()(lambda: bare(input_ids=ids)), "ours": mixed}, names, ids, shapes


def _random_adapters(model: nn.Module, config: VeraConfig, folder: Path, count: int) -> list[str]:
    attach(model, config)
    names = [f"adapter{index}" for index in range(count)]
    for name in names:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.1)
        save_adapter(model, folder / name)
    return names


def case_e(sizes: Sizes) -> list[Row]:
    """Bytes of RoBERTa-base's adapter at rank 256 (12 layers, query and value), whatever the device."""
    formula = stored_bytes(vera_parameters([(768, 768)] * 24, 256))
    model = attach(roberta(768, 12, labels=2), VeraConfig(rank=256, targets=QUERY_VALUE))
    lora = peft.LoraConfig(r=8, target_modules=list(QUERY_VALUE))
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "ours, compact": save_adapter(model, f"{folder}/compact", compact=True),
            "ours, read by PEFT": save_adapter(model, f"{folder}/ours"),
            "PEFT's default": _peft_file(peft.VeraConfig(r=256, target_modules=list(QUERY_VALUE)), f"{folder}/peft"),
            "PEFT's LoRA r=8": _peft_file(lora, f"{folder}/lora"),
        }
        sizes_of = {name: (path / "adapter_model.safetensors").stat().st_size for name, path in files.items()}
    shapes = "12 layers, d=768, r=256, query and value"
    rows = []
    for name in ("ours, compact", "ours, read by PEFT", "PEFT's default"):
        values = {"ours": sizes_of[name], "formula": formula}
        goal = 1.05 if name.startswith("ours") else None
        rows.append(single("e", f"file ({name}) / formula", "bytes", values, "formula", 1, shapes, goal))
    for other in ("PEFT's default", "PEFT's LoRA r=8"):
        values = {"ours": sizes_of["ours, compact"], other: sizes_of[other]}
        per_gib = f"{2**30 // values['ours']:,} adapters in a GiB against {2**30 // values[other]:,}"
        rows.append(single("e", f"file (ours, compact) / {other}: {per_gib}", "bytes", values, other, 1, shapes, None))
    return rows


def _peft_file(config: peft.PeftConfig, folder: str) -> Path:
    peft.get_peft_model(roberta(768, 12, labels=2), config).save_pretrained(folder)
    return Path(folder)


def case_f(sizes: Sizes, data_dir: Path | None) -> list[Row]:
    """Part of an epoch through our loop, against transformers' Trainer and PEFT's VeRA with everything padded to 512."""
    if data_dir is None or not data_dir.is_dir():
        raise NeedsMore("GLUE's official files (--data /path/to/glue)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = _roberta_with_tokenizer(sizes.layers["epoch"], Path(folder) / "model")
        for task, goal, tokens in (("rte", 0.30, 4096), ("cola", 0.10, 4096)):
            loop, batches = _our_loop(task, backbone, data_dir, folder, tokens, sizes)
            calls: dict[str, Callable[[], object]] = {
                "ours": lambda loop=loop, b=batches: _our_steps(loop, b, sizes.epoch_steps),
                "Trainer": _padded_trainer(loop, backbone, folder, sizes),
            }
            seconds = alternate(calls, min(2, sizes.rounds), sizes.device)
            shapes = (
                f"{sizes.layers['epoch']} layers, d=768, r=1024, {sizes.epoch_steps} step(s) of {sizes.epoch_batch} examples, "
                f"ours in micro-batches of similar length of at most {tokens} tokens, theirs padded to 512"
            )
            rows.append(timed("f", f"{task.upper()} / Trainer + PEFT VeRA", seconds, "ours", "Trainer", shapes, goal))
    return rows


def case_g(sizes: Sizes) -> list[Row]:
    """Inference after merging: the adapted model is the bare one with other numbers in it."""
    layers, device = sizes.layers["base"], sizes.device
    ids = torch.randint(5, 999, (32, 128)).to(device)
    bare = roberta(768, layers).eval().to(device)
    merged = attach(roberta(768, layers), VeraConfig(rank=1024, targets=QUERY_VALUE)).eval().to(device)
    merge(merged)
    calls = {
        "bare": torch.no_grad()(lambda: bare(input_ids=ids)),
        "ours": torch.no_grad()(lambda: merged(input_ids=ids)),
    }
    shapes = f"{layers} layers, d=768, r=1024, query and value, 32 x 128 tokens"
    seconds = alternate(calls, 4 * sizes.rounds, device)
    return [timed("g", "merged inference / bare backbone", seconds, "ours", "bare", shapes, None)]


def case_h(sizes: Sizes) -> list[Row]:
    """A bank of many adapters: a mixed batch (other adapters at each call), loading, memory, and the file beyond it."""
    layers, device, rows, count, length = sizes.layers["mixed"], sizes.device, [], sizes.adapters[0], 128
    ids = torch.randint(5, 999, (count, length)).to(device)
    bare = roberta(768, layers).eval().to(device)
    config = VeraConfig(rank=256, targets=QUERY_VALUE)
    adapted = [layer for name, layer in bare.named_modules() if name.endswith(QUERY_VALUE)]
    formula = stored_bytes(vera_parameters([(layer.out_features, layer.in_features) for layer in adapted], 256))
    for many in sizes.banks:
        shapes = f"{layers} layers, d=768, r=256, query and value, {count} x {length} tokens, {count} of {many:,} adapters"
        with tempfile.TemporaryDirectory() as folder:
            need = many * (formula + 12 * 2**10)  # two files with their headers, in whole blocks
            if shutil.disk_usage(folder).free < 1.2 * need:
                raise NeedsMore(f"{need / 2**30:.1f} GiB of disk in {folder} for {many:,} adapters")
            names = _many_adapters(roberta(768, layers), config, Path(folder), many)
            _read_all(Path(folder))  # into the page cache, for either
            before, began = owned_bytes(device), time.perf_counter()
            bank = AdapterBank(roberta(768, layers).to(device))
            failed = bank.load(folder)
            seconds = {"ours": time.perf_counter() - began}
            kept = {"ours": (owned_bytes(device) - before - _bytes(bank.model)) / many, "formula": formula}
            began = time.perf_counter()
            _read_all(Path(folder))
            seconds["files"] = time.perf_counter() - began
            spilling = AdapterBank(roberta(768, layers).to(device), memory_bytes=max(count, many // 10) * bank.adapter_bytes)
            failed |= spilling.load(folder)
        if failed:
            raise AdapterError(f"{len(failed)} adapters were not loaded, {next(iter(failed.values()))}")

        def mixed(bank: AdapterBank, names: list[str] = names) -> Callable[[], None]:
            turns = cycle(names)  # every adapter comes in turn: beyond the memory limit each one comes from the file

            def call() -> None:
                with bank.use(list(islice(turns, count))):
                    bank.model(input_ids=ids)

            return call

        calls = {"bare": torch.no_grad()(lambda: bare(input_ids=ids)), "ours": mixed(bank), "spill": mixed(spilling)}
        times = alternate(calls, sizes.rounds, device)
        rows.append(timed("h", "mixed batch from a bank / bare backbone", times, "ours", "bare", shapes, 1.15))
        rows.append(timed("h", "the same with every adapter from the file / bare", times, "spill", "bare", shapes, None))
        rows.append(timed("h", "the same with every adapter from the file / from memory", times, "spill", "ours", shapes, None))
        load = {name: [value] for name, value in seconds.items()}
        rows.append(timed("h", "loading a bank / reading its files", load, "ours", "files", shapes, None))
        rows.append(single("h", "memory of an adapter in a bank / formula", "bytes", kept, "formula", 1, shapes, None))
    return rows


def _many_adapters(model: nn.Module, config: VeraConfig, folder: Path, count: int) -> list[str]:
    """Adapters that differ, made from the files of one by other numbers in the place of its vectors."""
    made = save_adapter(attach(model, config), folder / "0")
    settings, weights = ((made / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors"))
    start = 8 + int.from_bytes(weights[:8], "little")
    for index in range(count):
        target = folder / str(index)
        target.mkdir(exist_ok=True)
        (target / "adapter_config.json").write_bytes(settings)
        values = torch.randn((len(weights) - start) // 4) * 0.1
        (target / "adapter_model.safetensors").write_bytes(weights[:start] + values.numpy().tobytes())
    return [str(index) for index in range(count)]


def _read_all(folder: Path) -> None:
    for path in folder.glob("*/*"):
        path.read_bytes()


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {*model.parameters(), *model.buffers()})


def _roberta_with_tokenizer(layers: int, folder: Path) -> Path:
    """RoBERTa-base's shapes with random weights and MiniLM's tokenizer, which comes from the package registry."""
    from transformers import AutoTokenizer

    from vera.config import build, compose

    minilm = compose(["model=minilm", "task=rte"]).model
    try:
        source = build(minilm, "model").source(folder.parent / "cache")
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except OSError:
        raise NeedsMore("a tokenizer: install the extra `minilm`") from None
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(
        num_hidden_layers=layers,
        vocab_size=len(tokenizer),
        max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
        type_vocab_size=2,
        architectures=["RobertaForSequenceClassification"],
    )
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def _sizes_of(backbone: Path) -> dict[str, int]:
    """Those in which a checkpoint differs from RoBERTa-base."""
    said = json.loads((backbone / "config.json").read_text())
    return {key: said[key] for key in ("num_hidden_layers", "vocab_size", "type_vocab_size")}


def _our_loop(task: str, backbone: Path, data_dir: Path, folder: str, tokens: int, sizes: Sizes):
    from vera.config import compose
    from vera.run import prepare
    from vera.train.loop import Loop

    run = compose(
        [
            "model=roberta_base",
            "method=vera",
            f"task={task}",
            "model.name=few_layers",
            *(f"model.full.{key}={value}" for key, value in _sizes_of(backbone).items()),
            f"model.path={backbone}",
            f"task.data_dir={data_dir}",
            f"train.micro_batch_tokens={tokens}",
            "train.save=false",
            f"train.batch_size={sizes.epoch_batch}",
            f"device={sizes.device}",
            f"cache_dir={folder}/cache",
        ]
    )
    loop = Loop(run, *prepare(run), Path(folder) / "work")

    def batches() -> Iterator:
        while True:
            loop.step = 0
            yield from loop.batches.after(loop.step, loop.total)

    return loop, batches()


def _our_steps(loop, batches: Iterator, steps: int) -> None:
    for _ in range(steps):
        loop._step(next(batches))


def _padded_trainer(loop, backbone: Path, folder: str, sizes: Sizes) -> Callable[[], None]:
    """Some steps over the same examples, padded as the prior work's scripts pad them."""
    model = RobertaForSequenceClassification.from_pretrained(backbone, use_safetensors=True, trust_remote_code=False)
    tokenizer = loop.backbone.preprocess

    def collate(examples: list[dict]) -> dict:
        inputs = [{key: value for key, value in example.items() if key != "labels"} for example in examples]
        batch = dict(tokenizer.pad(inputs, padding="max_length", max_length=512, return_tensors="pt", verbose=False))
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}

    settings = {"per_device_train_batch_size": sizes.epoch_batch, "max_steps": sizes.epoch_steps, "learning_rate": 4e-3}
    return trainer(model, 1024, loop.data.train, collate, folder, sizes.device, **settings, dataloader_pin_memory=False)


def trainer(model: nn.Module, rank: int, rows, collate, folder: str, device: str, **settings) -> Callable[[], None]:
    """transformers' Trainer with PEFT's VeRA on one device, silent, with these of its own settings."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    config = peft.VeraConfig(r=rank, target_modules=list(QUERY_VALUE), modules_to_save=["classifier"])
    arguments = TrainingArguments(
        output_dir=f"{folder}/trainer",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        remove_unused_columns=False,
        **settings,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one, as ours; else DataParallel over all
    made = Trainer(model=peft.get_peft_model(model, config), args=arguments, train_dataset=rows, data_collator=collate)
    made.remove_callback(PrinterCallback)
    return made.train


def measure_case(
    name: str, device: str, data_dir: Path | None, banks: tuple[int, ...] | None = None, toy: bool = False
) -> list[Row]:
    """The rows of one case, h with these numbers of adapters if given; toy: of sizes that show nothing but that it runs. Raises
    NeedsMore when this machine lacks something."""
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    global _toy
    _toy, sizes = toy, Sizes(device, toy)
    allow_cudnn(False)  # as a run of texts has it, whatever ran before
    sizes.banks = banks or sizes.banks
    if name == "f":
        rows = case_f(sizes, data_dir)
    else:
        rows = {"a": case_a, "b": case_b, "c": case_c, "d": case_d, "e": case_e, "g": case_g, "h": case_h}[name](sizes)
    shown = {"shapes": "toy"} if toy else {}
    return [{**row, **shown, "load_average": load_average()} for row in rows]
