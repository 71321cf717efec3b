"""PEFT's VeRA layers on our functions: PEFT's numbers, and PEFT's own forward wherever a call is not the ordinary one."""

import copy
import io
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.vera.layer import Linear as PeftLinear
from torch import nn
from torch.nn.utils import parametrize
from transformers import RobertaConfig, RobertaModel
from transformers.pytorch_utils import Conv1D

from vera.errors import AdapterError
from vera.nn import accelerate, peft_layers


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """The tests' layers are small; PEFT's warnings about our settings are no news."""
    monkeypatch.setattr(peft_layers, "TRAINED_ROWS", 0)
    monkeypatch.setattr(peft_layers, "EVALUATED_WORK", 0)
    warnings.simplefilter("ignore")


@pytest.fixture
def own_calls(monkeypatch):
    """How often PEFT's own forward has run."""
    calls, forward = [], PeftLinear.forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(PeftLinear, "forward", counted)
    return calls


class Net(nn.Module):
    """Two layers of unlike shape, so that A and B are sliced."""

    def __init__(self, width=12):
        super().__init__()
        self.q, self.k = nn.Linear(width, 20), nn.Linear(20, 8, bias=False)

    def forward(self, x, **kwargs):
        return self.k(torch.tanh(self.q(x, **kwargs)))


def peft_model(dropout=0.0, dtype=torch.float32, net=Net, **config):
    torch.manual_seed(0)
    targets = config.pop("target_modules", ["q", "k"])
    model = get_peft_model(net().to(dtype), VeraConfig(r=6, target_modules=targets, vera_dropout=dropout, **config))
    randomise(model)
    return model


@torch.no_grad()
def randomise(model):
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "vera_lambda" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=draw))


