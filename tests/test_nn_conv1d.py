"""transformers' Conv1D, GPT-2's own linear map, whose weight lies the other way round: adapted, merged, and in PEFT's files."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft import VeraConfig as PeftVeraConfig
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.pytorch_utils import Conv1D

from tests.conftest import trained
from vera.errors import AdapterError
from vera.nn import (
    AdapterBank,
    VeraConfig,
    VeraLinear,
    attach,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    unload,
    unmerge,
    vera_layers,
)
from vera.nn.functional import Plan

IDS = torch.arange(5, 25).view(2, 10)
TARGETS = ("c_attn", "c_proj", "c_fc")  # d_in and d_out of every proportion


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def test_a_new_adapter_changes_nothing_and_leaves_no_trace():
    model = gpt2()
    bare = logits(model)
    attach(model, VeraConfig(rank=8, targets=TARGETS))
    shapes = {
        name.rpartition("h.0.")[2]: (layer.out_features, layer.in_features)
        for name, layer in vera_layers(model)
        if ".h.0." in name
    }
    assert shapes == {"attn.c_attn": (48, 16), "attn.c_proj": (16, 16), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}
    torch.testing.assert_close(logits(model), bare, rtol=1e-5, atol=1e-6)
    trained(model)
    assert (logits(model) - bare).abs().max() > 0.01
    assert torch.equal(logits(unload(model)), bare)


@pytest.mark.parametrize("order", ["activation", "weight"])
def test_output_and_gradients_are_those_of_the_formula(order):
    torch.manual_seed(0)
    base = Conv1D(12, 7)
    torch.nn.init.normal_(base.bias)
    model = attach(torch.nn.Sequential(base), VeraConfig(rank=5, targets=("0",), projection_seed=3))
    layer = trained(model)[0]
    layer.plan = Plan(order)
    A, B, b, d = layer.matrices("default")
    W0 = base.weight.detach().clone().T
    x = torch.randn(6, 7, requires_grad=True)
    g = torch.randn(6, 12)

    def formula(x, b, d):
        return x @ (W0 + torch.diag(b) @ B @ torch.diag(d) @ A).T + base.bias

    wanted = torch.autograd.grad(formula(x, b, d), (x, b, d), g)
    y = layer(x)
    torch.testing.assert_close(y, formula(x, b, d), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(y, (x, b, d), g), wanted, rtol=1e-4, atol=1e-4)


def test_merging_is_exact_and_the_merged_model_is_plain(tmp_path):
    model = trained(attach(gpt2(), VeraConfig(rank=8, targets=TARGETS)))
    weights = {name: layer.base_layer.weight.clone() for name, layer in vera_layers(model)}
    adapted = logits(model)
    merge(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-5, atol=1e-5)
    unmerge(model)
    assert all(torch.equal(layer.base_layer.weight, weights[name]) for name, layer in vera_layers(model))
    merge_and_unload(model).save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(loaded), adapted, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, VeraLinear) for module in model.modules())


@pytest.mark.filterwarnings("ignore")
def test_files_travel_both_ways_with_peft(tmp_path):
    ours = trained(attach(gpt2(), VeraConfig(rank=8, targets=TARGETS, projection_seed=5)))
    save_adapter(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["fan_in_fan_out"] is True
    theirs = PeftModel.from_pretrained(gpt2(), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-5, atol=1e-5)

    config = PeftVeraConfig(r=8, target_modules=list(TARGETS), projection_prng_key=7, fan_in_fan_out=True)
    theirs = trained(get_peft_model(gpt2(), config), 2)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_adapter(gpt2(), tmp_path / "theirs")
    torch.testing.assert_close(logits(again), logits(theirs), rtol=1e-5, atol=1e-5)


def test_fan_in_fan_out_follows_the_layers_of_the_adapter(tmp_path):
    model = gpt2()
    attach(model, VeraConfig(rank=8, targets=("c_attn",)), "conv")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # tied to the embeddings before
    attach(model, VeraConfig(rank=8, targets=("lm_head",)), "linear")
    for name, flag in (("conv", True), ("linear", False)):
        save_adapter(model, tmp_path / name, name)
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["fan_in_fan_out"] is flag


def test_a_bank_serves_them(tmp_path):
    wanted = [logits(gpt2())]
    for seed, name in ((1, "a"), (2, "b")):
        model = trained(attach(gpt2(), VeraConfig(rank=8, targets=TARGETS)), seed)
        wanted.append(logits(model))
        save_adapter(model, tmp_path / name)
    backbone = gpt2()
    bank = AdapterBank(backbone)
    assert not bank.load(tmp_path)
    for rows, expected in ((["a", "b"], (wanted[1][0], wanted[2][1])), ([None, "a"], (wanted[0][0], wanted[1][1]))):
        with bank.use(rows):
            torch.testing.assert_close(logits(backbone), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_subclass_keeps_its_own_call_and_is_not_merged():
    class Doubled(Conv1D):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    model = torch.nn.Sequential(Doubled(6, 4))
    x = torch.randn(3, 4)
    before = model(x)
    attach(model, VeraConfig(rank=2, targets=("0",)))
    torch.testing.assert_close(model(x), before)
    with pytest.raises(AdapterError, match="Doubled"):
        merge(model)


def test_the_input_may_be_named_as_conv1d_names_it():
    layer = attach(torch.nn.Sequential(Conv1D(7, 5)), VeraConfig(rank=3, targets=("0",)))[0]
    x = torch.randn(2, 5)
    assert torch.equal(layer(x=x), layer(x))
