"""The loop: seeds arrive, accumulation is exact, a killed run ends with the same numbers, a diverging one stops."""

import copy
import importlib
import json
import math
import os
import random
import runpy
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import forked
from tests.conftest import REHEARSAL
from vera.config import TrainConfig, build
from vera.errors import ConfigError, TrainingError
from vera.methods.base import ParameterGroups, biases_and_norms
from vera.records.store import Store
from vera.run import execute, prepare
from vera.train import state
from vera.train.batches import similar_lengths
from vera.train.loop import Loop, best_epoch
from vera.train.numerics import make_accelerator, precision_of
from vera.train.optim import lr_factor, optimizer
from vera.train.tracker import Wandb

TEXT = ("model=roberta_base", "task=rte")


@pytest.fixture
def fit(compose, tmp_path):
    """fit("key=value", ...) -> the finished loop."""

    def run(*overrides):
        config = compose(*overrides)
        work = tmp_path / f"work-{time.monotonic_ns()}"
        loop = Loop(config, *prepare(config), work)
        loop.fit()
        return loop

    return run


def test_a_record_names_the_code_that_it_began_with(compose, monkeypatch):
    """Commits may come while it trains."""
    sha, whole = ["a" * 40], Loop.fit
    monkeypatch.setattr("vera.run.code", lambda: {"git_sha": sha[0], "git_dirty": False, "versions": {}})
    monkeypatch.setattr(Loop, "fit", lambda loop: (sha.__setitem__(0, "b" * 40), whole(loop)))
    assert execute(compose()).provenance.git_sha == "a" * 40


def trained(loop):
    return loop.method.trained(loop.backbone)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_same_seed_same_numbers_other_seed_other_numbers(fit):
    first, again, other = fit("seed=0"), fit("seed=0"), fit("seed=1")
    assert first.history == again.history and same(trained(first), trained(again))
    assert first.history != other.history


def test_every_stream_follows_the_seed(compose, tmp_path):
    one_batch = ("train.batch_size=50", "train.max_steps=1")  # of all rows: dropout draws as much whatever their order
    configs = [compose(*TEXT, f"seed={seed}", *one_batch) for seed in (0, 0, 1)]
    runs = [prepare(config) for config in configs]
    heads = [backbone.model.classifier.dense.weight for backbone, *_ in runs]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    prints = [backbone.fingerprint for backbone, *_ in runs]
    assert len(set(prints)) == 1  # the backbone itself does not depend on the seed
    projections = [next(m for m in backbone.model.modules() if hasattr(m, "fingerprint")).fingerprint for backbone, *_ in runs]
    assert projections[0] == projections[1] != projections[2]
    generators = []  # torch's own, as dropout has left it
    for index, (config, run) in enumerate(zip(configs, runs, strict=True)):
        Loop(config, *run, tmp_path / str(index)).fit()
        generators.append(torch.get_rng_state())
    assert torch.equal(generators[0], generators[1]) and not torch.equal(generators[0], generators[2])


def test_data_order_follows_seed_and_epoch(compose, tmp_path):
    """Of rows that are the same for every seed."""

    def order(seed, epoch):
        config = compose(*TEXT, f"seed={seed}", "train.max_steps=null", "train.epochs=2", "train.batch_size=50")
        loop = Loop(config, *prepare(config), tmp_path)
        loop.step = epoch * loop.steps_per_epoch
        ((_, batch),) = next(loop.batches.after(loop.step, loop.total))
        return batch["input_ids"].tolist()

    first, later, other = order(0, 0), order(0, 1), order(1, 0)
    assert first == order(0, 0) and later != first != other
    assert sorted(first) == sorted(later) == sorted(other)


def test_accumulated_micro_batches_give_the_same_gradient(fit):
    """Weighted by size, also where the last one is smaller: no dropout in a ViT, so only rounding differs."""
    whole = fit("train.batch_size=10", "train.max_steps=3")
    parts = fit("train.batch_size=10", "train.max_steps=3", "train.micro_batch_size=3")
    assert parts.history[0]["train_loss"] == pytest.approx(whole.history[0]["train_loss"], rel=1e-5)
    for name, value in trained(parts).items():
        torch.testing.assert_close(value, trained(whole)[name], rtol=1e-3, atol=1e-5)
    assert parts.spent["examples"] == whole.spent["examples"] == 30


