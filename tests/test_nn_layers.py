"""A layer is more than its weight: kinds of layers under an adapter, what else asks for derivatives, merging, wrappers."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, BloomModel, MambaConfig, MambaModel, WavLMConfig, WavLMModel

from vera.nn import (
    AdapterBank,
    AdapterError,
    VeraConfig,
    VeraLinear,
    attach,
    load_adapter,
    merge,
    save_adapter,
    set_adapter,
    unmerge,
    vera_layers,
)
from vera.nn.base_layer import obstacle, plain
from vera.nn.functional import Plan
from vera.nn.projection import draw

CONFIG = VeraConfig(rank=7, targets=("q",), projection_seed=3)


def holder(layer):
    return nn.Sequential() if layer is None else nn.ModuleDict({"q": layer})


def adapted(layer, train=True, **settings):
    """A VeraLinear over the layer, with random b and d."""
    model = attach(holder(layer), VeraConfig(**{"rank": 7, "targets": ("q",), "projection_seed": 3, **settings}))
    return model, randomise(model)["q"]


def randomise(model, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in vera_layers(model):
            for value in layer.vectors["default"].parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return model


def update(layer, x):
    """diag(b) B diag(d) A x from the seed, in float64."""
    A, B = (t.double() for t in draw(7, 16, 16, 3))
    b, d = layer.vectors["default"].b.double(), layer.vectors["default"].d.double()
    return x.double() @ (torch.diag(b) @ B @ torch.diag(d) @ A).T


def linear(seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(16, 16, bias=bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 3


class Float8(nn.Module):
    """As transformers' FP8Linear: a weight that is meaningless without its scale."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 16
        weight = linear().weight.data
        self.scale = weight.abs().max() / 448
        self.weight = nn.Parameter((weight / self.scale).to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


class Int8(Float8):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-9, 9, (16, 16), dtype=torch.int8), requires_grad=False)


def hooked():
    layer = linear()
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    return layer


def replaced_forward():
    layer = linear()
    layer.forward = lambda x: F.linear(x, layer.weight) - 1
    return layer


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(linear())


def over_lora():
    peft = pytest.importorskip("peft")
    model = nn.ModuleDict({"q": linear()})
    return peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["q"], init_lora_weights=False), model)["q"]


ODD = {
    "subclass with a forward of its own": lambda: Scaled(16, 16),
    "float8 with a scale": Float8,
    "int8": Int8,
    "forward hook": hooked,
    "replaced forward": replaced_forward,
    "weight_norm by a hook": old_weight_norm,
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "spectral_norm by a hook": lambda: nn.utils.spectral_norm(linear()).eval(),
    "under a PEFT LoRA": over_lora,
}
PARAMETRISED = {
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()).eval(),
    "orthogonal": lambda: parametrizations.orthogonal(linear()).eval(),
}


@pytest.mark.parametrize("kind", [*ODD, *PARAMETRISED])
def test_a_layer_with_a_call_of_its_own_keeps_it(kind):
    base = {**ODD, **PARAMETRISED}[kind]()
    x = torch.randn(5, 16)
    alone = base(x).detach()
    model, layer = adapted(base)
    assert not plain(base)
    h = layer(x)
    torch.testing.assert_close(h.double(), alone.double() + update(layer, x), rtol=1e-5, atol=1e-5)
    h.sum().backward()
    wanted = torch.autograd.grad(update(layer, x).sum(), list(layer.vectors["default"].parameters()))
    torch.testing.assert_close([p.grad for p in layer.vectors["default"].parameters()], list(wanted), rtol=1e-4, atol=1e-4)
    if kind in ODD:
        with pytest.raises(AdapterError, match="q: cannot merge into"):
            merge(model)
    else:
        merge(model)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), h, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), h, rtol=1e-5, atol=1e-5)
    unmerge(model)
    set_adapter(model, None)
    assert torch.equal(layer(x), alone)


@pytest.mark.parametrize("merged", [False, True])
def test_hooks_that_come_after_attach_are_called(merged):
    model, layer = adapted(linear())
    x = torch.randn(5, 16)
    W0x = layer.base_layer(x)
    if merged:
        merge(model)
    with torch.no_grad():
        layer(x)
        handle = layer.base_layer.register_forward_hook(lambda module, inputs, output: output * 2)
        torch.testing.assert_close(layer(x).double(), 2 * W0x.double() + update(layer, x), rtol=1e-5, atol=1e-5)
        handle.remove()
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, inputs, output: output * 2 if module is layer.base_layer else None
        )
        try:
            torch.testing.assert_close(layer(x).double(), 2 * W0x.double() + update(layer, x), rtol=1e-5, atol=1e-5)
        finally:
            handle.remove()
        torch.testing.assert_close(layer(x).double(), W0x.double() + update(layer, x), rtol=1e-5, atol=1e-5)
    seen = []
    layer.base_layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(module))
    layer(x.requires_grad_()).sum().backward()
    assert seen == [layer.base_layer]


