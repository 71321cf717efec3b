"""Variants of VeRA, parameters with a rate of their own, and the learning rate that a method is told."""

import itertools

import pytest
import torch
from torch import nn

from vera.errors import AdapterError, ConfigError
from vera.methods.dvora import DvoraLinear
from vera.methods.vera_budget import VeraBudget, importance
from vera.nn import VeraConfig, attach, load_adapter, merge, save_adapter, unmerge, vera_layers
from vera.run import prepare
from vera.train.loop import Loop
from vera.train.optim import optimizer


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5, bias=False))


CONFIG = VeraConfig(rank=7, targets=("0", "2"), projection_seed=3)


def dvora():
    model = attach(net(), CONFIG, layer=DvoraLinear)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


@pytest.mark.parametrize("autocast", [False, True])
def test_dvora_starts_as_the_bare_model(autocast):
    x = torch.randn(40, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(attach(net(), CONFIG, layer=DvoraLinear)(x), net()(x), rtol=1e-6, atol=1e-6)


def test_dvora_is_dora_s_formula_with_vera_s_update():
    model = dvora()
    layer = dict(vera_layers(model))["0"]
    A, B, b, d = layer.matrices("default")
    m, x = layer.vectors["default"].m, torch.randn(4, 12)
    W = layer.base_layer.weight + torch.diag(b) @ B @ torch.diag(d) @ A
    wanted = x @ (torch.diag(m / W.pow(2).sum(1).sqrt().detach()) @ W).T + layer.bias
    found = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for name, ours, theirs in zip(
        "bdm", *(torch.autograd.grad(h.square().sum(), (b, d, m), retain_graph=True) for h in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=name)


def test_dvora_merges_and_gives_every_bit_back():
    model, x = dvora().eval(), torch.randn(4, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(x)
        for _ in range(2):
            torch.testing.assert_close(merge(model)(x), wanted, rtol=1e-5, atol=1e-5)
            layer = dict(vera_layers(model))["0"]
            torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x), rtol=1e-5, atol=1e-5)
            unmerge(model)
        assert torch.equal(model(x), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dvora_s_magnitudes_stay_float32_in_half_precision():
    model = dvora().to(torch.bfloat16)
    kept = {parameter.dtype for _, layer in vera_layers(model) for parameter in layer.vectors.parameters()}
    assert kept == {torch.float32} and model(torch.randn(4, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_variant_is_not_kept_or_read_as_vera(tmp_path):
    model = dvora()
    with pytest.raises(AdapterError, match=r"a variant of VeRA \(DvoraLinear\), which these files cannot hold"):
        save_adapter(model, tmp_path)
    save_adapter(attach(net(), CONFIG), tmp_path)
    with pytest.raises(AdapterError, match="a variant of VeRA"):
        load_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="0 is a DvoraLinear of another adapter, it cannot be a VeraLinear too"):
        attach(model, CONFIG, "second")


def test_dvora_counts_its_magnitudes(compose):
    backbone, method, _, _ = prepare(compose("method=dvora", "method.rank=8"))
    sizes = {name.rpartition(".")[2]: p.numel() for name, p in method.parameter_groups(backbone)["adapter"]}
    assert sizes == {"b": 16, "d": 8, "m": 16}


def test_importance_is_the_norm_of_each_term():
    torch.manual_seed(0)
    A, B, b, d = torch.randn(3, 5), torch.randn(4, 3), torch.randn(4), torch.randn(3)
    terms = [torch.linalg.matrix_norm(torch.outer(b * B[:, i], d[i] * A[i])) for i in range(3)]
    torch.testing.assert_close(importance(A, B, b, d), torch.stack(terms))


def test_the_budget_falls_to_its_end_and_is_dealt_out_over_the_layers(compose, tmp_path):
    run = compose(
        *("method=vera_budget", "method.rank=32", "method.budget=0.25", "method.interval=2", "train.lr=0.1"),
        *("train.epochs=10", "train.max_steps=20", "train.warmup_ratio=0"),
    )
    backbone, method, task, data = prepare(run)
    left = []

    def count(step, total, loss):
        left.append([int((layer.vectors.default.d != 0).sum()) for _, layer in vera_layers(backbone.model)])

    Loop(run, backbone, method, task, data, tmp_path, count).fit()
    sums = [sum(layers) for layers in left]
    assert sums[:2] == [128, 128] and sums[-1] == 32 and sums == sorted(sums, reverse=True)
    assert len(set(left[-1])) > 1, "every layer kept as many"
    assert [method.left(step, 20) for step in (0, 1, 7, 13, 19)] == pytest.approx([1, 1, 0.25 + 0.75 / 8, 0.25, 0.25])
    assert {after for after, (was, now) in enumerate(itertools.pairwise(sums), start=2) if now < was} == {4, 6, 8, 10, 12}
    layers = dict(vera_layers(backbone.model))
    kept = torch.cat([importance(*layer.matrices("default")) for layer in layers.values()])
    assert (kept > 0).sum() == 32


def test_what_the_ablations_vary_reaches_the_adapter(compose):
    """Tables 6 and 7: A, B, b and d as each layer has them."""

    def first_two(*settings):
        backbone, method, *_ = prepare(compose("method=vera", "method.rank=64", *(f"method.{word}" for word in settings)))
        parts = {name.rpartition(".")[2] for name, _ in method.parameter_groups(backbone)["adapter"]}
        return [layer.matrices("default") for _, layer in list(vera_layers(backbone.model))[:2]], parts

    ((A, B, b, d), other), parts = first_two("d_init=0.5")
    bound = (6 / 16) ** 0.5  # of Kaiming's uniform draw for 16 inputs
    assert (d == 0.5).all() and not b.any() and parts == {"b", "d"}
    assert 0.9 * bound < A.abs().max() < bound and A.min() < 0 and torch.equal(A, other[0]) and torch.equal(B, other[1])
    ((normal, *_), _), _ = first_two("init=kaiming_normal")
    ((uniform, *_), _), _ = first_two("init=uniform_0_0.1")
    assert normal.abs().max() > bound and 0 <= uniform.min() < 0.01 and 0.09 < uniform.max() <= 0.1
    (one, other), _ = first_two("sharing=unique")
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    (((_, _, b, d), _), parts), (((_, _, fixed, zero), _), alone) = first_two("train=only_b"), first_two("train=only_d")
    assert parts == {"b"} and (d == 0.1).all() and alone == {"d"} and fixed.any() and not zero.any()


@pytest.mark.parametrize("setting", ["train=only_d", "train=only_b", "d_init=0.0"])
def test_a_budget_of_entries_that_begin_at_zero_or_do_not_train_is_refused(setting, compose):
    """Zero is for good: they would never train."""
    with pytest.raises(ConfigError, match="a budget deals out entries of d, which zero ends for good"):
        prepare(compose("method=vera_budget", f"method.{setting}"))


def test_a_budget_without_time_to_prune_is_refused(compose):
    with pytest.raises(ConfigError, match=r"method.end: with start=0.5 no part of the run is left for the pruning"):
        prepare(compose("method=vera_budget", "method.start=0.5", "method.end=0.5"))


def treated(run):
    """Rate and decay of each trained parameter, by its name."""
    backbone, method, _, _ = prepare(run)
    groups = method.parameter_groups(backbone)
    found = {id(p): (g["base_lr"], g["weight_decay"]) for g in optimizer(groups, run.train).param_groups for p in g["params"]}
    return {name: found[id(p)] for name, p in groups["adapter"] + groups["head"]}


def test_lora_plus_learns_b_faster(compose):
    for name, (lr, _) in treated(compose("method=lora_plus", "train.lr=1e-3", "train.head_lr=2e-3")).items():
        assert lr == pytest.approx(16e-3 if "lora_B" in name else 1e-3 if "lora_A" in name else 2e-3), name


def test_decay_on_d_alone(compose):
    run = compose(
        "method=vera", "+method.groups.d.weight_decay=0.1", "+method.groups.classifier.lr_scale=2", "train.head_lr=1e-3"
    )
    for name, (lr, decay) in treated(run).items():
        assert decay == (0.1 if name.endswith(".d") else 0.0), name
        assert (lr == 2e-3) == ("classifier" in name), name


def test_a_group_with_a_rate_alone_is_decayed_as_usual(compose):
    keys = ("train.weight_decay=0.1", "train.head_weight_decay=0.2", "train.head_lr=1e-3", "train.lr=1e-3")
    run = compose("method=full", *keys, "+method.groups.layernorm_before.lr_scale=2", "+method.groups.q_proj.lr_scale=3")
    found = treated(run)
    for part, rate, name in (("layernorm_before", 2e-3, "weight"), ("q_proj", 3e-3, "weight"), ("q_proj", 3e-3, "bias")):
        of_part = {value for key, value in found.items() if f".{part}." in key and key.endswith(name)}
        assert of_part == {(rate, 0.1 if (part, name) == ("q_proj", "weight") else 0.0)}, part


def test_groups_are_part_of_the_identity_and_absent_ones_are_not(compose):
    assert compose("method=lora", "+method.groups.lora_B.lr_scale=2").cell_id != compose("method=lora").cell_id
    assert "groups" not in compose("method=lora").method


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+method.groups.lora_C.lr_scale=2",
            r"method.groups.lora_C names nothing that is trained; parts of names: .*lora_A, lora_B",
        ),
        ("+method.groups.lora_B.lr_scale=0", r"method.groups.lora_B.lr_scale: input should be greater than 0"),
        ("+method.groups.lora_B.rate=2", r"method.groups.lora_B.rate is not a key; allowed: lr_scale, weight_decay"),
        (
            "+method.groups={lora_B: {lr_scale: 2}, default: {lr_scale: 3}}",
            r"lora_B.default.weight is in two of them, default is",
        ),
    ],
)
def test_a_wrong_group_is_one_line(override, message, compose):
    with pytest.raises(ConfigError, match=message):
        treated(compose("method=lora", override))


def test_a_method_is_told_the_learning_rate_of_each_step(compose, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(VeraBudget, "on_step", lambda self, backbone, step, total, lr: told.append((step, total, lr)))
    monkeypatch.setattr(VeraBudget, "after_step", lambda *_: None)
    run = compose("method=vera_budget", "train.lr=0.4", "train.max_steps=4", "train.epochs=4", "train.warmup_ratio=0")
    Loop(run, *prepare(run), tmp_path).fit()
    assert told == [(0, 4, 0.4), (1, 4, pytest.approx(0.3)), (2, 4, pytest.approx(0.2)), (3, 4, pytest.approx(0.1))]
