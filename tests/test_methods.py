"""Every method of conf/method on every family of backbone: the same assertions, found by glob."""

from types import SimpleNamespace

import pytest
import torch

from tests.conftest import own_methods, trained
from vera.config import build
from vera.config import compose as compose_config
from vera.errors import ConfigError
from vera.methods.base import count, shared
from vera.nn.names import inside
from vera.run import prepare
from vera.train.loop import Loop

METHODS = own_methods()
MODELS = {"roberta_base": "rte", "minilm": "mrpc", "digits_vit": "digits"}


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * 1.5


@pytest.fixture
def prepared(compose):
    def make(method, model, *overrides):
        run = compose(f"method={method}", f"model={model}", f"task={MODELS[model]}", "train.lr=1e-3", *overrides)
        backbone, built, task, data = prepare(run)
        batch = data.collate([data.train[0], data.train[1]])
        labels = batch.pop("labels")
        return backbone, built, task, batch, labels

    return make


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_only_declared_parameters_train_and_merging_changes_no_output(method, model, prepared):
    backbone, built, task, batch, labels = prepared(method, model)
    groups = built.parameter_groups(backbone)
    declared = {name for name, _ in groups["adapter"] + groups["head"]}
    assert {name for name, p in backbone.model.named_parameters() if p.requires_grad} == declared
    assert groups["head"] and all(inside(name, backbone.head) for name, _ in groups["head"])
    assert not any(inside(name, backbone.head) for name, _ in groups["adapter"])
    counted = count(groups, backbone.model)
    assert counted["total"] >= counted["adapter"] + counted["head"] and (counted["adapter"] == 0) == (method == "head")

    backbone.model.train()
    before = {name: value.detach().clone() for name, value in backbone.model.named_parameters()}
    optimizer = torch.optim.AdamW([p for _, p in groups["adapter"] + groups["head"]], lr=0.05)
    for step in range(3):
        built.on_step(backbone, step, 3, 1e-3)
        loss = task.loss(backbone.model(**batch).logits, {"labels": labels})
        penalty = built.penalty(backbone)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        built.after_step(backbone, step, 3)
    changed = {name for name, value in backbone.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= declared
    touched = changed & {name for name, _ in groups["adapter"]}
    assert touched or method == "head", "training moved nothing outside the head"

    backbone.model.eval()
    weights = {name: value.detach().clone() for name, value in backbone.model.named_parameters()}
    with torch.no_grad():
        separate = backbone.model(**batch).logits
        for _ in range(3):
            with built.merged(backbone):
                torch.testing.assert_close(backbone.model(**batch).logits, separate, rtol=1e-4, atol=1e-5)
    for name, value in backbone.model.named_parameters():
        assert torch.equal(value, weights[name]), f"{name} lost bits by merging"


@pytest.mark.parametrize("odd", ["hook", "subclass", "bfloat16"])
def test_vera_evaluates_what_cannot_be_merged_as_it_is(odd, prepared):
    backbone, built, _, batch, _ = prepared("vera", "roberta_base")
    layer = backbone.model.get_submodule("roberta.encoder.layer.1.attention.self.query").base_layer
    if odd == "hook":
        layer.register_forward_hook(lambda module, inputs, output: output * 1.5)
    elif odd == "subclass":
        layer.__class__ = type(
            "Scaled", (torch.nn.Linear,), {"forward": lambda self, x: torch.nn.Linear.forward(self, x) * 1.5}
        )
    else:
        backbone.model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        separate = backbone.model.eval()(**batch).logits
        with built.merged(backbone):
            assert torch.equal(backbone.model(**batch).logits, separate)


@pytest.mark.parametrize("method", ["lora", "ia3", "dora"])
def test_a_weight_with_bf16_s_digits_takes_no_update_in(method, prepared):
    """Stored in float32, as a bf16 checkpoint is loaded: the sum, rounded again under autocast, would lose a small update."""
    backbone, built, _, _, _ = prepared(method, "roberta_base")
    weights = [module.base_layer.weight for module in backbone.model.modules() if hasattr(module, "base_layer")]
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.01)

    def merges() -> int:
        before = [weight.clone() for weight in weights]
        with built.merged(backbone):
            return sum(not torch.equal(weight, was) for weight, was in zip(weights, before, strict=True))

    assert weights and merges() == len(weights)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(weight.bfloat16())
    assert merges() == 0