def test_what_a_layer_returns_must_take_an_update():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    _, layer = adapted(Pair(16, 16))
    with pytest.raises(AdapterError, match="Pair returns tuple"):
        layer(torch.randn(2, 16))


def test_arguments_beside_x_reach_the_base_layer():
    class Gated(nn.Linear):
        def forward(self, x, gate=1.0):
            return super().forward(x) * gate

    _, layer = adapted(Gated(16, 16))
    x = torch.randn(2, 16)
    torch.testing.assert_close(layer(x, gate=0.0).double(), update(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["input", "x"])
@pytest.mark.parametrize("active", [True, False])
def test_the_input_may_be_named_as_the_base_layer_names_it(name, active):
    model, layer = adapted(linear() if name == "input" else Scaled(16, 16))
    if not active:
        set_adapter(model, None)
    x = torch.randn(2, 16)
    assert torch.equal(layer(**{name: x}), layer(x))
    assert torch.equal(torch.compile(lambda x: layer(**{name: x}), backend="eager", fullgraph=True)(x), layer(x))
    with pytest.raises(TypeError, match=name if active else "hidden"):
        layer(hidden=x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(16, 16, dtype=torch.complex64), "complex"),
        (nn.LazyLinear(16), "no shape yet"),
        (nn.utils.skip_init(nn.Linear, 0, 16), "is empty"),
        (nn.utils.skip_init(nn.Linear, 16, 0), "is empty"),
        (torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 16)), {nn.Linear})[0], "no weight tensor"),
    ],
)
def test_a_layer_that_takes_no_adapter_is_refused_by_name(layer, message):
    model = holder(layer)
    with pytest.raises(AdapterError, match=f"^q .*{message}|^q holds {message}"):
        attach(model, CONFIG)
    assert model["q"] is layer


def test_attention_that_never_calls_its_projection_is_refused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
    with pytest.raises(AdapterError, match=r"MultiheadAttention reads the weight of attention\.out_proj"):
        attach(model, VeraConfig(rank=2, targets=("out_proj",)))


@pytest.mark.parametrize("mask", [False, True])
def test_torchs_encoder_layer_does_not_pass_by_its_adapters(mask):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    randomise(attach(model, VeraConfig(rank=7, targets=("linear1", "linear2"), projection_seed=3)))
    x = torch.randn(3, 5, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool) if mask else None
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        h = model(x, src_key_padding_mask=padding)
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            torch.testing.assert_close(h, model(x, src_key_padding_mask=padding))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        set_adapter(model, None)
        assert not torch.allclose(h, model(x, src_key_padding_mask=padding))


@pytest.mark.parametrize("merged", [False, True])
def test_torchs_encoder_may_make_a_nested_tensor_of_a_padded_batch(merged):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2).eval()
    randomise(attach(model, VeraConfig(rank=7, targets=("linear1", "linear2"), projection_seed=3)))
    x = torch.randn(3, 5, 16)
    padding = torch.arange(5) >= torch.tensor([[5], [2], [1]])
    if merged:
        merge(model)
    with torch.no_grad():
        h = model(x, src_key_padding_mask=padding)
        model.use_nested_tensor = False
        torch.testing.assert_close(h[~padding], model(x, src_key_padding_mask=padding)[~padding])


def test_a_nested_tensor_gets_its_gradient():
    _, layer = adapted(linear())
    parts = [torch.randn(2, 16), torch.randn(5, 16)]
    x = torch.nested.nested_tensor(parts, requires_grad=True)
    h = layer(x)
    assert h.is_nested and [len(part) for part in h.unbind()] == [2, 5]
    torch.cat(h.unbind()).sum().backward()
    dense = torch.cat(parts).requires_grad_()
    assert torch.equal(torch.cat(h.unbind()), layer(dense))
    torch.testing.assert_close(torch.cat(x.grad.unbind()), torch.autograd.grad(layer(dense).sum(), dense)[0])


