"""Local copies as `hf download` and the hub's cache lay them out: small random models, data sets of a few rows.

python -m tests.hub_folders FOLDER      FOLDER/models and FOLDER/data, for models_dir= and data_root=
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from vera.models.tiny import tiny_checkpoint

NARROW = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {
    "roberta": {"family": "roberta", **NARROW, "num_hidden_layers": 1},
    "gpt2": {"family": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1},
    "vit": {"family": "vit", **NARROW, "num_hidden_layers": 1, "image_size": 16, "patch_size": 4},
    "llama": {"family": "llama", **NARROW, "num_hidden_layers": 1},
}
VOCABULARY = {
    "roberta": {"vocab_size": 261, "type_vocab_size": 2},
    "gpt2": {"vocab_size": 257},
    "llama": {"vocab_size": 257, "max_position_embeddings": 1024},
}
# The last parts of the hub's ids. All models of a family have the same sizes, so that one set of overrides states them, each
# has its own weights.
MODELS = {
    "roberta": ("roberta-base", "roberta-large"),
    "gpt2": ("gpt2-medium", "gpt2-large"),
    "vit": ("vit-base-patch16-224-in21k", "vit-large-patch16-224-in21k"),
    "llama": ("llama-7b", "llama-13b", "Llama-2-7b-hf", "Llama-2-13b-hf"),
}
IMAGES = {
    "cifar100": ("img", "fine_label", 100, {"train": 10, "test": 1}),
    "food101": ("image", "label", 101, {"train": 10, "validation": 1}),
    "oxford_flowers102": ("image", "label", 102, {"train": 10, "validation": 1, "test": 1}),
    "resisc45": ("image", "label", 45, {"train": 9, "validation": 1, "test": 1}),
}


def models(folder: Path, families: Sequence[str] = tuple(MODELS)) -> Path:
    """Every model of these families, a folder each with config.json, model.safetensors and tokenizer or image processor."""
    for family in families:
        for number, name in enumerate(MODELS[family], start=1):
            made = tiny_checkpoint({**SMALL[family], "initializer_range": 0.02 * number}, folder / ".made")
            shutil.copytree(made, folder / name, dirs_exist_ok=True)
    shutil.rmtree(folder / ".made")
    return folder


def stated(family: str) -> list[str]:
    """Overrides by which runs take these models for what they are: small ones, with a name of their own."""
    sizes = {**SMALL[family], **VOCABULARY.get(family, {})}
    return ["model.name=small", *(f"model.full.{key}={value}" for key, value in sizes.items() if key != "family")]


def parquet(path: Path, columns: dict[str, list], features: datasets.Features | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def glue(folder: Path, rows: int = 8) -> None:
    """nyu-mll/glue: a folder a task; the test labels are -1."""
    pairs = {"rte": ("sentence1", "sentence2"), "mrpc": ("sentence1", "sentence2"), "qnli": ("question", "sentence")}
    texts = {**pairs, "stsb": ("sentence1", "sentence2"), "sst2": ("sentence",), "cola": ("sentence",)}
    for task, names in texts.items():
        for split in ("train", "validation", "test"):
            labels = [float(i % 6) if task == "stsb" else i % 2 for i in range(rows)]
            columns = {name: [f"{name} {i} of {task}" for i in range(rows)] for name in names}
            columns |= {"label": labels if split != "test" else [-1] * rows, "idx": list(range(rows))}
            parquet(folder / task / f"{split}-00000-of-00001.parquet", columns)


def e2e(folder: Path, rows: int = 4) -> None:
    """tuetschek/e2e_nlg at refs/convert/parquet, and beside it Hu et al.'s texts."""
    names = ("train", "validation", "test")
    for split, hu in zip(names, ("train", "valid", "test"), strict=True):
        meanings = [f"name[Zizzi {i}], eatType[pub]" for i in range(rows)]
        references = [f"Zizzi {i} is a pub." for i in range(rows)]
        columns = {"meaning_representation": meanings, "human_reference": references}
        parquet(folder / "default" / split / "0000.parquet", columns)
        lines = "".join(f"name : Zizzi {i} | Type : pub||Zizzi {i} is a pub .\n" for i in range(rows))
        (folder / f"{hu}.txt").write_text(lines, encoding="utf-8")


def images(folder: Path, names: Sequence[str] = tuple(IMAGES)) -> None:
    """The four image data sets with their own columns and splits: ten images a class to draw from, few to evaluate on."""
    draws = np.random.default_rng(0)
    for name in names:
        image, label, classes, splits = IMAGES[name]
        kinds = {image: datasets.Image(), label: datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])}
        for split, each in splits.items():
            labels = [i % classes for i in range(classes * each)]
            pictures = [{"bytes": _png(draws), "path": None} for _ in labels]
            path = folder / name / "data" / f"{split}-00000-of-00001.parquet"
            parquet(path, {image: pictures, label: labels}, datasets.Features(kinds))


def _png(draws: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def alpaca(folder: Path, rows: int) -> None:
    """yahma/alpaca-cleaned: one JSON file."""
    found = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alpaca_data_cleaned.json").write_text(json.dumps(found))


def questions(folder: Path) -> None:
    """Files of FastChat's format, without its judge prompts: MT-Bench (two turns) and Vicuna Eval (one)."""
    for name, turns in (("mt_bench", 2), ("vicuna_bench", 1)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = [{"question_id": i, "category": c, "turns": ["What?", "Why?"][:turns]} for i, c in ((1, "writing"), (2, "math"))]
        (folder / name / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = {"question_id": 2, "choices": [{"index": 0, "turns": ["4", "8"]}]}
    (folder / "mt_bench" / "reference_answer_gpt-4.jsonl").write_text(json.dumps(reference) + "\n")


def everything(folder: Path) -> Path:
    """Every data set of the paper and the judges' questions, under the names that data_root= looks for."""
    glue(folder / "glue")
    e2e(folder / "e2e_nlg")
    images(folder)
    alpaca(folder / "alpaca-cleaned", 10_600)
    questions(folder)
    return folder


if __name__ == "__main__":
    models(Path(sys.argv[1]) / "models")
    everything(Path(sys.argv[1]) / "data")
