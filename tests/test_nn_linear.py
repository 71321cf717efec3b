"""The adapted linear map against the formula written out."""

import copy

import pytest
import torch
from torch import nn

from vera.errors import AdapterError
from vera.nn import VeraConfig, attach, merge, set_adapter, unmerge, vera_layers
from vera.nn.functional import cheaper_order


class Net(nn.Module):
    """Two layers of unequal shapes, and a head."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12, bias=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.down(torch.relu(self.up(x)))))


def make(rank=7, seed=0, **settings) -> Net:
    torch.manual_seed(seed)
    return attach(Net(), VeraConfig(rank=rank, targets=("up", "down"), projection_seed=3, **settings))


def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in vera_layers(model):
            for vectors in layer.vectors.values():
                vectors.b.copy_(torch.randn(vectors.b.shape, generator=generator))
                vectors.d.copy_(torch.randn(vectors.d.shape, generator=generator))
    return model


def reference(layer, x):
    """h = W0 x + diag(b) B diag(d) A x, literally."""
    A, B, b, d = layer.matrices(layer.active)
    W = layer.weight + torch.diag(b) @ B @ torch.diag(d) @ A
    return x @ W.T + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize("order", ["weight", "activation"])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
def test_orders_equal_the_formula_forward_and_backward(order, shape):
    layer = randomise(make()).up
    layer.order = order
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), requires_grad=True)
    g = torch.randn(*shape[:-1], 20, generator=torch.Generator().manual_seed(6))
    wanted = torch.autograd.grad((reference(layer, x) * g).sum(), [x, layer.vectors["default"].b, layer.vectors["default"].d])
    found = torch.autograd.grad((layer(x) * g).sum(), [x, layer.vectors["default"].b, layer.vectors["default"].d])
    torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-5, atol=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["weight", "activation"])
def test_gradients_are_exact_in_double_precision(order):
    layer = randomise(make(rank=4)).up.double()
    layer.order = order
    x = torch.randn(3, 12, dtype=torch.double, requires_grad=True)
    vectors = layer.vectors["default"]
    b, d = vectors.b.detach().double().requires_grad_(), vectors.d.detach().double().requires_grad_()
    from vera.nn.functional import ActivationOrder, WeightOrder

    A, B = layer.projections["default"].sliced(12, 20)
    if order == "weight":
        assert torch.autograd.gradcheck(lambda x, b, d: WeightOrder.apply(x, layer.weight, layer.bias, A, B, b, d), (x, b, d))
    else:
        assert torch.autograd.gradcheck(lambda x, b, d: ActivationOrder.apply(x, A, B, b, d), (x, b, d))


@pytest.mark.parametrize("order", ["weight", "activation"])
def test_first_layer_needs_no_gradient_of_its_input(order):
    model = randomise(make())
    for _, layer in vera_layers(model):
        layer.order = order
    model(torch.randn(4, 12)).sum().backward()
    assert all(v.grad is not None for v in (model.up.vectors["default"].b, model.up.vectors["default"].d))


def test_order_follows_from_shapes():
    assert cheaper_order(8192, 768, 768, 1024, training=True) == "weight"
    assert cheaper_order(16, 768, 768, 8, training=True) == "activation"
    assert cheaper_order(1, 768, 768, 1024, training=False) == "activation"


def test_new_adapter_changes_nothing_and_only_its_vectors_train():
    torch.manual_seed(0)
    plain = Net()
    adapted = attach(copy.deepcopy(plain), VeraConfig(rank=7, targets=("up", "down")))
    x = torch.randn(4, 12)
    torch.testing.assert_close(adapted(x), plain(x), rtol=0, atol=1e-6)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{layer}.vectors.default.{v}" for layer in ("up", "down") for v in "bd"}
    assert (adapted.up.vectors["default"].d == 0.1).all() and (adapted.up.vectors["default"].b == 0).all()


def test_one_pair_in_memory_whatever_the_number_of_layers():
    model = copy.deepcopy(make()).to(torch.bfloat16)
    pairs = {layer.projections["default"].A.data_ptr() for _, layer in vera_layers(model)}
    assert len(pairs) == 1
    assert model.up.projections["default"] is model.down.projections["default"]
    assert not any("projections" in key for key in model.state_dict())
    unique = make(sharing="unique")
    assert unique.up.projections["default"].A.data_ptr() != unique.down.projections["default"].A.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_computes_the_same_and_unmerge_restores_every_bit(dtype):
    model = randomise(make()).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(6, 12).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    with torch.no_grad():
        separate = model(x)
    for _ in range(5):
        merge(model)
        merge(model)  # twice is once
        assert not torch.equal(model.up.weight, before["up.base_layer.weight"])
        with torch.no_grad():
            torch.testing.assert_close(model(x), separate, rtol=tolerance, atol=tolerance)
        unmerge(model)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_casting_keeps_every_bit_of_the_vectors():
    model = randomise(make())
    before = {name: value.clone() for name, value in model.state_dict().items() if "vectors" in name}
    model.to(torch.bfloat16)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


def test_half_precision_keeps_vectors_in_float32():
    model = make().to(torch.bfloat16)
    assert model.up.weight.dtype == torch.bfloat16
    assert model.up.projections["default"].A.dtype == torch.bfloat16
    assert model.up.vectors["default"].b.dtype == torch.float32
    model(torch.randn(3, 12).bfloat16()).sum().backward()
    assert model.up.vectors["default"].d.grad.dtype == torch.float32


@pytest.mark.parametrize("order", ["weight", "activation"])
def test_autocast_is_close_to_full_precision(order):
    model = randomise(make())
    for _, layer in vera_layers(model):
        layer.order = order
    x = torch.randn(8, 12, requires_grad=True)

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = model(x)
        y.float().pow(2).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    autocast = False
    exact = gradients()
    autocast = True
    for half, full in zip(gradients(), exact, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).norm() < 0.05 * full.norm()


def test_adapters_by_name_do_not_touch_each_other():
    model = make()
    attach(model, VeraConfig(rank=5, targets=("up",), projection_seed=3), name="other")
    randomise(model)
    x = torch.randn(4, 12)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"up.vectors.other.b", "up.vectors.other.d"}
    with_other = model(x)
    set_adapter(model, "default")
    with_default = model(x)
    set_adapter(model, None)
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), Net()(x))
    set_adapter(model, "other")
    assert torch.equal(model(x), with_other) and not torch.allclose(with_other, with_default)


def test_same_projection_is_shared_between_adapters():
    model = make()
    attach(model, VeraConfig(rank=7, targets=("up", "down"), projection_seed=3), name="second")
    assert model.up.projections["second"] is model.up.projections["default"]


@pytest.mark.parametrize(("train", "trained"), [("only_b", "b"), ("only_d", "d")])
def test_ablations_of_the_vectors(train, trained):
    model = make(train=train)
    names = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {trained}
    vectors = model.up.vectors["default"]
    if train == "only_d":
        assert (vectors.d == 0).all() and (vectors.b == 1).all()
    else:
        assert (vectors.d == 0.1).all() and (vectors.b == 0).all()


def test_dropout_only_while_training():
    model = randomise(make(dropout=0.5))
    x = torch.randn(4, 12)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_modules_to_save_stay_trainable():
    model = make(modules_to_save=("head",))
    assert {n for n, p in model.named_parameters() if p.requires_grad} >= {"head.weight", "head.bias"}
    assert not model.up.weight.requires_grad


def test_bad_requests_leave_the_model_alone():
    for settings, message in [
        ({"rank": 0}, "rank"),
        ({"rank": True}, "rank"),
        ({"rank": 2, "init": "normal"}, "kaiming_uniform"),
        ({"rank": 2, "dropout": 1.0}, "dropout"),
        ({"rank": 2, "targets": "up"}, "sequence"),
    ]:
        with pytest.raises(AdapterError, match=message):
            VeraConfig(**{"targets": ("up",), **settings})
    model = Net()
    with pytest.raises(AdapterError, match=r"query.*down, head, up"):
        attach(model, VeraConfig(rank=2, targets=("query",)))
    with pytest.raises(AdapterError, match="modules_to_save"):
        attach(model, VeraConfig(rank=2, targets=("up",), modules_to_save=("classifier",)))
    assert not list(vera_layers(model))
    attach(model, VeraConfig(rank=2, targets=("up",)))
    with pytest.raises(AdapterError, match="already"):
        attach(model, VeraConfig(rank=2, targets=("up",)))
    with pytest.raises(AdapterError, match="no adapter"):
        set_adapter(model, "missing")
    merge(model)
    with pytest.raises(AdapterError, match="unmerge"):
        attach(model, VeraConfig(rank=2, targets=("up",)), name="b")


def test_merging_infinite_weights_is_refused():
    model = make()
    with torch.no_grad():
        model.up.vectors["default"].b.fill_(float("inf"))
        model.down.vectors["default"].b.fill_(float("inf"))
        model.up.vectors["default"].b.zero_()
    with pytest.raises(AdapterError, match="finite"):
        merge(model)
    assert all(layer.merged is None for _, layer in vera_layers(model))  # nothing half merged