class Tied(nn.Module):
    """Two linear maps on one Parameter, and an output layer on an embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(20, 16)
        self.q, self.k = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.k.weight = self.q.weight
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids)
        return self.lm_head(torch.tanh(self.q(x) + 2 * self.k(x)))


def test_merging_where_a_weight_is_shared_changes_nobody_else():
    model = Tied().eval()
    ids = torch.arange(6)[None]
    attach(model, VeraConfig(rank=7, targets=("q", "lm_head")))
    randomise(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        h = model(ids)
        merge(model)
        torch.testing.assert_close(model(ids), h, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.wte.weight, before["wte.weight"])
        unmerge(model)
        assert torch.equal(model(ids), h)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.lm_head.base_layer.weight is model.wte.weight and model.q.base_layer.weight is model.k.weight


def test_one_module_under_two_names_is_adapted_where_it_is_named_in_full():
    def make():
        model = nn.ModuleDict({"enc": nn.ModuleDict({"proj": linear()}), "dec": nn.ModuleDict()})
        model["dec"]["proj"] = model["enc"]["proj"]
        return model

    with pytest.raises(AdapterError, match=r"enc\.proj and dec\.proj are one module"):
        attach(make(), VeraConfig(rank=7, targets=("proj",)))
    model, x = make(), torch.randn(3, 16)
    alone = model["enc"]["proj"](x)
    randomise(attach(model, VeraConfig(rank=7, targets=("dec.proj",), projection_seed=3)))
    assert [name for name, _ in vera_layers(model)] == ["dec.proj"]
    with torch.no_grad():
        h = model["dec"]["proj"](x)
        merge(model)
        torch.testing.assert_close(model["dec"]["proj"](x), h, rtol=1e-5, atol=1e-5)
        assert torch.equal(model["enc"]["proj"](x), alone)


PLANS = {
    "chosen": None,
    "activation": Plan("activation"),
    "weight from u": Plan("weight", through_u=True, keep_weight=True),
    "weight from G": Plan("weight", through_u=False, keep_weight=True),
    "weight composed twice": Plan("weight", through_u=True, keep_weight=False),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("freed", ["weight", "bias"])
def test_an_unfrozen_base_gets_its_gradient(freed, dropout, plan):
    model, layer = adapted(linear(), dropout=dropout)
    model.train()
    layer.plan = PLANS[plan]
    parameter = getattr(layer.base_layer, freed).requires_grad_()
    x, g = torch.randn(5, 16), torch.randn(5, 16)
    layer(x).backward(g)
    torch.testing.assert_close(parameter.grad, g.T @ x if freed == "weight" else g.sum(0))
    assert layer.vectors["default"].b.grad.abs().max() > 0
    merge(model)
    parameter.grad = None
    layer(x).backward(g)
    torch.testing.assert_close(parameter.grad, g.T @ x if freed == "weight" else g.sum(0))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["plain", "own call", "dropout", "half"])
@pytest.mark.parametrize("lies", ["rows first", "rows second"])
def test_what_a_layer_returns_may_be_written_to(lies, kind, plan):
    """As Falcon does with what a linear layer returns, and Longformer, which also has the rows in the second dimension."""
    base = Scaled(16, 16) if kind == "own call" else linear()
    dtype, near = (torch.bfloat16, 0.1) if kind == "half" else (torch.float32, 1e-4)
    model, layer = adapted(base.to(dtype), dropout=1e-9 if kind == "dropout" else 0.0)
    model.train()
    layer.plan = PLANS[plan]
    x = torch.randn(5, 3, 16).to(dtype).requires_grad_()
    given = x if lies == "rows first" else x.transpose(0, 1)
    wanted = base(given).double() + update(layer, given) + given
    gradients = torch.autograd.grad(wanted.square().sum(), x)
    h = layer(given)
    h += given
    torch.testing.assert_close(h.double(), wanted, rtol=near, atol=near)
    torch.testing.assert_close(torch.autograd.grad(h.square().sum(), x), gradients, rtol=near, atol=10 * near)
    with torch.no_grad():
        torch.testing.assert_close(layer(given).double(), wanted - given, rtol=near, atol=near)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["plain", "own call"])
def test_second_derivatives_are_those_of_the_formula(kind, plan):
    """Of a function of all first derivatives, with A x shared between two layers."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: (nn.Linear if kind == "plain" else Scaled)(5, 5) for name in ("q", "k")}).double()
    attach(layers, VeraConfig(rank=4, targets=("q", "k")))
    for _, layer in vera_layers(layers):
        layer.vectors["default"].double()
        layer.plan = PLANS[plan]
    layers.double()
    randomise(layers)
    x = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    vectors = [value for _, layer in vera_layers(layers) for value in layer.vectors["default"].parameters()]

    def formula(layer, x):
        A, B, b, d = (value.double() for value in layer.matrices("default"))
        return layer.base_layer(x) + ((x @ A.T) * d) @ B.T * b

    def penalty(call):
        h = call(layers["q"], x) * call(layers["k"], x)
        firsts = torch.autograd.grad(h.pow(2).sum(), [x, *vectors], create_graph=True)
        return sum(first.pow(3).sum() for first in firsts) + h.sum()

    found = torch.autograd.grad(penalty(lambda layer, x: layer(x)), [x, *vectors])
    wanted = torch.autograd.grad(penalty(formula), [x, *vectors])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_layers_that_share_a_product_may_be_differentiated_one_after_the_other():
    layers = attach(nn.ModuleDict({"q": linear(), "k": linear()}), VeraConfig(rank=7, targets=("q", "k"), projection_seed=3))
    randomise(layers)
    x = torch.randn(5, 16, requires_grad=True)
    q, k = layers["q"](x), layers["k"](x)
    q.sum().backward()
    k.sum().backward()
    wanted = sum(update(layer, torch.eye(16)).sum(1) for layer in layers.values()).float() + 2 * linear().weight.sum(0)
    torch.testing.assert_close(x.grad, wanted.expand(5, -1), rtol=1e-4, atol=1e-4)