def gradients(model, x):
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y.float().pow(2).sum().backward()
    return y, x.grad, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("order", ["activation", "weight"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradients_are_pefts(order, dropout, training, own_calls, monkeypatch):
    plan = peft_layers.Plan(order)
    monkeypatch.setattr(peft_layers, "plan", lambda *shape: plan)
    theirs = peft_model(dropout).train(training)
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(5, 3, 12)
    torch.manual_seed(3)
    wanted = gradients(theirs, x)
    expected = len(own_calls)
    torch.manual_seed(3)
    found = gradients(ours, x)
    assert len(own_calls) == expected
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.manual_seed(3)
        quiet = ours(x)
    torch.testing.assert_close(quiet, wanted[0].detach(), rtol=1e-5, atol=1e-5)
    assert len(wanted[2]) == 4 and all(grad.abs().sum() > 0 for grad in wanted[2].values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("base", "vectors", "autocast"),
    [
        (torch.bfloat16, torch.float32, False),  # PEFT's default on a half-precision model
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
    ],
)
def test_half_precision_is_as_close_to_float32_as_pefts(base, vectors, autocast, dropout, own_calls):
    theirs = peft_model(dropout, dtype=base)
    for module in theirs.modules():
        if isinstance(module, PeftLinear):
            module.vera_lambda_b.to(vectors), module.vera_lambda_d.to(vectors)
            module.vera_A.to(vectors), module.vera_B.to(vectors)
    ours = accelerate(copy.deepcopy(theirs))
    exact = copy.deepcopy(theirs).float()
    x = torch.randn(50, 12, dtype=torch.float32 if autocast else base)
    results = []
    for model, own in ((exact, None), (theirs, None), (ours, 0)):
        own_calls.clear()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16) if autocast and model is not exact else nullcontext():
            results.append(gradients(model, x.float() if model is exact else x))
        assert own is None or len(own_calls) == own
    (y0, dx0, g0), (y1, dx1, g1), (y2, dx2, g2) = results
    assert y2.dtype == y1.dtype and g1.keys() == g2.keys() == g0.keys()
    for name, exactly, peft, here in [("y", y0, y1, y2), ("dx", dx0, dx1, dx2), *((n, g0[n], g1[n], g2[n]) for n in g0)]:
        error = [(value.double() - exactly.double()).norm() / exactly.double().norm() for value in (peft, here)]
        assert error[1] < max(2 * error[0], 0.01), (name, error)


def two_adapters(model):
    model.add_adapter("other", VeraConfig(r=6, target_modules=["q", "k"]))
    model.base_model.set_adapter(["default", "other"])


def hook(model):
    model.base_model.model.q.base_layer.register_forward_hook(lambda module, args, out: out * 2)


def dropout_hook(model):
    model.base_model.model.q.vera_dropout["default"].register_forward_hook(lambda module, args, out: out * 2)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 3


class Own(Net):
    def __init__(self):
        super().__init__()
        self.q = Scaled(12, 20)


class Fused(Net):
    def __init__(self):
        super().__init__()
        self.q = Conv1D(20, 12)


class Odd(nn.Module):
    def forward(self, x):
        return x * 2


def instance_forward(model):
    base = model.base_model.model.q.base_layer
    forward = base.forward
    base.forward = lambda x: forward(x) + 1


def replace_dropout(model):
    model.base_model.model.q.vera_dropout["default"] = Odd()


def parametrised(model):
    parametrize.register_parametrization(model.base_model.model.q.base_layer, "weight", Odd())


def trains(name):
    def change(model):
        q = model.base_model.model.q
        {"weight": q.base_layer.weight, "bias": q.base_layer.bias, "A": q.vera_A["default"], "B": q.vera_B["default"]}[
            name
        ].requires_grad_()

    return change


def double_vectors(model):
    q = model.base_model.model.q
    for values in (q.vera_lambda_b, q.vera_lambda_d, q.vera_A, q.vera_B):
        values.double()


UNUSUAL = {
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(),
    "several active adapters": two_adapters,
    "no active adapter in the layer": lambda model: (
        model.add_adapter("k only", VeraConfig(r=6, target_modules=["k"])),
        model.set_adapter("k only"),
    ),
    "hook of the base layer": hook,
    "hook of the dropout": dropout_hook,
    "forward of the instance": instance_forward,
    "dropout of another class": replace_dropout,
    "parametrised weight": parametrised,
    "W0 trains": trains("weight"),
    "bias trains": trains("bias"),
    "A trains": trains("A"),
    "B trains": trains("B"),
    "vectors in float64": double_vectors,
    "no casting": lambda model: setattr(model.base_model.model.q, "cast_input_dtype_enabled", False),
    "quantised": lambda model: setattr(
        model.base_model.model.q, "quantization_backend", type("Q", (), {"maybe_clone_base_result": lambda self, h: h})()
    ),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_whatever_is_unusual_runs_pefts_own_forward(what, own_calls):
    theirs = peft_model()
    UNUSUAL[what](theirs)
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(4, 12)
    wanted = theirs.base_model.model.q(x)
    own_calls.clear()
    assert torch.equal(ours.base_model.model.q(x), wanted) and len(own_calls) == 1


@pytest.mark.parametrize("net", [Own, Fused])
def test_another_base_layer_runs_pefts_own_forward(net, own_calls):
    theirs = peft_model(net=net)
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(4, 12)
    wanted = theirs.base_model.model.q(x)
    own_calls.clear()
    assert torch.equal(ours.base_model.model.q(x), wanted) and len(own_calls) == 1


@contextmanager
def global_hook():
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    yield
    handle.remove()


@contextmanager
def dispatch_mode():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        yield


class Subclass(torch.Tensor):
    pass


CALLS = {
    "global hook": (global_hook, lambda layer, x: layer(x)),
    "dispatch mode": (dispatch_mode, lambda layer, x: layer(x)),
    "tensor subclass": (nullcontext, lambda layer, x: layer(x.as_subclass(Subclass))),
    "torch.func": (nullcontext, lambda layer, x: torch.func.vmap(layer)(x)),
    "torch.func.grad": (nullcontext, lambda layer, x: torch.func.grad(lambda z: layer(z).sum())(x)),
    "forward-mode": (nullcontext, lambda layer, x: torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1]),
}


@pytest.mark.parametrize("what", CALLS)
def test_an_unusual_call_runs_pefts_own_forward(what, own_calls):
    around, call = CALLS[what]
    theirs = peft_model()
    ours = accelerate(copy.deepcopy(theirs))
    x = torch.randn(4, 12)
    wanted = call(theirs.base_model.model.q, x)
    own_calls.clear()
    with around():
        assert torch.equal(call(ours.base_model.model.q, x), wanted)
    assert own_calls
    own_calls.clear()
    ours.base_model.model.q(x)
    assert not own_calls, "the ordinary call afterwards is fast again"


def test_arguments_beside_x_go_to_pefts_own_forward(own_calls):
    class Scaling(nn.Linear):
        def forward(self, x, scale=1.0):
            return super().forward(x) * scale

    class Taking(Net):
        def __init__(self):
            super().__init__()
            self.q = Scaling(12, 20)

    model = accelerate(peft_model(net=Taking))
    model.base_model.model.q(torch.randn(2, 12), scale=2.0)
    assert len(own_calls) == 1


def test_meta_and_odd_shapes_fail_or_run_as_pefts(own_calls):
    model = accelerate(peft_model())
    with pytest.raises(RuntimeError):
        model.base_model.model.q(torch.randn(4, 11))
    assert model.base_model.model.q(torch.randn(0, 12)).shape == (0, 20)
    assert model.base_model.model.q(torch.randn(12)).shape == (20,)
    assert model.to("meta").base_model.model.q(torch.randn(4, 12, device="meta")).is_meta


def test_a_nested_tensor_runs_pefts_own_forward(own_calls):
    model = accelerate(peft_model())
    x = torch.nested.nested_tensor([torch.randn(2, 12), torch.randn(5, 12)])
    assert model.base_model.model.q._ordinary(x) is None


def test_small_calls_run_pefts_own_forward(own_calls, monkeypatch):
    monkeypatch.undo()
    model = accelerate(peft_model())
    layer = model.base_model.model.q
    assert layer._ordinary(torch.randn(8, 12)) is None and layer._ordinary(torch.randn(1024, 12)) is not None
    with torch.no_grad():
        assert layer._ordinary(torch.randn(1024, 12)) is None and layer._ordinary(torch.randn(60_000, 12)) is not None


def test_second_derivatives_are_pefts(own_calls):
    theirs = peft_model()
    ours = accelerate(copy.deepcopy(theirs))
    found = []
    for model in (theirs, ours):
        x = torch.linspace(-1, 1, 48).view(4, 12).requires_grad_()
        own_calls.clear()
        (first,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
        first.pow(2).sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert not own_calls and len(found[0]) == 5
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_later_adapters_and_layers_copies_and_files(own_calls, tmp_path):
    model = accelerate(peft_model(target_modules=["q"]))
    assert accelerate(model) is model
    model.add_adapter("wide", VeraConfig(r=6, target_modules=["q"]))
    model.set_adapter("wide")
    randomise(model)
    x = torch.randn(4, 12)
    twin = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    wanted = model(x)
    model.save_pretrained(tmp_path)
    assert torch.equal(twin(x), wanted) and torch.equal(again(x), wanted) and not own_calls
    plain = peft_model(target_modules=["q"])
    loaded = PeftModel.from_pretrained(plain.unload(), tmp_path / "wide")
    torch.testing.assert_close(loaded(x), wanted)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), wanted, rtol=1e-5, atol=1e-5)
    assert type(merged.q) is nn.Linear


