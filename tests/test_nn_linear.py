"""The adapted linear map against the formula written out."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from vera.errors import AdapterError
from vera.nn import VeraConfig, attach, merge, set_adapter, unmerge, vera_layers
from vera.nn.functional import ActivationOrder, Plan, Update, WeightOrder, compose, plan, projected


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
    return reference_of(layer.weight, layer, x)


def reference_of(W0, layer, x):
    A, B, b, d = layer.matrices(layer.active)
    W = W0 + torch.diag(b) @ B @ torch.diag(d) @ A
    return x @ W.T + (0 if layer.bias is None else layer.bias)


PLANS = {
    "activation": Plan("activation"),
    "weight from u": Plan("weight", through_u=True, keep_weight=True),
    "weight from G": Plan("weight", through_u=False, keep_weight=True),
    "weight composed twice": Plan("weight", through_u=True, keep_weight=False),
}
every_plan = pytest.mark.parametrize("name", PLANS)


def gradients(layer, x, g, call=None):
    """Output, and the gradients of x, b and d."""
    vectors = layer.vectors["default"]
    h = (call or layer)(x)
    return [h.detach(), *torch.autograd.grad((h * g).sum(), [x, vectors.b, vectors.d])]


def close(found, wanted, tolerance):
    for a, b in zip(found, wanted, strict=True):
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm()


@every_plan
@pytest.mark.parametrize("rank", [7, 30])  # narrower and wider than the layer
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
def test_orders_equal_the_formula_forward_and_backward(name, rank, shape):
    layer = randomise(make(rank)).up
    layer.plan = PLANS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), requires_grad=True)
    g = torch.randn(*shape[:-1], 20, generator=torch.Generator().manual_seed(6))
    wanted = gradients(layer, x, g, lambda x: reference(layer, x))
    close(gradients(layer, x, g), wanted, 1e-6)
    with torch.no_grad():
        close([layer(x)], wanted[:1], 1e-6)


@every_plan
def test_gradients_are_exact_in_double_precision(name):
    layer = randomise(make(rank=4)).up.double()
    x = torch.randn(3, 12, dtype=torch.double, requires_grad=True)
    vectors = layer.vectors["default"]
    b, d = vectors.b.detach().double().requires_grad_(), vectors.d.detach().double().requires_grad_()
    A, B = layer.projections["default"].sliced(12, 20)
    plan = PLANS[name]

    def call(x, b, d):
        if plan.order == "weight":
            u = projected(x, A, x, layer) if plan.through_u else None
            return WeightOrder.apply(x, None, layer.weight, layer.bias, A, B, b, d, u, plan.through_u, plan.keep_weight)
        return ActivationOrder.apply(x, layer.weight, layer.bias, A, B, b, d, projected(x, A, x, layer))

    assert torch.autograd.gradcheck(call, (x, b, d))


def test_the_update_of_another_layers_output_is_exact():
    layer = randomise(make(rank=4)).up.double()
    A, B = layer.projections["default"].sliced(12, 20)
    b, d = (v.detach().double().requires_grad_() for v in layer.vectors["default"].parameters())
    h, z = (
        torch.randn(3, 20, dtype=torch.double, requires_grad=True),
        torch.randn(3, 12, dtype=torch.double, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda h, z, b, d: Update.apply(h, z, A, B, b, d, projected(z, A, z, layer)), (h, z, b, d))


@every_plan
def test_first_layer_needs_no_gradient_of_its_input(name):
    model = randomise(make())
    for _, layer in vera_layers(model):
        layer.plan = PLANS[name]
    model(torch.randn(4, 12)).sum().backward()
    assert all(v.grad is not None for v in (model.up.vectors["default"].b, model.up.vectors["default"].d))


@every_plan
def test_a_frozen_adapter_passes_the_gradient_of_its_input(name):
    model = randomise(make())
    model.up.plan = PLANS[name]
    vectors = model.up.vectors["default"].requires_grad_(False)
    x = torch.randn(4, 12, requires_grad=True)
    model.up(x).sum().backward()
    wanted = compose(model.up.weight, *model.up.matrices("default")).sum(0).expand(4, -1)
    torch.testing.assert_close(x.grad, wanted)
    assert vectors.b.grad is None


@every_plan
def test_gpt2s_query_and_value_are_slices_of_one_transposed_matrix(name):
    """A linear layer over a slice of GPT-2's fused matrix, which is stored as [d_in, 3 d_out]."""
    torch.manual_seed(0)
    fused = torch.randn(12, 60)
    model = nn.Module()
    model.v = nn.Linear(12, 20, bias=False)
    model.v.weight = nn.Parameter(fused.T[40:], requires_grad=False)
    layer = randomise(attach(model, VeraConfig(rank=7, targets=("v",)))).v
    assert layer.weight.stride() == (1, 60) and layer.weight.data_ptr() == fused[:, 40:].data_ptr()
    layer.plan = PLANS[name]
    x, g = torch.randn(5, 12, requires_grad=True), torch.randn(5, 20)
    close(gradients(layer, x, g), gradients(layer, x, g, lambda x: reference(layer, x)), 1e-6)
    merge(model)
    close([layer(x)], [reference_of(fused.T[40:], layer, x)], 1e-6)
    unmerge(model)
    assert layer.weight.data_ptr() == fused[:, 40:].data_ptr()