def test_fp16_gradients_do_not_leave_the_range():
    """A sum over 4096 rows of a scaled loss: the gradients of the float32 vectors are those of float32 arithmetic."""
    torch.manual_seed(1)
    x, g = torch.randn(4096, 16) + 1, torch.randn(4096, 16).abs() * 100
    found = {}
    for dtype in (torch.float32, torch.float16):
        _, layer = adapted(linear().to(dtype))
        layer(x.to(dtype)).backward(g.to(dtype))
        found[dtype] = [value.grad for value in layer.vectors["default"].parameters()]
    assert max(value.abs().max() for value in found[torch.float32]) > 65504
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=0.02, atol=2000)


def test_per_sample_gradients_and_forward_derivatives():
    model, layer = adapted(linear())
    x = torch.randn(4, 16)
    own = {name: value.detach() for name, value in model.named_parameters() if ".vectors." in name}
    apart = vmap(grad(lambda values, row: layer_call(model, values, row[None]).pow(2).sum()), (None, 0))(own, x)
    for index, row in enumerate(x):
        model.zero_grad()
        layer(row[None]).pow(2).sum().backward()
        for name, value in model.named_parameters():
            if name in own:
                torch.testing.assert_close(apart[name][index], value.grad, rtol=1e-4, atol=1e-5)
    direction = torch.randn(4, 16)
    _, along = jvp(layer, (x,), (direction,))
    torch.testing.assert_close(
        along.double(), direction.double() @ linear().weight.double().T + update(layer, direction), rtol=1e-4, atol=1e-4
    )
    with torch.autograd.forward_ad.dual_level():
        h = layer(torch.autograd.forward_ad.make_dual(x, direction))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(h).tangent, along)


def layer_call(model, values, x):
    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model["q"](x)

    return functional_call(Call(), {f"model.{name}": value for name, value in values.items()}, (x,))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_a_small_update_away(dtype, training, merged):
    """W0 of a half-precision checkpoint in float32: W0 + dW in half precision would be W0."""
    base = linear(bias=False)
    with torch.no_grad():
        base.weight.fill_(64.0)
    model, layer = adapted(base)
    randomise(model, 0.05)
    if merged:
        merge(model)
    x = torch.cat([torch.ones(256, 8), -torch.ones(256, 8)], 1)  # W0 x = 0
    with torch.set_grad_enabled(training), torch.autocast("cpu", dtype):
        h = layer(x)
    wanted = update(layer, x).detach()
    assert (h.double() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_keeps_all_of_a_small_update(dtype):
    model, layer = adapted(linear().to(dtype))
    randomise(model, 1e-3)
    W0 = layer.weight.float()
    x = torch.randn(5, 16).to(dtype)
    with torch.no_grad():
        h = layer(x)
        merge(model)
        assert layer.weight.dtype == torch.float32
        A, B, b, d = (value.float() for value in layer.matrices("default"))
        dW = torch.diag(b) @ B @ torch.diag(d) @ A
        torch.testing.assert_close(layer.weight - W0, dW, rtol=0, atol=0.02 * dW.abs().max().item())
        torch.testing.assert_close(layer(x), h)


def test_a_merged_models_state_is_that_of_the_unmerged_one():
    model, layer = adapted(linear())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(5, 16)
    with torch.no_grad():
        h = layer(x)
        merge(model)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        other = attach(holder(linear(5)), CONFIG)
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other["q"](x), h)
        late = merge(attach(holder(linear(5)), CONFIG))
        for call in (lambda: None, lambda: unmerge(late)):
            late.load_state_dict(before)
            call()
            torch.testing.assert_close(late["q"](x), h)


