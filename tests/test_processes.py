"""Several processes on one run, as `accelerate launch` starts them: the same numbers, one record, one end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import EsmConfig, EsmModel

from tests.conftest import REHEARSAL, ROOT
from vera.errors import ConfigError, TrainingError
from vera.models.llama import Llama
from vera.models.tiny import byte_tokenizer
from vera.nn.checkpoint import WEIGHTS_FILE, read_weights
from vera.records.record import Record
from vera.records.store import Store
from vera.run import execute
from vera.train.processes import Processes, together

TEXT = ("model=roberta_base", "task=rte", "train.batch_size=5", "train.epochs=2", "train.max_steps=null")


@pytest.fixture
def launch(cache, tmp_path):
    """Run tests/launched.py in two processes that compute together; returns the finished launcher."""

    def run(what: str, *overrides: str, how: tuple[str, ...] = ("--multi_gpu",)) -> subprocess.CompletedProcess:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2"]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        flags = ["-m"] if any("," in override for override in overrides) else []
        command = [*launcher, str(ROOT / "tests" / "launched.py"), what, *flags, *REHEARSAL, f"cache_dir={cache}", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=environment)

    return run


def lines(done: subprocess.CompletedProcess, start: str) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(start)]


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    (path,) = (folder / name / "last").glob("*.safetensors")
    return load_file(path)


@pytest.mark.parametrize("methods", ["vera,full", pytest.param("lora,adalora,dylora", marks=pytest.mark.slow)])
def test_two_processes_give_the_numbers_of_one_and_a_failure_leaves_them_in_step(methods, launch, compose, tmp_path):
    """No dropout. 50 rows in batches of 7: shares of 4 and 3 in pieces of 2; the last batch is one row, none for process 1."""
    keys = ["train.batch_size=7", "train.epochs=2", "train.max_steps=null", "train.micro_batch_size=2", "train.save=true"]
    keys += ["train.clip=0.5", "train.warmup_ratio=0"]
    swept = [f"method={methods}", "train.lr=1e30,0.01", f"work_dir={tmp_path / 'many'}"]
    done = launch("run", *keys, *swept, f"results_dir={tmp_path / 'together'}")
    failed = sorted(path.name.split("--")[2] for path in tmp_path.glob("together/failed/*.json"))
    every = list(Store(tmp_path / "together").records())
    collapsed = {record.run.method for record in every if record.collapsed and record.run.config["train"]["lr"] > 1}
    named = set(methods.split(","))
    assert named & {"full", "lora"} <= collapsed | set(failed) and (done.returncode != 0) == bool(failed), done.stderr
    assert len(lines(done, "error: digits_vit--digits")) == len(failed), done.stderr  # one line each
    records = [record for record in every if record.run.config["train"]["lr"] < 1]
    assert {record.run.method for record in records} == named, done.stderr
    for record in records:
        alone = execute(compose(*keys, f"method={record.run.method}", "train.lr=0.01"))
        assert alone.name == record.name and (alone.cost.processes, record.cost.processes) == (1, 2)
        assert record.cost.examples == alone.cost.examples == 100 and record.cost.steps == alone.cost.steps
        for one, two in zip(alone.scores.history, record.scores.history, strict=True):
            assert two.train_loss == pytest.approx(one.train_loss, abs=1e-4)
            assert two.metrics == pytest.approx(one.metrics, abs=1e-4)
        ours, theirs = trained(tmp_path / "many", record.name), trained(tmp_path / "work", alone.name)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-4, msg=f"{record.run.method}: {name}")


@pytest.mark.slow
def test_killed_in_one_process_and_resumed_by_all(launch, compose, tmp_path):
    """With dropout, which each process draws for itself: the resumed run has the bits of the one that was never killed."""
    keys = (*TEXT, "train.checkpoint_seconds=0")
    where = [f"results_dir={tmp_path / 'results'}", f"work_dir={tmp_path / 'work'}"]
    killed = launch("kill", *keys, *where)
    assert killed.returncode != 0 and not Store(tmp_path / "results").records()
    with pytest.raises(TrainingError, match=r"is the state of 2 processes, and this is 1; go on with --num_processes 2"):
        execute(compose(*keys))
    resumed = launch("run", *keys, *where)
    assert resumed.returncode == 0, resumed.stderr
    assert len(lines(resumed, "roberta_base--rte--vera")) == 1
    whole = launch("run", *keys, f"results_dir={tmp_path / 'whole'}", f"work_dir={tmp_path / 'other'}")
    assert whole.returncode == 0, whole.stderr
    (a,), (b,) = Store(tmp_path / "results").records(), Store(tmp_path / "whole").records()
    assert (a.cost.restarts, b.cost.restarts) == (1, 0)
    assert a.scores == b.scores and (a.cost.examples, a.cost.tokens) == (b.cost.examples, b.cost.tokens)


@pytest.mark.slow
def test_a_failure_in_one_process_alone_ends_all_with_one_line_and_one_file(launch, tmp_path):
    done = launch("fail", *TEXT, f"results_dir={tmp_path / 'results'}")
    assert done.returncode != 0
    (line,) = lines(done, "error: ")
    assert "roberta_base--rte--vera" in line and "this process alone cannot go on" in line
    (path,) = (tmp_path / "results" / "failed").iterdir()
    assert json.loads(path.read_text())["error"] == "this process alone cannot go on"
    assert not Store(tmp_path / "results").records()


def test_a_record_of_one_process_says_nothing_of_processes(compose):
    record = execute(compose())
    assert record.cost.processes == 1 and "processes" not in record.to_json()
    many = Record.model_validate({**record.model_dump(by_alias=True), "cost": {**record.cost.model_dump(), "processes": 4}})
    assert '"processes": 4' in many.to_json()


def test_one_process_needs_nobody():
    alone = Processes()
    assert alone.sum(1, 2.5) == [1, 2.5] and alone.any(True) and not alone.any(False)
    assert alone.on_main(lambda: {"a": 1}) == {"a": 1} and alone.failure() == (True, True)
    (found,) = alone.gather({"x": torch.ones(2)})
    assert torch.equal(found["x"], torch.ones(2))


def test_answers_and_launchers_want_one_process(train, monkeypatch, compose):
    from vera.trained.answers import answer

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="written by one process"):
        answer(compose(), None)
    done = train("-m", "seed=0,1", "hydra/launcher=joblib", WORLD_SIZE="2")
    assert done.returncode == 2 and "leave hydra/launcher out" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_sharded_llama_gives_the_numbers_of_one_process_and_the_same_adapter(launch, compose, tmp_path, monkeypatch):
    """FSDP: shares of 3 and 2 in pieces of 2 (process 1 has fewer); 4-bit weights and full fine-tuning are refused, and the
    sweep goes on. In bf16, the default, losses agree as well, but each step's rounding depends on the pieces."""
    monkeypatch.setattr(Llama, "settings", property(lambda self: {"dtype": torch.float32}))
    keys = ["model=llama_7b", "task=alpaca", "train.batch_size=5", "train.max_steps=6", "train.micro_batch_size=2"]
    keys += ["train.save=true", "train.eval_batch_size=3", "train.precision=fp32"]
    where = [f"results_dir={tmp_path / 'sharded'}", f"work_dir={tmp_path / 'many'}"]
    swept = ["method=vera,lora,full", "model.quantisation=none,nf4"]
    done = launch("wide", *keys, *swept, *where, how=("--use_fsdp", "--fsdp_version", "2"))
    failed = [json.loads(path.read_text())["error"] for path in (tmp_path / "sharded" / "failed").iterdir()]
    assert sum("freezes nothing" in error for error in failed) >= 1, done.stderr
    assert sum("shards no 4-bit weights" in error for error in failed) >= 2, done.stderr
    records = Store(tmp_path / "sharded").records()
    assert {record.run.method for record in records} == {"vera", "lora"} and len(records) == 2, done.stderr
    for record in records:
        alone = execute(compose(*keys, f"method={record.run.method}", "model.quantisation=none"))
        assert alone.name == record.name and record.cost.processes == 2
        for one, two in zip(alone.scores.history, record.scores.history, strict=True):
            assert two.train_loss == pytest.approx(one.train_loss, abs=1e-4)
            assert two.metrics == pytest.approx(one.metrics, abs=1e-4)
        ours, theirs = trained(tmp_path / "many", record.name), trained(tmp_path / "work", alone.name)
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-4, msg=f"{record.run.method}: {name}")
        many, one = (tmp_path / folder / record.name / "last" / WEIGHTS_FILE for folder in ("many", "work"))
        said = read_weights(many)[1]  # by which loading tells another backbone
        assert said.get("norms", []) == pytest.approx(read_weights(one)[1].get("norms", []), rel=1e-5)
        assert bool(said) == (record.run.method == "vera")


@pytest.mark.slow
def test_a_trained_layer_that_no_loss_reaches_is_refused_before_the_first_step(launch, tmp_path):
    """One process trains the rest and says so (tests/test_own_backbone.py); DistributedDataParallel would wait for it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    EsmModel(EsmConfig(**sizes, vocab_size=261, pad_token_id=1, mask_token_id=4)).save_pretrained(tmp_path / "esm")
    byte_tokenizer().save_pretrained(tmp_path / "esm")
    keys = [
        "model=auto_text",
        "model.name=mine",
        f"model.path={tmp_path / 'esm'}",
        "model.size=full",
        "task=rte",
        "method=lora",
    ]
    done = launch("run", *keys, "train.lr=1e-3", "method.targets=[all_linear]", f"results_dir={tmp_path / 'out'}")
    (line,) = lines(done, "error: ")
    assert "depends on 2 of the 30 trained tensors" in line and "contact_head" in line and "use one process" in line
    assert (done.returncode != 0 and not (tmp_path / "out" / "runs").exists()) or not any((tmp_path / "out" / "runs").iterdir())


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_what_a_launcher_asks_for_and_no_run_does_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(ConfigError, match=rf"{name}=true: runs do not use .* --multi_gpu"):
        together("cpu")