@every_plan
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same(name, reentrant):
    layer = randomise(make()).up
    layer.plan = PLANS[name]
    x, g = torch.randn(5, 12, requires_grad=True), torch.randn(5, 20)
    plain = layer(x)
    plain.backward(g)
    wanted = [p.grad.clone() for p in (x, *layer.vectors["default"].parameters())]
    for p in (x, *layer.vectors["default"].parameters()):
        p.grad = None
    checkpoint(layer, x, use_reentrant=reentrant).backward(g)
    for p, w in zip((x, *layer.vectors["default"].parameters()), wanted, strict=True):
        assert torch.equal(p.grad, w)


@pytest.mark.parametrize("name", ["activation", "weight from G"])
def test_compiled_in_one_graph(name):
    model = randomise(make())
    for _, layer in vera_layers(model):
        layer.plan = PLANS[name]
    x = torch.randn(8, 12)

    def grads(call):
        model.zero_grad()
        y = call(x)
        y.pow(2).sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    torch._dynamo.reset()
    close(grads(torch.compile(model, backend="aot_eager", fullgraph=True)), grads(model), 1e-5)


def test_order_follows_from_operations():
    """RoBERTa-base and -large as trained, few rows, a first layer, a matrix larger than its input, one token."""
    assert plan(8192, 768, 768, 1024) == Plan("weight", through_u=False, keep_weight=True)
    assert plan(4096, 1024, 1024, 256) == Plan("weight", through_u=True, keep_weight=True)
    assert plan(16, 768, 768, 8).order == "activation"
    assert plan(2048, 4096, 4096, 64, input_gradient=False).order == "activation"
    assert plan(32768, 4096, 11008, 64) == Plan("weight", through_u=True, keep_weight=True)
    assert plan(8192, 4096, 11008, 64) == Plan("weight", through_u=True, keep_weight=False)
    assert plan(1, 768, 768, 1024, training=False, input_gradient=False).order == "activation"


def test_in_half_precision_dw_is_composed_where_that_saves_a_quarter():
    """RoBERTa-base with its rank above half its width, -large with a quarter of it, MiniLM with two thirds, one token."""
    assert plan(8192, 768, 768, 1024, half=True) == Plan("weight", through_u=False, keep_weight=True)
    assert plan(8192, 768, 768, 1024, training=False, input_gradient=False, half=True).order == "weight"
    assert plan(4096, 1024, 1024, 256, half=True).order == "activation"
    rows = (64, 256, 1024, 4096, 32768)
    assert {plan(n, 384, 384, 256, half=True).order for n in rows} == {"activation"}
    assert {plan(n, 384, 384, 256, False, False, half=True).order for n in rows} == {"activation"}
    assert plan(1, 768, 768, 1024, training=False, input_gradient=False, half=True).order == "activation"