@pytest.mark.parametrize("change", ["step", "data", "vectors", "base", "half and back", "copy", "other A"])
def test_a_merged_layer_follows_what_it_is_made_of(change):
    model, layer = adapted(linear())
    merge(model)
    x = torch.randn(5, 16)
    vectors = layer.vectors["default"]
    with torch.no_grad():
        layer(x)
    if change == "step":
        optimiser = torch.optim.AdamW([*vectors.parameters()], 0.1)
        layer(x).pow(2).sum().backward()
        optimiser.step()
    elif change == "data":
        vectors.b.data = vectors.b.data * 2
    elif change == "vectors":
        with torch.no_grad():
            vectors.d.mul_(3)
    elif change == "base":
        layer.base_layer.load_state_dict(linear(9).state_dict())
    elif change == "half and back":
        model.bfloat16().float()
    elif change == "copy":
        model = copy.deepcopy(model)
        layer = model["q"]
        with torch.no_grad():
            layer.vectors["default"].b.mul_(2)
    elif change == "other A":
        layer.projections["default"].A.mul_(2)
    with torch.no_grad():
        merged = layer(x)
        weight = layer.weight
        unmerge(model)
        torch.testing.assert_close(merged, layer(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(F.linear(x, weight, layer.bias), merged, rtol=1e-5, atol=1e-5)


def test_a_merged_layer_that_is_not_trained_multiplies_once():
    model, layer = adapted(linear())
    merge(model)
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.__name__.partition(".")[0])
            return function(*args, **(kwargs or {}))

    with Calls(), torch.no_grad():
        layer(torch.randn(5, 16))
    assert [name for name in calls if "mm" in name] == ["addmm"]


def test_attach_takes_any_of_numpys_numbers_and_refuses_what_cannot_learn():
    numpy = pytest.importorskip("numpy")
    config = VeraConfig(numpy.int64(8), {"k", "q"}, numpy.int32(3), numpy.float32(0.5), dropout=numpy.float64(0.25))
    assert config == VeraConfig(8, ("k", "q"), 3, 0.5, dropout=0.25)
    assert [type(value) for value in (config.rank, config.projection_seed, config.d_init)] == [int, int, float]
    for settings, message in [
        ({"d_init": 0}, "no gradient"),
        ({"d_init": 1e-46, "train": "only_b"}, "no gradient"),
        ({"d_init": 1e39}, "finite"),
        ({"d_init": float("nan")}, "finite"),
        ({"d_init": numpy.bool_(True)}, "finite"),
        ({"rank": 8.0}, "whole"),
        ({"rank": numpy.bool_(True)}, "whole"),
        ({"modules_to_save": "head"}, "modules_to_save must be a sequence"),
        ({"targets": 3}, "targets must be a sequence"),
        ({"projection_dtype": "int8"}, "projection_dtype"),
    ]:
        with pytest.raises(AdapterError, match=message):
            VeraConfig(**{"rank": 8, "targets": ("q",), **settings})
    assert VeraConfig(8, ("q",), d_init=0.0, train="only_d").d_init == 0


@pytest.mark.parametrize("name", ["keys", "forward", "type", "training", "train", "pop", "a.b", "", None, 3])
def test_a_name_that_cannot_be_is_refused_first(name):
    model = holder(linear())
    with pytest.raises(AdapterError, match="adapter"):
        attach(model, CONFIG, name)
    assert type(model["q"]) is nn.Linear and model["q"].weight.requires_grad


def test_a_failure_half_way_leaves_the_model_as_it_was():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = linear(), linear()

        def __setattr__(self, name, value):
            if name == "k" and hasattr(self, "k"):
                raise RuntimeError("k stays")
            super().__setattr__(name, value)

    model = Stubborn()
    model.q.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="k stays"):
        attach(model, VeraConfig(rank=2, targets=("q", "k")))
    assert type(model.q) is type(model.k) is nn.Linear
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]
    attach(model, VeraConfig(rank=2, targets=("q",)), "first")
    with pytest.raises(RuntimeError, match="k stays"):
        attach(model, VeraConfig(rank=3, targets=("q", "k")), "second")
    assert list(model.q.vectors) == ["first"] and model.q.active == "first" and type(model.k) is nn.Linear
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        "q.vectors.first.b",
        "q.vectors.first.d",
    }