@pytest.mark.parametrize("method", ["lora", "lora_fa", "dylora", "adalora", "ia3", "dora", "vera"])
def test_an_output_layer_tied_to_the_embeddings_is_evaluated_as_it_was_trained(method, compose):
    own = ["method.feedforward=false"] if method == "ia3" else []
    given = ["model=gpt2_medium", "task=alpaca", "~recipe@_global_", "+model.targets.lm=lm_head", "method.targets=[query,lm]"]
    backbone, built, _, _ = prepare(compose(f"method={method}", *given, *own))
    model, ids = trained(backbone.model).eval(), torch.arange(5, 12)[None]
    with torch.no_grad():
        apart = model(input_ids=ids).logits
        with built.merged(backbone):
            torch.testing.assert_close(model(input_ids=ids).logits, apart, rtol=1e-4, atol=1e-4)


def test_what_is_written_into_a_layer_is_read_at_its_other_places():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3) for name in ("alone", "one", "two", "named")})
    model["two"].bias = model["one"].bias
    model["around"] = torch.nn.Sequential(model["named"])  # one layer at two places
    model["twice"] = model["again"] = torch.nn.Sequential(torch.nn.Linear(3, 3))  # at one, which is called twice
    layers = {**{name: model[name] for name in ("alone", "one", "two", "named")}, "inner": model["twice"][0]}
    assert [name for name, layer in layers.items() if layer in shared(model, layers.values())] == ["one", "two", "named"]


@pytest.mark.parametrize("method", METHODS)
def test_saved_is_what_was_trained(method, prepared, tmp_path):
    from safetensors.torch import load_file

    backbone, built, _, _, _ = prepared(method, "roberta_base")
    built.save(backbone, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    stored = sum(tensor.numel() for tensor in load_file(file).values())
    counted = count(built.parameter_groups(backbone), backbone.model)
    drawn = [
        p for name, p in backbone.model.named_parameters() if method == "lora_fa" and "lora_A" in name
    ]  # PEFT reads A, too
    assert stored == counted["adapter"] + counted["head"] + sum(p.numel() for p in drawn)


@pytest.mark.parametrize("method", METHODS)
def test_trained_state_restores(method, prepared):
    backbone, built, _, batch, _ = prepared(method, "roberta_base")
    backbone.model.eval()
    kept = {name: tensor.clone() for name, tensor in built.trained(backbone).items()}
    with torch.no_grad():
        wanted = backbone.model(**batch).logits
        for _, parameter in backbone.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
        built.restore(backbone, kept)
        assert torch.equal(backbone.model(**batch).logits, wanted)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "head"])
def test_the_head_can_stay_frozen(method, prepared):
    backbone, built, _, _, _ = prepared(method, "roberta_base", "method.train_head=false")
    groups = built.parameter_groups(backbone)
    assert not groups["head"] and groups["adapter"]


@pytest.mark.parametrize("method", ["vera", "dvora", "lora", "adalora", "ia3", "oft", "beft"])
def test_a_target_that_the_head_has_too_is_adapted_in_the_backbone_alone(method, prepared):
    """RoBERTa's head has a layer called dense, as its blocks have."""
    targets = ("+model.targets.dense=dense", "method.targets=[query,dense]")
    backbone, _, _, _, _ = prepared("head", "roberta_base")
    head = {name: p.shape for name, p in backbone.model.named_parameters() if inside(name, ["classifier"])}
    backbone, built, _, _, _ = prepared(method, "roberta_base", *targets)
    groups = built.parameter_groups(backbone)
    assert {name: p.shape for name, p in groups["head"]} == head
    assert any("layer.1.output.dense" in name for name, _ in groups["adapter"])
    backbone, built, _, _, _ = prepared(method, "roberta_base", *targets, "method.train_head=false")
    assert not built.parameter_groups(backbone)["head"]
    assert {name for name, _ in backbone.model.named_parameters() if inside(name, backbone.head)} == head.keys()


def test_a_target_of_the_head_alone_is_refused(compose):
    keys = ("model=roberta_base", "task=rte", "train.lr=1e-3", "+model.targets.out=out_proj", "method.targets=[query,out]")
    for method in ("vera", "lora"):
        with pytest.raises(ConfigError, match=r"method.targets: out of roberta_base is in the head, which takes no adapter"):
            prepare(compose(*keys, f"method={method}"))


