"""Unloading, merging for good, deleting and disabling adapters."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, RobertaConfig

from tests.conftest import trained
from vera.errors import AdapterError
from vera.nn import (
    VeraConfig,
    attach,
    delete_adapter,
    disabled,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unload,
    unmerge,
    vera_layers,
)

IDS = torch.arange(5, 12)[None]


def roberta():
    torch.manual_seed(0)
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50, num_labels=3
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def llama(**settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes), **settings).eval()


def config(*targets, head=()):
    return VeraConfig(rank=8, targets=targets or ("query", "value"), modules_to_save=head)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def two_adapters():
    """A classifier with a head for each adapter: model, bare logits, logits of "a" and of "b", which is active."""
    model = roberta()
    bare = logits(model)
    trained(attach(model, config(head=("classifier",)), "a"), 1)
    first = logits(model)
    trained(attach(model, config("query", "key", head=("classifier",)), "b"), 2)
    return model, bare, first, logits(model)


def is_plain(model, like):
    return (
        not list(vera_layers(model))
        and [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in like.named_modules()]
        and list(model.state_dict()) == list(like.state_dict())
        and vars(model).keys() == vars(like).keys()
    )


@pytest.mark.parametrize("merged", [False, True])
def test_unload_gives_the_model_of_before(merged):
    model, *_ = two_adapters()
    if merged:
        merge(model)
    like = roberta()
    assert unload(model) is model and is_plain(model, like)
    for name, value in model.state_dict().items():
        assert torch.equal(value, like.state_dict()[name]), name
    attach(model, config(), "a")  # the name is free again


def test_merge_and_unload_writes_a_plain_model_with_the_head(tmp_path):
    model, bare, first, second = two_adapters()
    plain = merge_and_unload(copy.deepcopy(model))
    assert is_plain(plain, roberta())
    torch.testing.assert_close(logits(plain), second, rtol=1e-5, atol=1e-6)
    plain.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded.state_dict(), plain.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(logits(loaded), second, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(merge_and_unload(model, "a")), first, rtol=1e-5, atol=1e-6)
    assert (first - bare).abs().max() > 1e-2 and (second - first).abs().max() > 1e-2


def test_merge_and_unload_of_a_language_model_in_half_precision_rounds_a_float32_sum_once(tmp_path):
    model = llama(dtype=torch.bfloat16)
    trained(attach(model, config("q_proj", "v_proj")))
    layer = dict(vera_layers(model))["model.layers.1.self_attn.v_proj"]
    A, B, b, d = (tensor.double() for tensor in layer.matrices("default"))
    exact = layer.base_layer.weight.double() + b[:, None] * B @ (d[:, None] * A)
    plain = merge_and_unload(model)
    weight = plain.model.layers[1].self_attn.v_proj.weight
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, exact.float().bfloat16()) or (weight.double() - exact).abs().max() <= (exact.abs() * 2**-8).max()
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(loaded.state_dict(), plain.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=0.01, atol=0.001)


def test_a_merge_that_cannot_be_leaves_everything_as_it_was():
    model, _, _, second = two_adapters()
    with torch.no_grad():
        dict(vera_layers(model))["roberta.encoder.layer.1.attention.self.query"].vectors["a"].b.fill_(float("inf"))
    with pytest.raises(AdapterError, match="not finite"):
        merge_and_unload(model, "a")
    assert torch.equal(logits(model), second)
    set_adapter(model, None)
    with pytest.raises(AdapterError, match="no adapter is active, so there is nothing to merge; attached: a, b"):
        merge_and_unload(model)
    with pytest.raises(AdapterError, match="no adapter is called 'c'; attached: a, b"):
        merge_and_unload(model, "c")


def test_delete_adapter(tmp_path):
    model, bare, first, second = two_adapters()
    save_adapter(model, tmp_path, "a")
    key = dict(vera_layers(model))["roberta.encoder.layer.0.attention.self.key"]
    delete_adapter(model, "a")
    assert torch.equal(logits(model), second)
    assert not any(name.endswith("value") for name, _ in vera_layers(model)) and key.vectors.keys() == {"b"}
    with pytest.raises(AdapterError, match="no adapter is called 'a'; attached: b"):
        delete_adapter(model, "a")
    load_adapter(model, tmp_path, "a")
    torch.testing.assert_close(logits(model), first)
    delete_adapter(model, "a")  # the active one
    assert torch.equal(logits(model), bare)
    set_adapter(model, "b")
    assert torch.equal(logits(model), second)
    merge(model)
    with pytest.raises(AdapterError, match="'b' is merged"):
        delete_adapter(model, "b")
    unmerge(model)
    delete_adapter(model, "b")
    assert is_plain(model, roberta()) and torch.equal(logits(model), bare)


@pytest.mark.parametrize("merged", [False, True])
def test_disabled_is_the_bare_backbone_and_comes_back(merged):
    model, bare, _, second = two_adapters()
    frozen = next(p for p in model.parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    thawed = model.roberta.embeddings.word_embeddings.weight.requires_grad_(True)
    if merged:
        merge(model)
    before = logits(model)
    grads = [p.requires_grad for p in model.parameters()]
    for attempt in range(2):
        with pytest.raises(KeyError), disabled(model) as inside:
            assert inside is model and torch.equal(logits(model), bare)
            with disabled(model):
                assert torch.equal(logits(model), bare)
            assert torch.equal(logits(model), bare)
            if attempt:
                set_adapter(model, "a")
            raise KeyError
        assert torch.equal(logits(model), before)
        assert [p.requires_grad for p in model.parameters()] == grads and thawed.requires_grad and not frozen.requires_grad
        assert all(layer.merged == ("b" if merged else None) for _, layer in vera_layers(model) if "b" in layer.vectors)
    torch.testing.assert_close(before, second, rtol=1e-5, atol=1e-6)


def test_disabled_on_a_bare_model_and_after_deleting_inside():
    model = nn.Sequential(nn.Linear(4, 4))
    with disabled(model):
        pass
    attach(model, VeraConfig(rank=2, targets=("0",)))
    with disabled(model):
        delete_adapter(model, "default")
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("wrap", [lambda layer: layer, nn.utils.parametrizations.weight_norm])
def test_a_layer_under_two_names_has_the_adapter_where_it_was_adapted_and_is_one_again_after_unload(wrap):
    model = nn.ModuleDict({"first": wrap(nn.Linear(4, 4))})
    model["second"] = nn.Sequential(model["first"])
    trained(attach(model, VeraConfig(rank=2, targets=("first",))))
    x = torch.randn(3, 4)
    with torch.no_grad():
        adapted, bare = model["first"](x), model["second"](x)
        merged = merge_and_unload(copy.deepcopy(model))
        torch.testing.assert_close(merged["first"](x), adapted)
        assert torch.equal(merged["second"](x), bare) and not torch.allclose(adapted, bare)
        merged["first"].register_forward_hook(lambda *_: pytest.fail("a hook of the other place"))
        merged["second"](x)
        assert torch.equal(model["first"](x), adapted)
    assert unload(model)["first"] is model["second"][0] and isinstance(model["first"], nn.Linear)


def test_save_pretrained_of_a_merged_model_writes_the_plain_one(tmp_path):
    model, _, _, second = two_adapters()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    merge(model)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.classifier.out_proj.bias.add_(1.0)  # a copy's own save_pretrained writes the copy
    for part, folder in ((twin, "whole"), (twin.roberta, "part")):
        part.save_pretrained(tmp_path / folder)
        assert sum(layer.merged == "b" for _, layer in vera_layers(twin)) == 4 and "save_pretrained" in vars(part)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(loaded), second, rtol=1e-5, atol=1e-6)
    part = AutoModel.from_pretrained(tmp_path / "part", add_pooling_layer=False)
    torch.testing.assert_close(part.state_dict(), loaded.roberta.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(logits(twin), second, rtol=1e-5, atol=1e-6)
    unmerge(twin)
    assert torch.equal(logits(twin), second)
    unload(twin)
    assert not any("save_pretrained" in vars(module) for module in twin.modules())


def test_save_pretrained_of_a_model_that_is_not_merged_warns_and_can_be_resumed_from(tmp_path):
    """transformers' Trainer writes its checkpoints so, and loads them into the adapted model again."""
    model, _, _, second = two_adapters()
    with pytest.warns(UserWarning, match="which from_pretrained does not read.* save_adapter writes the adapter"):
        model.save_pretrained(tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("vectors.b.b"):
                parameter.zero_()
    assert not torch.allclose(logits(model), second)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    torch.testing.assert_close(logits(model), second)


@pytest.mark.parametrize("act", [lambda m: disabled(m).__enter__(), unload, merge_and_unload, lambda m: set_adapter(m, None)])
@pytest.mark.parametrize("on_part", [False, True])
def test_a_part_of_the_adapted_model_is_refused_and_changes_nothing(act, on_part):
    """Heads and configuration are with what the adapter was attached to; without them it was switched off for good."""
    model = roberta()
    trained(attach(model.roberta if on_part else model, config()))
    adapted = logits(model)
    with pytest.raises(
        AdapterError, match=r"adapter 'default' on .*layer.0.attention.self.query was attached to another module"
    ):
        act(model if on_part else model.roberta)
    assert torch.equal(logits(model), adapted)
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_no_second_root_over_an_adapted_part():
    model = roberta()
    trained(attach(model.roberta, config("query")))
    adapted = logits(model)
    with pytest.raises(AdapterError, match="was attached to another module"):
        attach(model, config("value"), "other")
    assert torch.equal(logits(model), adapted) and all(name.endswith("query") for name, _ in vera_layers(model))


def test_a_pickled_model_keeps_its_save_pretrained(tmp_path):
    model = roberta()
    trained(attach(model, config(head=("classifier",))))
    copied = pickle.loads(pickle.dumps(model))
    with pytest.warns(UserWarning, match="writes adapted layers"):
        copied.save_pretrained(tmp_path / "adapted")
    merge(copied).save_pretrained(tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
    unload(copied).save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(logits(plain), logits(unload(model)), rtol=1e-5, atol=1e-6)


def test_a_sum_beyond_the_range_of_fp16_is_refused_before_any_layer_is_merged(tmp_path):
    model = llama(dtype=torch.float16)
    trained(attach(model, config("q_proj", "v_proj")))
    last = dict(vera_layers(model))["model.layers.1.self_attn.v_proj"]
    last.vectors["default"].b.data.mul_(1e6)
    with pytest.raises(AdapterError, match=r"1.self_attn.v_proj: merging adapter 'default' gives weights .* in torch.float16"):
        merge_and_unload(model)
    assert all(layer.merged is None for _, layer in vera_layers(model)) and len(list(vera_layers(model))) == 4


def test_another_adapter_is_chosen_before_distributed_data_parallel(tmp_path):
    model, _, _, second = two_adapters()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(AdapterError, match="choose adapter 'a' before DistributedDataParallel"):
            set_adapter(wrapped, "a")
        with disabled(wrapped):
            pass
        assert torch.equal(logits(wrapped), second)
    finally:
        torch.distributed.destroy_process_group()


def test_a_merged_model_writes_no_state_dict_of_adapted_layers(tmp_path):
    """As Accelerate's usual call gives one: from_pretrained would draw the adapted layers at random."""
    model = merge(trained(attach(roberta(), config())))
    with pytest.raises(AdapterError, match=r"writes W0 \+ dW by itself: leave state_dict out"):
        model.save_pretrained(tmp_path, state_dict=model.state_dict())
    assert not list(tmp_path.iterdir())
    plain = merge_and_unload(model)
    plain.save_pretrained(tmp_path, state_dict=plain.state_dict())
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(found(IDS).logits, plain(IDS).logits)