def test_defaults_of_dtype_and_device_do_not_reach_in():
    wanted = attach(holder(linear()), CONFIG)["q"]
    base = linear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            layer = attach(holder(base), CONFIG)["q"]
    finally:
        torch.set_default_dtype(torch.float32)
    for found, value in zip(layer.matrices("default"), wanted.matrices("default"), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, value)


@pytest.mark.parametrize("how", ["to_empty", "assign"])
def test_an_adapter_on_the_meta_device_draws_its_pair_when_it_leaves(how, tmp_path):
    wanted = randomise(attach(holder(linear()), CONFIG))
    with torch.device("meta"):
        model = attach(holder(nn.Linear(16, 16)), CONFIG)
    with pytest.raises(AdapterError, match="no values"):
        save_adapter(model, tmp_path)
    if how == "to_empty":
        model.to_empty(device="cpu")
        assert (model["q"].vectors["default"].d == 0.1).all() and (model["q"].vectors["default"].b == 0).all()
    model.load_state_dict(wanted.state_dict(), assign=how == "assign")
    x = torch.randn(3, 16)
    assert torch.equal(model["q"](x), wanted["q"](x))
    load_adapter(holder(linear()), save_adapter(model, tmp_path))
    model.to_empty(device="cpu")
    assert torch.equal(model["q"].projections["default"].A, wanted["q"].projections["default"].A)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("order", ["activation", "weight"])
def test_a_pass_on_the_meta_device_gives_shapes(order, amp):
    """As tools that count operations or memory ask it; autocast does not know that device."""
    with torch.device("meta"):
        model = attach(holder(nn.Linear(16, 24)), CONFIG)
        x = torch.randn(2, 3, 16, requires_grad=True)
    model["q"].plan = Plan(order)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        h = model["q"](x)
    assert (h.shape, h.dtype, h.is_meta) == ((2, 3, 24), torch.float32, True)
    h.sum().backward()
    assert x.grad.shape == x.shape
    assert {p.grad.shape for p in model.parameters() if p.requires_grad} == {(24,), (CONFIG.rank,)}


def test_an_offloaded_weight_is_brought_by_its_own_call():
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(nn.ModuleDict({"q": linear()})["q"], nn.Linear(16, 2))
    x = torch.randn(3, 16)
    before = model(x)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model[0].weight.is_meta
    attach(model, VeraConfig(rank=7, targets=("0",), projection_seed=3))
    torch.testing.assert_close(model(x), before)
    with pytest.raises(AdapterError, match="0: cannot merge"):
        merge(model)
    late = nn.Sequential(linear(), nn.Linear(16, 2))
    randomise(attach(late, VeraConfig(rank=7, targets=("0",), projection_seed=3)))
    accelerate.cpu_offload(late, execution_device="cpu")
    with pytest.raises(AdapterError, match="offload before attaching"):
        late(x)


@pytest.mark.parametrize("where", ["whole", "part", "both"])
def test_a_compiled_model_is_the_model_in_it(where, tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 2))

    model = make()
    if where != "whole":
        model[0] = torch.compile(model[0], backend="eager")
    if where != "part":
        model = torch.compile(model, backend="eager")
    x = torch.randn(3, 8)
    torch._dynamo.reset()
    model(x)
    config = VeraConfig(rank=4, targets=("0.0", "1"))
    assert attach(model, config) is model
    assert [name for name, _ in vera_layers(model)] == ["0.0", "1"]
    randomise(model)
    save_adapter(model, tmp_path)
    other = load_adapter(make(), tmp_path)
    torch.testing.assert_close(model(x), other(x))
    merge(model)
    for scale in (1.0, 3.0):  # a compiled call follows b as any other
        with torch.no_grad():
            for each in (model, other):
                for _, layer in vera_layers(each):
                    layer.vectors["default"].b.mul_(scale)
            torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)
    unmerge(model)
    set_adapter(model, None)
    assert torch.allclose(model(x), make()(x))
    assert load_adapter(torch.compile(make(), backend="eager"), tmp_path)._orig_mod[1].active == "default"


