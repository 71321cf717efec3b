"""`make gpu-proof ARGS=--toy` on a CPU, without the packages that a GPU box may lack: its time is not for typing errors."""

import json
import os
import subprocess
import sys

import pytest

from bench import proof
from bench.plain import run_of
from tests.conftest import ROOT
from vera.config import compose

ALONE = f"""
import runpy, sys
for name in {(*proof.OPTIONAL, "omegaconf")}:
    sys.modules[name] = None
sys.argv[0] = "scripts/gpu_proof.py"
runpy.run_path("scripts/gpu_proof.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "parts",
    [
        ["a", "table12", "epoch", "step"],
        pytest.param(["tests", *"bcdegh"], marks=pytest.mark.slow),
    ],
    ids=lambda parts: parts[0],
)
def test_the_proof_runs_without_what_a_gpu_box_lacks(parts, tmp_path):
    command = [sys.executable, "-c", ALONE, *parts, "--toy", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done without: hydra, datasets, evaluate, wandb, bitsandbytes" in done.stdout
    (path,) = (path for path in tmp_path.glob("*.json") if path.name != "table12.json")
    written = json.loads(path.read_text())
    assert not written["left_out"]
    cases = {row["case"] for row in written["cases"]}
    assert cases == {part for part in parts if len(part) == 1} | ({"p"} if "epoch" in parts else set())
    assert all(row["ratio"]["median"] > 0 for row in written["cases"])
    if "table12" in parts:
        measured = json.loads((tmp_path / "table12.json").read_text())
        assert [case["case"] for case in measured["cases"]] == ["table12_time"]  # a CPU's peak is not known
        assert written["proof"]["step"]["seconds"] > 0 and written["proof"]["epoch"]["idle"] is None
    else:
        assert "passed" in written["proof"]["tests"] and "skipped" not in written["proof"]["tests"]


@pytest.mark.parametrize(
    ("parts", "changes", "overrides"),
    [
        (("roberta_base", "rte", "vera"), {}, []),
        (("llama_7b", "alpaca", "lora"), {"model__quantisation": "none"}, ["model.quantisation=none"]),
        (("llama_7b", "alpaca", "vera"), {"method__rank": 64}, ["method.rank=64"]),
        (("vit_base", "cifar100", "head"), {"train__epochs": 3}, ["train.epochs=3"]),
        (("vit_large", "food101", "vera"), {}, []),  # whose recipe begins from another
    ],
    ids=str,
)
def test_a_run_read_without_hydra_is_the_composed_one(parts, changes, overrides):
    found = run_of(*parts, **changes)
    groups = [f"{group}={name}" for group, name in zip(("model", "task", "method"), parts, strict=True)]
    composed = compose([*groups, *overrides])
    assert found.cell_id == composed.cell_id and found.scientific == composed.scientific


def test_the_time_in_which_a_gpu_is_busy_counts_each_moment_once():
    assert list(proof._joined([(0, 4), (1, 2), (3, 6), (8, 9)])) == [(0, 6), (8, 9)]
    assert list(proof._joined([])) == []