def test_micro_batches_of_similar_length_give_the_same_gradient_with_less_padding(compose, tmp_path):
    """Without dropout: the weights are those of the whole batch's mean, whatever the sizes of the pieces."""

    def gradients(*overrides):
        config = compose(*TEXT, "train.batch_size=16", *overrides)
        backbone, method, task, data = prepare(config)
        loop = Loop(config, backbone, method, task, data, tmp_path)
        backbone.model.eval()
        batches = next(loop.batches.after(loop.step, loop.total))
        for weight, batch in batches:
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            (weight * task.loss(backbone.model(**inputs).logits, batch)).backward()
        return batches, {name: p.grad for name, p in loop.parameters.items()}

    whole, wanted = gradients()
    parts, found = gradients("train.micro_batch_tokens=150")
    assert len(whole) == 1 < len(parts) and sum(weight for weight, _ in parts) == pytest.approx(1)
    assert sorted(label for _, b in parts for label in b["labels"].tolist()) == sorted(whole[0][1]["labels"].tolist())
    sizes = [batch["input_ids"].shape for _, batch in parts]
    assert all(rows * length <= 150 or rows == 1 for rows, length in sizes)
    assert sum(rows * length for rows, length in sizes) < whole[0][1]["input_ids"].numel()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-8, name


def test_examples_and_tokens_are_those_of_every_piece(compose, tmp_path):
    """One by one, so that nothing is padded: two epochs of all rows."""
    pieces = ("train.batch_size=10", "train.micro_batch_size=1", "train.epochs=2", "train.max_steps=null")
    run = compose(*TEXT, "method=head", *pieces)
    backbone, method, task, data = prepare(run)
    loop = Loop(run, backbone, method, task, data, tmp_path)
    loop.fit()
    rows = [data.train[index] for index in range(len(data.train))]
    assert loop.spent["examples"] == 2 * len(rows)
    assert loop.spent["tokens"] == 2 * sum(len(row["input_ids"]) for row in rows)


def test_pieces_of_similar_length():
    lengths = [3, 9, 2, 9, 40, 3]
    assert similar_lengths(lengths, int, 20, 6) == [[40], [9, 9], [3, 3, 2]]
    assert similar_lengths(lengths, int, 20, 2) == [[40], [9, 9], [3, 3], [2]]
    assert similar_lengths([1] * 4, int, 1000, 4) == [[1] * 4]


def test_clipping_shortens_the_gradient_of_all_parameters_as_one_vector(compose, tmp_path, monkeypatch):
    def gradient(clip):
        config, found = compose(f"train.clip={clip}", "train.max_steps=1"), []
        backbone, method, task, data = prepare(config)
        named = [parameter for group in method.parameter_groups(backbone).values() for _, parameter in group]
        monkeypatch.setattr(type(method), "after_step", lambda *_: found.extend(p.grad.flatten() for p in named))
        Loop(config, backbone, method, task, data, tmp_path / str(clip)).fit()
        return torch.cat(found)

    whole, clipped = gradient(0), gradient(1e-3)
    assert whole.norm() > 0.1 and clipped.norm().item() == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), whole / whole.norm(), rtol=1e-3, atol=1e-6)


def test_betas_and_epsilon_are_those_of_the_config(compose):
    groups = ParameterGroups((), adapter=[("d", torch.nn.Parameter(torch.ones(1)))], head=[])
    (made,) = optimizer(groups, compose("train.betas=[0.8,0.9]", "train.eps=1e-3").train).param_groups
    assert (*made["betas"], made["eps"]) == (0.8, 0.9, 1e-3)


def test_head_and_adapter_have_their_own_learning_rates(compose, tmp_path):
    for frozen, key in (("head", "train.head_lr=0"), ("adapter", "train.lr=0")):
        config = compose(key, "train.max_steps=3", "train.warmup_ratio=0")
        backbone, method, task, data = prepare(config)
        before = copy.deepcopy(method.trained(backbone))
        Loop(config, backbone, method, task, data, tmp_path).fit()
        groups = method.parameter_groups(backbone)
        for group, named in groups.items():
            moved = any(not torch.equal(parameter, before[name]) for name, parameter in named)
            assert moved == (group != frozen)