def test_a_data_parallel_wrapper_hides_no_adapter_and_gets_none(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        bare = nn.Sequential(linear(), nn.Linear(16, 2))
        with pytest.raises(AdapterError, match="before DistributedDataParallel"):
            attach(nn.parallel.DistributedDataParallel(bare), VeraConfig(rank=4, targets=("0",)))
        model = nn.parallel.DistributedDataParallel(randomise(attach(bare, VeraConfig(rank=4, targets=("0",)))))
        model(torch.randn(3, 16)).sum().backward()
        assert model.module[0].vectors["default"].b.grad is not None
        save_adapter(model, tmp_path)
        load_adapter(model, tmp_path)
    finally:
        torch.distributed.destroy_process_group()
    bare[0].base_layer.requires_grad_(False)
    other = nn.Sequential(linear(), nn.Linear(16, 2))
    load_adapter(other, tmp_path)
    assert torch.equal(other[0].vectors["default"].b, bare[0].vectors["default"].b)


def in_parts(rank, folder):
    """One of two processes: what they write of a model in parts (fully_shard), and what they read into one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 21), nn.Linear(21, 16), nn.Linear(16, 2))

    def made(*head):
        return randomise(attach(net(), VeraConfig(rank=4, targets=("0", "1"), modules_to_save=head)))

    for head in ((), ("2",)):
        whole = made(*head)
        mine = folder / f"{rank}{len(head)}"
        for frozen_alone in (True, False):
            model = made(*head)
            kept = {parameter for parameter in model.parameters() if parameter.requires_grad and frozen_alone}
            fully_shard(model, mesh=mesh, ignored_params=kept)
            for gather in (lambda: None, lambda: model(x), model.unshard):  # noqa: B023 called at once
                gather()
                save_adapter(model, mine)
                assert torch.equal(load_adapter(net(), mine)(x), whole(x))
                model.unshard()  # what is written to the whole is lost
                if kept:
                    assert torch.equal(load_adapter(model, mine)(x), whole(x))
                else:
                    with pytest.raises(AdapterError, match="adapter 'default' on 0 is in parts"):
                        load_adapter(model, mine)
        other = net()
        fully_shard(other, mesh=mesh)
        if head:
            with pytest.raises(AdapterError, match="modules_to_save names '2', which is in parts"):
                load_adapter(other, mine)
        else:
            assert torch.equal(load_adapter(other, mine)(x), whole(x))
    model = FullyShardedDataParallel(made(), use_orig_params=True, device_id=torch.device("cpu"))
    model(x)
    with pytest.raises(AdapterError, match=r"0 is in parts.*summon_full_params"):
        save_adapter(model, mine)
    with FullyShardedDataParallel.summon_full_params(model):
        save_adapter(model, mine)
    assert torch.equal(load_adapter(net(), mine)(x), made()(x))
    torch.distributed.destroy_process_group()


def test_a_model_in_parts_over_processes_is_written_whole(tmp_path):
    torch.multiprocessing.start_processes(in_parts, (tmp_path,), nprocs=2)


def test_a_class_that_torch_makes_of_an_adapted_layer_takes_a_second_adapter():
    """fully_shard gives each module a class of its own."""

    class Own(VeraLinear):
        def whole(self):
            return super().whole() * 2

    for kind, other in ((VeraLinear, Own), (Own, VeraLinear)):
        model = attach(holder(linear()), CONFIG, layer=kind)
        model["q"].__class__ = type(f"FSDP{kind.__name__}", (kind,), {})
        attach(model, CONFIG, "second", layer=kind)
        assert set(model["q"].vectors) == {"default", "second"}
        with pytest.raises(AdapterError, match=f"q is a FSDP{kind.__name__} of another adapter"):
            attach(model, CONFIG, "third", layer=other)


def test_what_stands_in_the_way_of_merging_is_said_in_words():
    layer = linear()
    assert obstacle(layer) is None
    assert "Scaled" in obstacle(Scaled(2, 2)) and "hooks" in obstacle(hooked()) and "forward" in obstacle(replaced_forward())
    assert "float8" in obstacle(Float8()) and "meta" in obstacle(nn.Linear(2, 2, device="meta"))
    assert "training" in obstacle(parametrizations.spectral_norm(linear()).train())


def wavlm():
    return WavLMModel(
        WavLMConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,), conv_stride=(5,),
            conv_kernel=(10,), num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip


def bloom(**settings):
    return BloomModel(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2, **settings))


READ = {
    "wavlm": (wavlm, "q_proj", "WavLMAttention"),
    "mamba": (lambda: MambaModel(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)), "dt_proj", "MambaMixer"),
    "bloom in slices": (lambda: bloom(pretraining_tp=2, slow_but_exact=True), "dense_4h_to_h", "BloomMLP"),
}


@pytest.mark.parametrize("model", READ)
def test_a_module_of_transformers_that_reads_a_weight_without_a_call_is_refused(model):
    make, target, reader = READ[model]
    with pytest.raises(AdapterError, match=rf"^{reader} reads the weight of .*{target} without calling it"):
        attach(make(), VeraConfig(rank=2, targets=(target,)))
    attach(bloom(pretraining_tp=2), VeraConfig(rank=2, targets=("dense_4h_to_h",)))


def test_a_forward_that_is_replaced_for_all_linear_layers_is_called(monkeypatch):
    model, own = nn.ModuleDict({"q": linear()}), nn.Linear.forward
    x = torch.randn(5, 16)
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: 3 * own(layer, x))
    bare = model["q"](x)
    randomise(attach(model, CONFIG))
    torch.testing.assert_close(model["q"](x).double(), bare.double() + update(model["q"], x), rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="the forward of Linear is replaced for all layers"):
        merge(model)


class Repeated(nn.Module):
    """One block, three times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q": linear()})] * 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer["q"](x))
        return x


@pytest.mark.parametrize("target", ["q", "layers.2.q"])
@pytest.mark.parametrize("compact", [False, True])
def test_a_block_under_several_names_has_one_adapter_under_all_of_them(target, compact, tmp_path):
    x = torch.randn(5, 16)
    model = randomise(attach(Repeated(), VeraConfig(rank=7, targets=(target,), projection_seed=3)))
    assert [name for name, _ in vera_layers(model)] == ["layers.0.q"]
    base, expected = linear(), x
    for _ in range(3):
        expected = torch.tanh(base(expected) + update(model.layers[1]["q"], expected).float())
    torch.testing.assert_close(model(x), expected)
    save_adapter(model, tmp_path, compact=compact)
    torch.testing.assert_close(load_adapter(Repeated(), tmp_path)(x), expected)
    load_adapter(model, tmp_path)
    bank = AdapterBank(Repeated().eval())
    bank.add("a", tmp_path)
    with bank.use(["a"] * 5):
        torch.testing.assert_close(bank.model(x), expected)


def test_layers_of_unlike_dtypes_have_a_pair_each():
    model = nn.ModuleDict({"first": linear().bfloat16(), "q": linear()})
    randomise(attach(model, VeraConfig(rank=7, targets=("first", "q"), projection_seed=3)))
    x = torch.randn(5, 16)
    found = model["q"](x).double() - model["q"].base_layer(x).double()
    torch.testing.assert_close(found, update(model["q"], x), rtol=1e-5, atol=1e-5)
    kept = [layer.projections["default"].A.dtype for _, layer in vera_layers(model)]
    assert kept == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("merged", [True, False])
def test_a_trace_computes_and_differentiates_as_the_model(graph, merged):
    model, layer = adapted(linear())
    model = nn.Sequential(layer, nn.ReLU()).eval()
    if merged:
        merge(model)
    with torch.set_grad_enabled(graph):
        trace = torch.jit.trace(model, torch.randn(3, 16))
    results = []
    for call in (trace, model):
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(4)).requires_grad_()
        y = call(x)
        y.pow(2).sum().backward()
        results.append((y, x.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_trained_pair_has_its_gradient_under_compile():
    model, layer = adapted(linear())
    pair, x = layer.projections["default"], torch.randn(5, 16)
    pair.A.requires_grad_(True)
    model["q"](x).pow(2).sum().backward()
    expected, pair.A.grad = pair.A.grad, None
    torch.compile(model["q"], backend="aot_eager")(x).pow(2).sum().backward()
    torch.testing.assert_close(pair.A.grad, expected)


def test_forward_derivatives_by_b_and_d_pass_through_a_merged_layer():
    model, layer = adapted(linear())
    x, values = torch.randn(5, 16), {name: value.detach() for name, value in layer.vectors.named_parameters()}
    tangents = {name: torch.ones_like(value) for name, value in values.items()}

    def along(values):
        return functional_call(layer, {f"vectors.{name}": value for name, value in values.items()}, (x,))

    expected = jvp(along, (values,), (tangents,))
    merge(model.eval())
    for found, wanted in zip(jvp(along, (values,), (tangents,)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_merged_model_made_in_inference_mode_follows_what_is_loaded():
    state = randomise(attach(holder(linear()), CONFIG), scale=2.0).state_dict()
    x = torch.randn(5, 16)
    with torch.inference_mode():
        model = merge(randomise(attach(holder(linear()), CONFIG)).eval())
        model["q"](x)
        model.load_state_dict(state)
        found = model["q"](x)
        torch.testing.assert_close(found, unmerge(model)["q"](x), rtol=1e-4, atol=1e-4)


def test_the_weight_of_an_adapted_layer_cannot_be_replaced():
    _, layer = adapted(linear())
    with pytest.raises(AdapterError, match="the weight of an adapted layer cannot be replaced"):
        layer.weight = nn.Parameter(torch.zeros(16, 16))
