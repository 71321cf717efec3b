"""What keeps a GPU busy and may change no number: batches built ahead, a backbone that serves several runs, kept features."""

import gc
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from tests.test_train import TEXT, same, trained
from vera.config import build
from vera.errors import ConfigError
from vera.models import reuse
from vera.run import execute, prepare
from vera.train import batches, evaluate, features, feed
from vera.train.loop import Loop


@pytest.fixture(autouse=True)
def nothing_kept():
    reuse.forget()
    yield
    reuse.forget()


def test_batches_built_ahead_come_in_their_order_and_errors_in_their_place():
    def batches():
        yield from range(10)
        raise ValueError("the eleventh")

    found = []
    with pytest.raises(ValueError, match="the eleventh"):
        for batch in feed.ahead(batches()):
            time.sleep(0.001)
            found.append(batch)
    assert found == list(range(10))


def test_a_reader_that_leaves_ends_the_thread_that_builds():
    begun = []
    reader = feed.ahead(iter(range(1000)), begin=lambda: begun.append(threading.current_thread().name))
    assert next(reader) == 0 and begun == ["batches"]
    reader.close()
    assert not any(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize(("named", "meant"), [("cuda", 3), ("cuda:1", 1)])
def test_the_thread_of_a_gpu_is_on_that_gpu(named, meant, monkeypatch):
    """Accelerate names the only GPU of a process without its index, which set_device does not take."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch._utils._get_device_index(device)))
    monkeypatch.setattr(feed, "pinned", lambda batch: batch)
    assert list(feed.fed([1, 2], torch.device(named))) == [1, 2] and chosen == [meant]


@pytest.mark.parametrize("model", [(), TEXT])
def test_a_run_fed_by_a_thread_is_the_same_run(model, compose, tmp_path, monkeypatch):
    run = compose(*model, "train.epochs=2", "train.max_steps=null", "train.batch_size=7", "train.micro_batch_size=3")
    here = Loop(run, *prepare(run), tmp_path / "here")
    here.fit()
    for module in (batches, evaluate):
        monkeypatch.setattr(module, "fed", lambda batches, device: feed.ahead(batches))
    there = Loop(run, *prepare(run), tmp_path / "there")
    there.fit()
    assert (
        there.history == here.history and same(trained(there), trained(here)) and there.spent["tokens"] == here.spent["tokens"]
    )


def test_a_step_asks_the_other_processes_once_and_building_its_batch_never(compose, tmp_path, monkeypatch):
    run = compose("train.batch_size=10", "train.micro_batch_size=4")
    built = Loop(run, *prepare(run), tmp_path)
    asked = []
    monkeypatch.setattr(built.processes, "_reduced", lambda values, how: asked.append(values) or list(values))
    batches = next(built.batches.after(built.step, built.total))
    assert not asked and [len(batch["labels"]) for _, batch in batches] == [4, 4, 2]
    built._step(batches)
    assert len(asked) == 1


@pytest.mark.parametrize("overrides", [(), TEXT, ("model=gpt2_medium", "task=e2e")])
def test_the_weight_of_a_batch_follows_from_its_rows(overrides, compose):
    _, _, task, data = prepare(compose(*overrides))
    for rows in ([3, 0, 5], [7]):
        assert task.total_weight(data.train, rows) == task.weight(data.collate([data.train[row] for row in rows])) > 0


def test_images_travel_as_bytes_and_arrive_as_the_processor_makes_them(compose):
    backbone, _, _, data = prepare(compose("model=vit_base", "task=flowers102", "method=head"))
    batch = data.collate([data.train[0], data.train[1]])
    assert batch["pixel_values"].dtype == torch.uint8
    arrived = data.arrived(batch, torch.device("cpu"))
    expected = backbone.preprocess.normalise(batch["pixel_values"])
    assert torch.equal(arrived["pixel_values"], expected) and arrived["pixel_values"].dtype == torch.float32


# Kept backbones


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=full",),
        (*TEXT, "method=lora"),
        ("model=minilm", "task=rte", "method=bitfit"),
        ("model=gpt2_medium", "task=e2e"),
        ("model=llama2_7b", "task=alpaca", "model.quantisation=none", "model.gradient_checkpointing=true"),
    ],
)
def test_the_next_run_gets_what_it_would_have_read(overrides, compose, tmp_path):
    """Weights, head, adapter and the random generator, for another seed, after a run that has trained."""
    run, second = (compose(*overrides, f"seed={seed}", "train.max_steps=2") for seed in (0, 1))
    parts = prepare(run, shared=True)
    Loop(run, *parts, tmp_path).fit()
    kept = reuse._kept
    assert (kept is None) == ("method=full" in overrides)
    found = prepare(second, shared=True)[0]
    state = torch.get_rng_state()
    if kept is not None:
        assert reuse._kept is kept
    fresh = prepare(second)[0]
    assert torch.equal(state, torch.get_rng_state()) and found.fingerprint == fresh.fingerprint
    ours, theirs = dict(found.model.named_parameters()), dict(fresh.model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]) and parameter.requires_grad == theirs[name].requires_grad, name
    assert found.model.training == fresh.model.training


def test_runs_share_what_is_frozen_and_own_what_is_trained(compose):
    one, two = (prepare(compose("method=bitfit", f"seed={seed}"), shared=True)[0].model for seed in (0, 1))
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert (a.data_ptr() == b.data_ptr()) == (not a.requires_grad), name


def test_runs_share_one_copy_on_the_device_while_it_is_that_of_the_weights(compose):
    """In place of a GPU, a copy on the CPU."""

    def moved():
        model = prepare(compose(), shared=True)[0].model
        reuse._to_twins(model, torch.clone)
        return dict(model.named_parameters())

    first, second = moved(), moved()
    fresh = dict(prepare(compose())[0].model.named_parameters())
    frozen = [name for name, parameter in first.items() if not parameter.requires_grad]
    assert frozen and all(first[name].data_ptr() == second[name].data_ptr() for name in frozen)
    first[frozen[0]].data += 1.0
    third = moved()
    for name, parameter in third.items():
        assert torch.equal(parameter, fresh[name])
        assert name not in frozen[1:] or parameter.data_ptr() == first[name].data_ptr()


def test_what_an_earlier_run_left_is_gone_before_a_gpu_takes_the_next_model(compose, monkeypatch):
    """Accelerate ties a model into a cycle, which lives until the next collection; weights in 4 bits lie on the GPU."""
    model_config = build(compose().model, "model")

    class Tied:
        pass

    tied = Tied()
    tied.itself, gone = tied, weakref.ref(tied)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    whole, found = type(model_config)._load, []
    monkeypatch.setattr(type(model_config), "_load", lambda *given: found.append(gone()) or whole(*given))
    gc.disable()
    try:
        del tied
        assert gone() is not None
        model_config.load(2, Path(compose().cache_dir))
    finally:
        gc.enable()
    assert found == [None]


def test_a_changed_weight_is_never_handed_on(compose):
    run = compose()
    model = prepare(run, shared=True)[0].model
    before = reuse._kept
    name, frozen = next((n, p) for n, p in model.named_parameters() if not p.requires_grad and p.ndim == 2)
    frozen.data[0, 0] += 1.0  # what no method does
    found = prepare(run, shared=True)[0].model
    assert reuse._kept is not before
    assert torch.equal(dict(found.named_parameters())[name], dict(prepare(run)[0].model.named_parameters())[name])


def test_records_are_the_same_with_and_without_a_kept_backbone(compose, tmp_path):
    def record(method, results):
        return execute(compose(f"method={method}", "train.epochs=2", f"results_dir={tmp_path / results}"))

    alone = {}
    for method in ("vera", "lora", "bitfit", "head"):
        reuse.forget()
        alone[method] = record(method, "alone")
    reuse.forget()
    for method, expected in alone.items():
        found = record(method, "together")
        assert found.scores == expected.scores and found.weights == expected.weights, method
        assert found.provenance.model_fingerprint == expected.provenance.model_fingerprint


# Kept features


def test_kept_features_train_the_same_head(compose, tmp_path):
    """But for the last bits: the backbone computes batches of another size."""
    common = ("method=head", "train.epochs=3", "train.max_steps=null", "train.batch_size=8", "train.head_lr=0.01")
    runs = [compose(*common, *more) for more in ((), ("train.keep_features=true",))]
    assert runs[0].cell_id != runs[1].cell_id
    live, kept = (Loop(run, *prepare(run), tmp_path / str(index)) for index, run in enumerate(runs))
    passes = []
    kept.backbone.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    live.fit()
    kept.fit()
    assert not passes  # the backbone has done its work before the first step
    assert [e["train_loss"] for e in kept.history] == pytest.approx([e["train_loss"] for e in live.history], rel=1e-5)
    assert [e["metrics"] for e in kept.history] == [e["metrics"] for e in live.history]
    for name, value in trained(kept).items():
        torch.testing.assert_close(value, trained(live)[name], rtol=1e-4, atol=1e-6)
    assert kept.spent["examples"] == live.spent["examples"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=vera",), "vera trains before it"),
        ((*TEXT, "method=head"), "takes more than one vector|has dropout"),
        (("model=minilm", "task=rte", "method=head", "model.size=tiny"), "has dropout|of one module"),
    ],
)
def test_features_that_are_not_the_same_in_every_step_are_refused(overrides, said, compose, tmp_path):
    run = compose(*overrides, "train.keep_features=true")
    with pytest.raises(ConfigError, match=said):
        Loop(run, *prepare(run), tmp_path)


def test_statistics_of_the_batch_are_refused(compose, tmp_path):
    run = compose("method=head")
    backbone, method, _, data = prepare(run)
    backbone.model.base_model.register_module("odd", torch.nn.BatchNorm1d(3, affine=False, track_running_stats=False))
    with pytest.raises(ConfigError, match="odd normalises by the batch"):
        features.kept(backbone, method, data, 8, torch.no_grad)