def test_a_method_that_trains_nothing_is_refused(compose):
    backbone, built, _, _ = prepare(compose("method=head", "method.train_head=false"))
    with pytest.raises(ConfigError, match="trains nothing"):
        built.parameter_groups(backbone)


def test_an_unknown_target_names_the_allowed_ones(compose):
    with pytest.raises(ConfigError, match=r"method.targets: digits_vit has no 'gate'; allowed: query, key, value"):
        prepare(compose("method.targets=[gate]"))


def test_a_task_of_another_modality_is_refused(compose):
    with pytest.raises(ConfigError, match="task=digits needs a model for image, model=minilm is one for text"):
        prepare(compose("model=minilm", "task=digits"))


def test_bitfit_trains_biases_alone(prepared):
    backbone, built, _, _, _ = prepared("bitfit", "roberta_base")
    assert all(name.endswith("bias") for name, _ in built.parameter_groups(backbone)["adapter"])


def test_bitfit_trains_biases_that_are_no_layer_s():
    """DeBERTa's q_bias and v_bias, torch's in_proj_bias."""
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(4, 2), torch.nn.LayerNorm(4))
    bitfit = build(compose_config(["method=bitfit"]).method, "method")
    bitfit.attach(SimpleNamespace(model=model, head=()), {})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"0.in_proj_bias", "0.out_proj.bias", "1.bias"}


def test_components_build_once_more_from_a_record_of_their_config(compose):
    run = compose("method=vera")
    assert build(run.scientific["method"], "method") == build(run.method, "method")


def test_full_fine_tuning_of_4_bit_weights_is_refused_by_name(compose):
    pytest.importorskip("bitsandbytes")
    run = compose("method=full", "model=llama_7b", "task=alpaca", "model.quantisation=nf4", "train.lr=1e-5")
    with pytest.raises(ConfigError, match=r"method full .*q_proj.weight is quantised: model.quantisation=none"):
        prepare(run)


def test_full_fine_tuning_of_bf16_weights_is_in_float32_and_no_part_of_them_is_trained(compose, tmp_path):
    keys = ("model=llama_7b", "task=alpaca", "model.quantisation=none", "train.lr=1e-5", "train.warmup_ratio=0")
    run = compose("method=full", *keys)
    loop = Loop(run, *prepare(run), tmp_path)
    before = {name: value.clone() for name, value in loop.method.trained(loop.backbone).items()}
    loop.fit()
    after = loop.method.trained(loop.backbone)
    changed = sum(int((after[name] != value).sum()) for name, value in before.items() if "layers" in name)
    assert changed > 0.9 * sum(value.numel() for name, value in before.items() if "layers" in name)
    assert {value.dtype for value in after.values()} == {torch.float32} and loop.cost()["precision"] == "fp32"
    backbone, lora, _, _ = prepare(compose("method=lora", *keys))
    backbone.model.model.norm.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"method lora trains model.norm.weight, which is bfloat16.*method=full"):
        lora.parameter_groups(backbone)


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
@pytest.mark.parametrize("method", ["adapter_h", "adapter_p", "adapter_l", "adapter_d", "ia3"])
def test_adapters_and_ia3_train_on_llama(method, quantisation, compose):
    """On bf16 and on 4-bit weights what is trained is float32, and the output stays as wide as the backbone's."""
    if quantisation == "nf4":
        pytest.importorskip("bitsandbytes")
    run = compose(f"method={method}", "model=llama_7b", "task=alpaca", f"model.quantisation={quantisation}")
    backbone, built, task, data = prepare(run)
    batch = data.collate([data.train[0], data.train[1]])
    labels = batch.pop("labels")
    parameters = [parameter for _, parameter in built.parameter_groups(backbone)["adapter"]]
    assert parameters and {parameter.dtype for parameter in parameters} == {torch.float32}
    before = backbone.model(**batch).logits
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(2):  # the upper map of an adapter starts at zero
        optimizer.zero_grad()
        task.loss(backbone.model(**batch).logits, {"labels": labels}).backward()
        optimizer.step()
    after = backbone.model(**batch).logits
    assert after.dtype == before.dtype == torch.bfloat16 and not torch.equal(after, before)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