def test_a_layer_that_comes_with_a_later_adapter_is_accelerated(own_calls):
    model = accelerate(peft_model())  # A and B of the first adapter are large enough for both layers
    model.add_adapter("q", VeraConfig(r=6, target_modules=["q"]))
    model.delete_adapter("default")
    model.set_adapter("q")
    model.add_adapter("later", VeraConfig(r=6, target_modules=["q", "k"]))
    assert all(type(m) is peft_layers.AcceleratedLinear for m in model.modules() if isinstance(m, PeftLinear))
    model.set_adapter("later")
    own_calls.clear()
    model(torch.randn(4, 12))
    assert not own_calls


def test_a_transformer_trains_as_with_peft(own_calls):
    config = RobertaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50, hidden_dropout_prob=0.0
    )
    ids = torch.randint(5, 49, (3, 8))
    states = []
    for change in (lambda model: model, accelerate):
        torch.manual_seed(0)
        targets = ["query", "key", "value"]
        model = change(get_peft_model(RobertaModel(config, add_pooling_layer=False), VeraConfig(r=8, target_modules=targets)))
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        own_calls.clear()
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids).last_hidden_state.pow(3).mean().backward()
            optimizer.step()
        states.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    assert not own_calls and states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-6)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(AdapterError, match="no VeRA layer"):
        accelerate(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(AdapterError, match="no VeRA layer"):
        accelerate(get_peft_model(Net(), LoraConfig(target_modules=["q"])))