@pytest.mark.parametrize("model", ["digits_vit digits", "roberta_base rte", "gpt2_medium e2e", "llama2_7b alpaca"])
def test_weight_decay_spares_biases_and_norms_by_their_type(model, compose):
    name, task = model.split()
    choice = [f"model={name}", f"task={task}", "method=full", "train.weight_decay=0.1", "train.head_weight_decay=0.2"]
    choice += ["model.quantisation=none"] * name.startswith("llama")

    def decays(*more):
        config = compose(*choice, *more)
        backbone, method, _, _ = prepare(config)
        groups = method.parameter_groups(backbone)
        found = {id(p): g["weight_decay"] for g in optimizer(groups, config.train).param_groups for p in g["params"]}
        assert len(found) == len(groups["adapter"]) + len(groups["head"])
        return {n: (group, p, found[id(p)]) for group, named in groups.items() for n, p in named}

    for name, (group, parameter, decay) in decays().items():
        exempt = name.endswith("bias") or parameter.dim() == 1  # a fully trained backbone's other tensors are matrices
        assert decay == (0.0 if exempt else {"adapter": 0.1, "head": 0.2}[group]), name
    for name, (group, _, decay) in decays("train.decay_biases_and_norms=true").items():
        assert decay == {"adapter": 0.1, "head": 0.2}[group], name


@pytest.mark.parametrize(
    "named",
    [
        "qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated",
        "falcon_h1.modeling_falcon_h1.FalconH1RMSNormGated",
        "llama.modeling_llama.LlamaRMSNorm",
    ],
)
def test_norms_of_any_name_are_spared_by_weight_decay_and_what_holds_maps_is_not(named):
    place, _, kind = f"transformers.models.{named}".rpartition(".")
    norm = getattr(importlib.import_module(place), kind)(8)
    model = torch.nn.ModuleDict({"ln": norm, "map": torch.nn.Linear(8, 8), "scale": torch.nn.Embedding(3, 8)})
    assert {"ln." + name for name, _ in norm.named_parameters()} | {"map.bias"} == set(biases_and_norms(model))


def test_curves_of_runs_of_one_name_are_apart_and_those_of_one_run_go_on(monkeypatch, tmp_path):
    began = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **keys: began.append(keys), Settings=dict))
    monkeypatch.chdir(tmp_path)
    for results in ("a", "b", str(tmp_path / "a")):
        Wandb(project="p", mode="offline").start("run", {}, results)
    assert [keys["name"] for keys in began] == ["run"] * 3 and {keys["resume"] for keys in began} == {"allow"}
    first, other, again = (keys["id"] for keys in began)
    assert first == again != other and first.startswith("run-") and str(tmp_path) not in first


def test_trained_vectors_that_are_no_bias_are_decayed(compose):
    config = compose("method=vera", "train.weight_decay=0.1")
    backbone, method, _, _ = prepare(config)
    groups = method.parameter_groups(backbone)
    found = {id(p): g["weight_decay"] for g in optimizer(groups, config.train).param_groups for p in g["params"]}
    assert {found[id(p)] for _, p in groups["adapter"]} == {0.1} and all(p.dim() == 1 for _, p in groups["adapter"])


def test_trained_biases_of_an_adapter_are_spared_as_the_backbone_s_are(compose):
    config = compose("method=beft", "train.weight_decay=0.1", "train.lr=1e-3")
    backbone, method, _, _ = prepare(config)
    groups = method.parameter_groups(backbone)
    found = {id(p): g["weight_decay"] for g in optimizer(groups, config.train).param_groups for p in g["params"]}
    assert groups["adapter"] and {found[id(p)] for _, p in groups["adapter"]} == {0.0}