@every_plan
def test_under_autocast_gradients_of_all_orders_are_those_of_the_formula_first_and_second(name):
    torch.manual_seed(0)
    layer = randomise(make(rank=30)).up
    layer.plan = PLANS[name]
    x, g = torch.randn(200, 12, requires_grad=True), torch.randn(200, 20)
    vectors = [layer.vectors["default"].b, layer.vectors["default"].d]

    def derivatives(call, half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            h = call(x).float()
        firsts = torch.autograd.grad((h.pow(2) * g).sum(), [x, *vectors], create_graph=True)
        return [*firsts, *torch.autograd.grad(sum(first.pow(2).sum() for first in firsts), [x, *vectors])]

    found, wanted = derivatives(layer, True), derivatives(lambda x: reference(layer, x), False)
    assert all(value.dtype == torch.float32 for value in found)
    close(found, wanted, 0.03)


@every_plan
def test_a_backward_pass_under_autocast_gives_the_same_gradients(name):
    layer = randomise(make(rank=30)).up
    layer.plan = PLANS[name]
    x, g = torch.randn(200, 12, requires_grad=True), torch.randn(200, 20).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        h = layer(x)
        inside = torch.autograd.grad(h, [x, *layer.vectors["default"].parameters()], g, retain_graph=True)
    outside = torch.autograd.grad(h, [x, *layer.vectors["default"].parameters()], g)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("name", ["activation", "weight from G"])
def test_layers_that_read_one_x_under_autocast_keep_one_copy_in_half_precision(name):
    layers = nn.ModuleDict({name: nn.Linear(12, 12) for name in "qkv"})
    randomise(attach(layers, VeraConfig(rank=12, targets=("q", "k", "v"))))
    x = torch.randn(64, 12, requires_grad=True)
    kept, there = {}, {t.untyped_storage().data_ptr() for t in (*layers.parameters(), *layers.buffers())}

    def pack(t):
        if t.untyped_storage().data_ptr() not in there and t.numel() >= 64 * 12:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    for _, layer in vera_layers(layers):
        layer.plan = PLANS[name]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        total = sum(layer(x) for layer in layers.values())
    assert [t.dtype for t in kept.values()] == [torch.bfloat16]
    total.sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().max() > 0


def test_the_half_precision_copy_of_a_follows_it_and_is_not_stored(tmp_path):
    model = randomise(make())
    projection = model.up.projections["default"]
    x = torch.randn(5, 12)

    def output():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model.up(x).float()

    before = output()
    assert projection.in_half(12, torch.bfloat16).data_ptr() == projection.in_half(12, torch.bfloat16).data_ptr()
    size = len(pickle.dumps(model))
    with torch.no_grad():
        projection.A.mul_(-3)
    bare = F.linear(x.bfloat16(), model.up.weight.bfloat16(), model.up.bias.bfloat16()).float()
    close([output() - bare], [-3 * (before - bare)], 0.05)
    projection.A = projection.A / -3
    close([output()], [before], 0.01)
    assert len(pickle.dumps(model)) == size and torch.equal(copy.deepcopy(model).up(x), model.up(x))


@pytest.mark.parametrize(("name", "allowed"), [("activation", 7), ("weight from u", 7 + 20 * 12 / 64)])
def test_nothing_as_wide_as_the_layer_is_kept_for_backward(name, allowed):
    """`allowed` numbers a row of 64 rows; tensors that exist anyway (parameters, A, B) are not counted."""
    layer = randomise(make()).up
    layer.plan = PLANS[name]
    x = torch.randn(64, 12, requires_grad=True)
    there = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    kept = 0

    def pack(t):
        nonlocal kept
        kept += 0 if t.untyped_storage().data_ptr() in there else t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert kept <= 64 * allowed


@every_plan
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_weights_do_not_swallow_a_small_update(training, name):
    """dW far below a digit of a bf16 W0, many rows: the composed weight would equal W0."""
    model = randomise(make()).to(torch.bfloat16)
    layer = model.up
    layer.plan = PLANS[name]
    with torch.no_grad():
        layer.weight.fill_(64.0)
        layer.bias.zero_()
    x = torch.cat([torch.ones(256, 6), -torch.ones(256, 6)], 1).bfloat16()  # W0 x = 0
    with torch.set_grad_enabled(training):
        h = layer(x).float()
    A, B, b, d = (t.detach().float() for t in layer.matrices("default"))
    close([h], [((x.float() @ A.T) * d) @ B.T * b], 0.02)
    assert h.abs().max() > 0.1


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


def test_merging_under_autocast_composes_in_float32():
    model, x = randomise(make()), torch.randn(6, 12)
    with torch.no_grad():
        wanted = merge(model)(x)
        unmerge(model)
        with torch.autocast("cpu", torch.bfloat16):
            merge(model)
        assert torch.equal(model(x), wanted)
        model.up.vectors["default"].b.mul_(2)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.up.weight.dtype == torch.float32  # composed again
        torch.testing.assert_close(model(x), unmerge(model)(x))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_merged_model_follows_a_fused_optimiser_which_counts_no_version(optimizer):
    model, x = randomise(make()), torch.randn(6, 12)
    merge(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step = optimizer(trained, lr=0.1, fused=True)
    model(x).sum().backward()
    with torch.no_grad():
        before = model(x)  # W is as it should be, and gradients are there
        step.step()
        step.zero_grad()
        after = model(x)
        unmerge(model)
        torch.testing.assert_close(after, model(x))
    assert not torch.allclose(before, after)


def test_a_merged_model_composes_once_for_many_calls(monkeypatch):
    model, x = randomise(make()), torch.randn(6, 12)
    merge(model)
    monkeypatch.setattr("vera.nn.linear.compose", lambda *_: pytest.fail("composed again"))
    with torch.no_grad():
        assert torch.equal(model(x), model(x))


def test_casting_keeps_every_bit_of_the_vectors():
    model = randomise(make())
    before = {name: value.clone() for name, value in model.state_dict().items() if "vectors" in name}
    model.to(torch.bfloat16)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_after_a_backward_pass_keeps_every_bit_of_the_gradients(dtype):
    model = randomise(make())
    model(torch.randn(3, 12)).sum().backward()
    vectors = [parameter for name, parameter in model.named_parameters() if "vectors" in name]
    before = [(value.detach().clone(), value.grad.clone()) for value in vectors]
    model.to(dtype)
    for value, (number, gradient) in zip(vectors, before, strict=True):
        assert torch.equal(value, number) and torch.equal(value.grad, gradient) and value.grad.dtype == value.dtype


@every_plan
@pytest.mark.parametrize("dropout", [0.0, 1e-17])  # with dropout the update is added to what the layer returns
def test_a_backbone_in_double_precision_trains(name, dropout):
    torch.manual_seed(0)
    config = VeraConfig(rank=7, targets=("up", "down"), projection_seed=3, dropout=dropout)
    layer = randomise(attach(Net().double(), config)).up
    layer.plan = PLANS[name]
    x = torch.randn(3, 12, dtype=torch.double, requires_grad=True)
    g = torch.randn(3, 20, dtype=torch.double)
    A, B, b, d = layer.matrices("default")

    def call(x):
        return x @ (layer.weight + b.double()[:, None] * B @ (d.double()[:, None] * A)).T + layer.bias

    found, wanted = gradients(layer, x, g), gradients(layer, x, g, call)
    assert [value.dtype for value in found] == [torch.double, torch.double, torch.float32, torch.float32]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found[:2], wanted[:2], rtol=1e-11, atol=1e-11)


def test_half_precision_keeps_vectors_in_float32():
    model = make().to(torch.bfloat16)
    assert model.up.weight.dtype == torch.bfloat16
    assert model.up.projections["default"].A.dtype == torch.bfloat16
    assert model.up.vectors["default"].b.dtype == torch.float32
    model(torch.randn(3, 12).bfloat16()).sum().backward()
    assert model.up.vectors["default"].d.grad.dtype == torch.float32


@every_plan
def test_autocast_is_close_to_full_precision(name):
    model = randomise(make())
    for _, layer in vera_layers(model):
        layer.plan = PLANS[name]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_4_bit_base_is_dequantised_as_it_does_itself(dtype):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Module()
    model.up = bnb.nn.Linear4bit(64, 128, bias=True, compute_dtype=dtype, quant_type="nf4")
    model.up = model.up.to("cpu")  # quantises
    weight, state = model.up.weight, model.up.weight.quant_state
    W0 = bnb.functional.dequantize_4bit(weight.data, state).float()
    layer = randomise(attach(model, VeraConfig(rank=7, targets=("up",)))).up
    before = weight.data.clone()
    x, g = torch.randn(5, 64, dtype=dtype, requires_grad=True), torch.randn(5, 128, dtype=dtype)

    def written_out(x):
        A, B, b, d = layer.matrices("default")
        return x.float() @ (W0 + torch.diag(b) @ B @ torch.diag(d) @ A).T + layer.bias.float()

    close(gradients(layer, x, g), gradients(layer, x, g, written_out), 1e-5 if dtype == torch.float32 else 0.02)
    assert torch.equal(weight.data, before)
    with pytest.raises(AdapterError, match="quantised"):
        merge(model)


def products(call) -> int:
    """Twice the multiply-adds of a call; not by FlopCounterMode, whose hooks on all modules make a layer keep its own call."""
    counted = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal counted
            out = function(*args, **(kwargs or {}))
            if function.overloadpacket in flop_registry:
                counted += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    with Count():
        call()
    return counted


@pytest.mark.parametrize("name", ["activation", "weight from u"])
def test_layers_that_read_the_same_input_multiply_it_by_A_once(name):
    torch.manual_seed(0)
    layers = nn.ModuleDict({"q": nn.Linear(12, 20), "v": nn.Linear(12, 20)})
    attach(layers, VeraConfig(rank=7, targets=("q", "v"), projection_seed=3))
    randomise(layers)
    for layer in layers.values():
        layer.plan = PLANS[name]
    x = torch.randn(5, 12)
    kept = []
    alone = products(lambda: kept.append(layers["q"](x)))
    both = 2 * alone - 2 * 5 * 12 * 7
    assert products(lambda: kept.extend((layers["q"](x), layers["v"](x)))) == both
    with torch.autocast("cpu", torch.bfloat16):
        assert products(lambda: kept.extend((layers["q"](x), layers["v"](x)))) == both, "the cast is made anew for each layer"


@pytest.mark.parametrize("name", ["activation", "weight from u"])
@pytest.mark.parametrize("change", ["in place", "data", "other A", "freed"])
def test_a_product_is_not_shared_with_what_has_changed(name, change):
    torch.manual_seed(0)
    model = attach(nn.ModuleDict({"q": nn.Linear(12, 12), "v": nn.Linear(12, 12)}), VeraConfig(rank=7, targets=("q", "v")))
    randomise(model)
    for layer in model.values():
        layer.plan = PLANS[name]
    x = torch.randn(5, 12)
    kept = [model["q"](x)]
    if change == "in place":
        x.mul_(2.0)
    elif change == "data":  # the same layer again: another pass, whatever was done behind autograd's back
        x.data.mul_(2.0)
        kept.append(model["q"](x))
    elif change == "other A":
        model["v"].projections["default"].A.mul_(2.0)
    elif change == "freed":
        kept.clear()
    h = model["v"](x)
    torch.testing.assert_close(h, reference(model["v"], x))
    h.sum().backward()
    b, d = model["v"].vectors["default"].b, model["v"].vectors["default"].d
    expected = torch.autograd.grad(reference(model["v"], x).sum(), (b, d))
    torch.testing.assert_close((b.grad, d.grad), expected)


def test_the_update_works_on_inference_tensors():
    """A quantised layer under inference_mode: such tensors do not say whether they were written to."""
    model = make(dropout=0.1)
    with torch.inference_mode():
        x = torch.randn(4, 12)
        model.train()
        assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize(("digits", "kept"), [(torch.bfloat16, (0.5, 0.85)), (torch.float32, (0.95, 1.05))], ids=str)
def test_a_sum_rounded_to_bf16_keeps_dw_only_as_far_as_w0_has_more_digits(digits, kept):
    """Why half precision computes without W0 + dW (docs/speed.md): the share of dW that two rounded matrices differ by."""
    torch.manual_seed(0)
    W0, dW, x = (torch.randn(256, 256) for _ in range(3))
    W0 = W0.to(digits).float()
    dW *= 1e-3 * W0.norm() / dW.norm()
    rounded = x @ ((W0 + dW).bfloat16().float() - W0.bfloat16().float()).T
    wanted = x @ dW.T
    low, high = kept
    assert low < ((rounded * wanted).sum() / wanted.pow(2).sum()).item() < high