@pytest.mark.parametrize(("schedule", "wanted"), [("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]), ("constant", [0, 0.5, 1, 1, 1, 1])])
def test_schedule(schedule, wanted, compose):
    config: TrainConfig = compose(f"train.schedule={schedule}", "train.warmup_ratio=0.3").train
    assert [round(lr_factor(step, 6, config), 6) for step in range(6)] == wanted
    cosine = compose("train.schedule=cosine", "train.warmup_ratio=0").train
    assert lr_factor(0, 8, cosine) == 1 and lr_factor(4, 8, cosine) == pytest.approx(0.5) and lr_factor(8, 8, cosine) < 1e-9


def test_warm_up_in_steps(compose):
    config = compose("train.warmup_ratio=null", "train.warmup_steps=4").train
    assert [lr_factor(step, 8, config) for step in range(8)] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    none = compose("train.warmup_ratio=null").train
    assert lr_factor(0, 8, none) == 1
    some = compose("train.warmup_ratio=0.06").train
    assert [lr_factor(step, 21, some) for step in range(3)] == [0, 0.5, 1]  # 1.26 steps are two


def test_linear_schedule_equals_transformers(compose):
    from transformers import get_linear_schedule_with_warmup

    config = compose("train.warmup_ratio=0.06").train
    for total, warmup in ((100, 6), (105, 7)):  # 6.3 are 7
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        theirs = get_linear_schedule_with_warmup(optimiser, warmup, total)
        for step in range(total):
            assert lr_factor(step, total, config) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
            optimiser.step()
            theirs.step()


def test_max_steps_ends_the_schedule_and_the_last_epoch_is_scored(fit):
    loop = fit("train.epochs=5", "train.max_steps=7", "train.batch_size=10")
    assert loop.step == loop.total == 7
    assert [entry["epoch"] for entry in loop.history] == [1, 2] and loop.history[-1]["step"] == 7


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_steps(compose, tmp_path):
    run, told = compose("train.epochs=2", "train.max_steps=7", "train.batch_size=10"), []
    loop = Loop(run, *prepare(run), tmp_path, lambda step, total, loss: told.append(loss))
    loop.fit()
    assert [entry["train_loss"] for entry in loop.history] == pytest.approx([sum(told[:5]) / 5, sum(told[5:]) / 2])


@pytest.mark.parametrize(("evaluate", "scored"), [("epoch", [1, 2, 3, 4, 5]), ("last", [5]), ("2", [2, 4, 5])])
def test_evaluations_are_after_each_epoch_the_last_or_every_so_many(evaluate, scored, fit):
    """They change nothing of the training: each has the numbers that it has where every epoch is evaluated."""
    common = ("train.epochs=5", "train.max_steps=null", "train.batch_size=10", "method=lora", "method.dropout=0.2")
    every, some = fit(*common), fit(*common, f"train.evaluate={evaluate}")
    assert some.history == [entry for entry in every.history if entry["epoch"] in scored]
    assert len(some.history) == len(scored) and same(trained(some), trained(every))


def test_an_evaluation_that_is_not_due_leaves_a_run_resumable(compose, tmp_path):
    run = compose(
        "train.epochs=5", "train.max_steps=null", "train.batch_size=10", "train.evaluate=2", "train.checkpoint_seconds=0"
    )
    whole = Loop(run, *prepare(run), tmp_path / "whole")
    whole.fit()
    for kill_at in (4, 5, 6, 10, 11, 24):  # around an epoch that is not scored, around one that is, and before the end

        def kill(step, total, loss, kill_at=kill_at):
            if step == kill_at:
                raise Killed

        with pytest.raises(Killed):
            Loop(run, *prepare(run), tmp_path / "killed", kill).fit()
    resumed = Loop(run, *prepare(run), tmp_path / "killed")
    resumed.fit()
    assert resumed.spent["restarts"] == 6 and resumed.history == whole.history and same(trained(resumed), trained(whole))


def test_when_to_evaluate_is_part_of_the_identity_unless_it_is_each_epoch(compose):
    assert compose("train.evaluate=epoch").cell_id == compose().cell_id != compose("train.evaluate=last").cell_id
    for wrong in ("0", "never", "1.5", "true", "null"):
        with pytest.raises(ConfigError, match=r"train\.evaluate"):
            compose(f"train.evaluate={wrong}")


def test_numerics_are_those_of_the_run_and_not_of_the_last_one(compose, tmp_path):
    run = compose("train.deterministic=true", "train.tf32=true")
    assert run.cell_id == compose("train.tf32=true").cell_id != compose().cell_id
    exact = Loop(run, *prepare(run), tmp_path / "a")
    assert torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "high"
    exact.fit()
    assert exact.cost()["precision"] == "fp32"  # a CPU has no TF32
    plain = Loop(compose(), *prepare(compose()), tmp_path / "b")
    assert not torch.are_deterministic_algorithms_enabled() and torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    plain.fit()
    assert exact.history == plain.history


def test_cudnn_plans_no_attention_where_every_batch_may_have_a_length_of_its_own(fit):
    fit("train.max_steps=1")
    assert torch.backends.cuda.cudnn_sdp_enabled()  # images are of one size
    fit(*TEXT, "train.max_steps=1")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    fit("train.max_steps=1")
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_what_the_environment_tells_accelerate_of_other_programs_reaches_no_run(fit, monkeypatch):
    plain = fit("train.max_steps=4")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    other = fit("train.max_steps=4")
    assert other.history == plain.history and same(trained(other), trained(plain))
    assert other.accelerator.mixed_precision == "no" and other.accelerator.state.dynamo_plugin.backend == "NO"


def test_best_epoch_is_the_first_highest_and_ignores_undefined():
    history = [{"epoch": e, "metrics": {"m": v}} for e, v in enumerate([None, 0.5, 0.7, 0.7, 0.6], start=1)]
    assert best_epoch(history, "m") == 3
    assert best_epoch(history[:1], "m") is None


def test_each_metric_has_a_best_epoch_of_its_own(compose, monkeypatch):
    found = iter([{"accuracy": 0.9, "f1": 0.6}, {"accuracy": 0.8, "f1": 0.7}])
    monkeypatch.setattr("vera.tasks.glue.Glue.score", lambda *_: next(found))
    scores = execute(compose("model=minilm", "task=mrpc", "method=head", "train.epochs=2", "train.max_steps=null")).scores
    assert (scores.best.epoch, scores.best.metrics) == (1, {"accuracy": 0.9, "f1": 0.6})
    assert {metric: (best.epoch, best.metrics) for metric, best in scores.best_each.items()} == {
        "accuracy": (1, {"accuracy": 0.9}),
        "f1": (2, {"f1": 0.7}),
    }


def test_best_and_last_adapters_are_kept(compose):
    run = compose("train.save=true", "train.epochs=3", "train.max_steps=null", "train.batch_size=10")
    record = execute(run)
    folder = Path(run.work_dir) / record.name
    assert {path.name for path in folder.iterdir()} == {"best", "last"}
    assert (folder / "best" / "adapter_model.safetensors").is_file()
    assert [path.suffix for path in Path(run.results_dir).rglob("*") if path.is_file()] == [".json"]


def test_a_start_that_keeps_no_weights_names_none_that_an_earlier_one_kept(compose, tmp_path):
    """A later epoch may be the best one."""
    keys = ("train.epochs=2", "train.max_steps=null", "train.batch_size=25", "train.checkpoint_seconds=0")

    def kill(step, total, loss):
        if step == 4:
            raise Killed

    first, second = (compose(*keys, f"train.save={save}") for save in ("true", "false"))
    killed = Loop(first, *prepare(first), tmp_path, kill)
    with pytest.raises(Killed):
        killed.fit()
    resumed = Loop(second, *prepare(second), tmp_path)
    resumed.fit()
    assert killed.weights.keys() == {"best"} and resumed.spent["restarts"] == 1 and resumed.weights == {}


@pytest.mark.parametrize("later", [0.1, 0.9])
def test_a_start_that_keeps_weights_says_that_an_earlier_one_kept_none(later, compose, tmp_path, monkeypatch, warned):
    keys = ("train.epochs=2", "train.max_steps=null", "train.batch_size=25", "train.checkpoint_seconds=0")
    found = iter([{"accuracy": 0.5}, {"accuracy": later}])
    monkeypatch.setattr("vera.tasks.digits.Digits.score", lambda *_: next(found))

    def kill(step, total, loss):
        if step == 4:
            killed._checkpoint()  # else due when the last one is 20 times as long ago as it took
            raise Killed

    first, second = (compose(*keys, f"train.save={save}") for save in ("false", "true"))
    killed = Loop(first, *prepare(first), tmp_path, kill)
    with pytest.raises(Killed):
        killed.fit()
    assert warned() == []
    resumed = Loop(second, *prepare(second), tmp_path)
    resumed.fit()
    (said,) = warned()
    assert "an earlier start had train.save=false and kept no weights of epoch 1, the best so far" in said
    assert resumed.weights.keys() == ({"last"} if later == 0.1 else {"best", "last"})


def test_a_loss_that_is_not_finite_leaves_a_record_that_says_so(compose, train):
    explosive = (
        "train.lr=1e30",
        "train.head_lr=1e30",
        "train.clip=0",
        "train.max_steps=8",
        "train.warmup_ratio=0",
        "method=full",
    )
    record = execute(compose(*explosive))
    assert "the loss is" in record.collapsed or "not finite" in record.collapsed
    assert record.scores.best.metrics == record.scores.last.metrics == {"accuracy": None} and record.score() == -math.inf
    store = Store(compose(*explosive).results_dir)
    assert store.records() == [record] and not list(store.failed.glob("*"))
    again = train(*explosive, f"results_dir={store.root}")
    assert again.returncode == 0 and "already done" in again.stderr, again.stderr
    (told,) = [line for line in again.stderr.splitlines() if "collapsed: " in line]
    assert "train.lr=1e30" in told.partition("collapsed: ")[0]  # as of any other run


def test_constant_predictions_leave_a_record_that_says_so(compose, monkeypatch):
    run = compose("model=minilm", "task=stsb", "method=head", "train.epochs=2", "train.max_steps=null")
    found = iter([{"pearson": 0.5, "spearman": 0.5}, {"pearson": None, "spearman": None}])
    monkeypatch.setattr("vera.tasks.glue.Glue.score", lambda *_: next(found))
    record = execute(run)
    assert record.collapsed == "pearson is undefined after the last epoch: every prediction is the same, or every label"
    assert (record.scores.best.epoch, record.scores.best.metrics["pearson"]) == (1, 0.5)
    assert record.scores.last.metrics["pearson"] is None and record.score() == -math.inf


def test_any_failure_is_recorded_and_said_in_one_line(compose, monkeypatch):
    run = compose()
    monkeypatch.setattr("vera.run.prepare", lambda run, shared: {}["no such key"])
    with pytest.raises(TrainingError, match="KeyError: 'no such key'"):
        execute(run)
    assert len(list(Store(run.results_dir).failed.glob("*.json"))) == 1


def test_regression_uses_squared_error(compose):
    run = compose("model=roberta_base", "task=stsb")
    backbone, _, task, data = prepare(run)
    batch = data.collate(data.train[:4])
    labels = batch["labels"]
    assert labels.dtype == torch.float32 and backbone.model.config.num_labels == 1
    logits = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert task.loss(logits, batch).item() == pytest.approx(((logits.squeeze(1) - labels) ** 2).mean().item())


def test_evaluation_order_and_batch_size_do_not_matter(fit):
    small = fit(*TEXT, "train.eval_batch_size=3")
    large = fit(*TEXT, "train.eval_batch_size=100")
    assert small.history[0]["metrics"] == large.history[0]["metrics"]


def test_cuda_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="device=cuda"):
        make_accelerator("cuda", "auto")


def test_bf16_autocast_on_cpu_trains(fit):
    loop = fit("train.precision=bf16")
    assert loop.cost()["precision"] == "bf16" and len(loop.history) == 1


def test_the_precision_of_bf16_weights_is_bf16_without_autocast(compose):
    run = compose("model=llama_7b", "task=alpaca", "method=lora", "model.quantisation=none")
    model = prepare(run)[0].model
    accelerator = make_accelerator("cpu", "auto")
    assert precision_of(accelerator, model) == "bf16"
    bare = build(run.model, "model").load(0, Path(run.cache_dir)).model  # without a method, which freezes it
    assert all(parameter.requires_grad for parameter in bare.parameters()) and precision_of(accelerator, bare) == "bf16"
    assert precision_of(accelerator, model.float()) == "fp32"


def test_a_gpu_s_first_product_may_be_another_run_s_before_deterministic_ones(monkeypatch):
    """cuBLAS reads this once in a process: it is set before any run."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with warnings.catch_warnings(action="ignore"):
        runpy.run_module("vera.train.numerics")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("method", "kills"), [("vera", (1, 5, 7)), ("lora", (5,)), ("full", (6,))])
def test_a_run_killed_at_any_step_ends_with_the_same_numbers(method, kills, compose, tmp_path):
    """Mid-epoch, at an epoch's end and after it; with dropout, so that the random state matters."""
    overrides = (*TEXT, f"method={method}", "train.epochs=2", "train.max_steps=null", "train.batch_size=5")
    run = compose(*overrides, "train.checkpoint_seconds=0")

    def loop(work, on_progress=lambda *_: None):
        return Loop(run, *prepare(run), work, on_progress)

    whole = loop(tmp_path / "whole")
    whole.fit()
    for kill_at in kills:

        def kill(step, total, loss, kill_at=kill_at):
            if step == kill_at:
                raise Killed

        work = tmp_path / f"killed-{kill_at}"
        with pytest.raises(Killed):
            loop(work, kill).fit()
        resumed = loop(work)
        resumed.fit()
        assert resumed.spent["restarts"] == (kill_at > 1)
        assert resumed.history == whole.history, kill_at
        assert same(trained(resumed), trained(whole)), kill_at


def test_the_state_of_another_run_is_refused(compose, tmp_path):
    run, other = compose("train.max_steps=5", "train.checkpoint_seconds=0", "train.batch_size=5"), compose("train.max_steps=4")
    loop = Loop(run, *prepare(run), tmp_path)
    loop.fit()
    with pytest.raises(TrainingError, match=r"state of another run \(its cell_id differs"):
        Loop(other, *prepare(other), tmp_path).fit()
    for changed, what in (
        ({"fingerprint": "another"}, "model_fingerprint"),
        ({"notes": {"configuration": "b"}}, "configuration"),
    ):
        made = []
        for values in ({"notes": {"configuration": "a"}}, changed):
            backbone, method, task, data = prepare(run)
            made.append(Loop(run, replace(backbone, **values), method, task, data, tmp_path / what))
        made[0].fit()
        with pytest.raises(TrainingError, match=f"its {what} differs"):
            made[1].fit()
    Loop(run, *prepare(run), tmp_path).fit()  # neither says anything of a configuration
    (tmp_path / "state.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(TrainingError, match="not the state of this run"):
        Loop(run, *prepare(run), tmp_path).fit()


@pytest.mark.parametrize("where", ["count", "weight", "moment", "generator"])
def test_a_state_in_which_one_byte_has_changed_is_refused(compose, tmp_path, where):
    run = compose("train.max_steps=2", "train.checkpoint_seconds=0")
    Loop(run, *prepare(run), tmp_path).fit()
    path = tmp_path / "state.safetensors"
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    prefix = {"weight": "trained/", "moment": "optimizer/exp_avg/", "generator": "process/0/torch"}.get(where)
    if prefix is None:
        at = data.index(b": ", data.index(b"examples")) + 2
        assert chr(data[at]) in "123456789"
        data[at] = ord("2") if data[at] == ord("1") else ord("1")
    else:
        data[begin + next(spot["data_offsets"][0] for name, spot in header.items() if name.startswith(prefix))] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError, match=r"its bytes have changed since it was written\); delete it to start the run again"):
        Loop(run, *prepare(run), tmp_path).fit()


def test_a_record_says_what_an_earlier_start_had_and_another_precision_is_refused(compose, monkeypatch):
    run = compose("train.max_steps=5", "train.checkpoint_seconds=0", "train.batch_size=5")
    code = {"git_sha": "a" * 40, "git_dirty": False, "versions": {"torch": "1.0", "numpy": "2.0"}}
    state, step = Path(run.work_dir) / run.run_name / "state.safetensors", Loop._step

    def leave(loop, batches):
        if loop.step == 3:
            raise KeyboardInterrupt
        step(loop, batches)

    monkeypatch.setattr("vera.run.now", lambda: "the day before")
    monkeypatch.setattr("vera.run.code", lambda: code)
    monkeypatch.setattr(Loop, "_step", leave)
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    kept = state.read_bytes()
    monkeypatch.setattr(Loop, "_step", step)
    monkeypatch.setattr("vera.train.loop.precision_of", lambda *_: "bf16")
    with pytest.raises(
        TrainingError, match="holds a run that began in fp32 on cpu, and this start computes in bf16 on cpu; go on"
    ):
        execute(run)
    monkeypatch.undo()
    monkeypatch.setattr("vera.run.code", lambda: {**code, "git_sha": "b" * 40, "versions": {"torch": "2.0", "numpy": "2.0"}})
    run = run.model_copy(update={"train": run.train.model_copy(update={"micro_batch_size": 2})})  # it fits no longer
    record = execute(run)
    assert record.provenance.started == "the day before" and record.provenance.git_sha == "b" * 40
    earlier = {"step": 0, "started": "the day before", "git_sha": "a" * 40, "versions": {"torch": "1.0"}}
    earlier |= {"micro_batch_size": None}
    assert record.provenance.notes["resumed"] == [earlier] and record.cost.restarts == 1

    # a checkpoint from before there were any, or a sum of the bytes
    old = kept.replace(b'\\"starts\\"', b'\\"stirts\\"').replace(b'"crc32"', b'"crcno"')
    assert old.count(b"stirts") == old.count(b"crcno") == 1
    Store(run.results_dir).path(run.run_name).unlink()
    state.write_bytes(old)
    again = execute(run)
    assert again.scores == record.scores and "resumed" not in again.provenance.notes and again.cost.restarts == 1


@pytest.mark.parametrize(("ratio", "untrained"), [("0.06", True), ("0", False)])
def test_a_run_whose_only_step_has_rate_0_says_so(ratio, untrained, fit):
    loop = fit("train.max_steps=1", f"train.warmup_ratio={ratio}")
    assert ("untrained" in loop.notes()) == untrained


def test_sigkill_in_the_middle_then_the_same_command_completes(compose, cache, tmp_path):
    """The real thing: a process killed from outside, started again by the same command."""
    keys = [*TEXT, "train.epochs=20", "train.max_steps=null", "train.checkpoint_seconds=0.5", "seed=3"]  # 120 steps
    where = [f"results_dir={tmp_path / 'a'}", f"work_dir={tmp_path / 'a' / 'work'}", f"cache_dir={cache}"]
    whole = execute(compose(*keys))
    killed, command = forked.begin(tmp_path, "train.py", *REHEARSAL, *where, *keys, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "a" / "work").glob("*/state.safetensors")) and time.monotonic() < deadline and killed.is_alive():
        time.sleep(0.02)
    assert killed.is_alive(), (tmp_path / "stderr").read_text()
    killed.kill()
    killed.join()
    assert Store(tmp_path / "a").records() == []
    finished = forked.run("train.py", *command[1:], cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (resumed,) = Store(tmp_path / "a").records()
    assert resumed.cost.restarts == 1 and whole.cost.restarts == 0
    assert resumed.scores == whole.scores


def test_evaluation_drops_nothing_and_keeps_the_order_of_the_rows(compose, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("vera.tasks.glue.Glue.score", lambda task, *kept: seen.append(kept) or {"accuracy": 0.5})
    run = compose(*TEXT, "method=lora", "method.dropout=0.5", "train.max_steps=2", "train.eval_batch_size=7")
    backbone, method, task, data = prepare(run)
    Loop(run, backbone, method, task, data, tmp_path).fit()
    batch = data.collate([data.evaluation[index] for index in range(len(data.evaluation))])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = backbone.model.eval()(**batch).logits
    ((kept, of),) = seen
    torch.testing.assert_close(kept, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(of, labels)


def test_every_generator_goes_on_where_it_was():
    def drawn():
        return [random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal(), torch.rand(1).item()]

    drawn()  # so that numpy's and Python's second Gaussian is in hand
    kept = state.generators()
    wanted = drawn()
    drawn()
    state.restore_generators(kept)
    assert drawn() == wanted
