"""What only a GPU can show, in plain pytest: `make gpu-proof` runs these with torch, transformers, peft and accelerate alone.

VERA_GPU_TOY=1 runs them on a CPU, for typing errors.
"""

import gc
import os
from functools import partial

import pytest
import torch
from torch import nn

from vera.nn import AdapterBank, VeraConfig, accelerate, attach, load_adapter, merge, save_adapter, unmerge
from vera.nn.functional import Plan

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product of the process
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU and not os.environ.get("VERA_GPU_TOY"), reason="no GPU that torch can use"),
]
PLANS = [Plan("activation"), *(Plan("weight", u, keep) for u in (True, False) for keep in (True, False))]


def adapted(d_in=768, d_out=512, rank=1024):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d_in, d_out), nn.Tanh(), nn.Linear(d_out, d_out))
    attach(model, VeraConfig(rank=rank, targets=("0", "2"), projection_seed=0, d_init=0.1))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) / 10)
    return model.to(DEVICE)


def reference(layer, x):
    """The equation itself, in float64 on the CPU: h, db and dd of sum(h^2) / 2."""
    W0, bias = (tensor.detach().double().cpu() for tensor in (layer.base_layer.weight, layer.base_layer.bias))
    A, B, b, d = (tensor.detach().double().cpu() for tensor in layer.matrices(layer.active))
    b.requires_grad_()
    d.requires_grad_()
    x = x.double().cpu()
    h = x @ W0.T + bias + b * ((d * (x @ A.T)) @ B.T)
    (h**2 / 2).sum().backward()
    return h.detach(), b.grad, d.grad


def off(found, expected):
    """The relative error, in the norm."""
    return ((found.detach().double().cpu() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan)))
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_both_orders_agree_with_float64(plan, precision, tolerance):
    layer = adapted()[0]
    layer.plan = plan
    x = torch.randn(256, 768, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
        h = layer(x)
    (h.float() ** 2 / 2).sum().backward()
    _, _, b, d = layer.matrices(layer.active)
    for found, expected in zip((h, b.grad, d.grad), reference(layer, x), strict=True):
        assert off(found, expected) < tolerance


def test_merged_and_back_to_the_same_bits():
    model = adapted().eval()
    x = torch.randn(64, 768, device=DEVICE)
    with torch.inference_mode():
        before = model(x)
        weights = [layer.base_layer.weight.clone() for layer in (model[0], model[2])]
        merge(model)
        merged = model(x)
        unmerge(model)
        after = model(x)
    assert off(merged, before.double().cpu()) < 1e-4 and torch.equal(before, after)
    assert all(torch.equal(w, layer.base_layer.weight) for w, layer in zip(weights, (model[0], model[2]), strict=True))


def test_a_mixed_batch_is_each_adapter_by_itself(tmp_path):
    alone = []
    for index in range(3):
        model = adapted(rank=64)
        with torch.no_grad():
            model[0].matrices(model[0].active)[2].add_(index)
        save_adapter(model, tmp_path / str(index))
        alone.append(model.eval())
    bare = nn.Sequential(*(layer.base_layer if hasattr(layer, "base_layer") else layer for layer in adapted(rank=64)))
    bank = AdapterBank(bare.eval().to(DEVICE))
    assert not bank.load(tmp_path)
    x = torch.randn(4, 5, 768, device=DEVICE)
    with torch.inference_mode(), bank.use(["2", "0", "1", "0"]):
        mixed = bank.model(x)
    with torch.inference_mode():
        for row, index in enumerate((2, 0, 1, 0)):
            assert off(mixed[row], alone[index](x[row]).double().cpu()) < 1e-4


def test_a_file_read_on_the_gpu_is_the_model_that_wrote_it(tmp_path):
    model = adapted(rank=64).eval()
    save_adapter(model, tmp_path / "a")
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(768, 512), nn.Tanh(), nn.Linear(512, 512)).to(DEVICE)
    load_adapter(other, tmp_path / "a")
    x = torch.randn(8, 768, device=DEVICE)
    with torch.inference_mode():
        assert torch.equal(model(x), other.eval()(x))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_peft_s_layers_give_the_same_faster(precision):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(768, 512), nn.Tanh(), nn.Linear(512, 512))
    model = peft.get_peft_model(model, peft.VeraConfig(r=256, target_modules=["0"], d_initial=0.1)).to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # b is 0 at first, and then so is the gradient of d
                parameter.add_(torch.randn_like(parameter) / 10)
    x = torch.randn(256, 768, device=DEVICE)

    def outcome():
        model.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            h = model(x)
        h.float().pow(2).sum().backward()
        return [h, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    theirs = outcome()
    accelerate(model)
    for found, expected in zip(outcome(), theirs, strict=True):
        assert off(found, expected.detach().double().cpu()) < (1e-4 if precision == "fp32" else 3e-2)


class Killed(BaseException):
    pass


def looped(method, work, on_progress=lambda *_: None, multiple=1, longest=250, **changes):
    """Two epochs of a tiny model with dropout, by deterministic operations."""
    pytest.importorskip("pydantic")
    from bench.proof import rte_shaped
    from vera.train.loop import Loop

    changes = {"epochs": 2, "batch_size": 8, "checkpoint_seconds": 0, "deterministic": True, "save": False, **changes}
    *parts, data = rte_shaped(method, toy=True, examples=171, longest=longest, **changes)
    if multiple > 1:
        data.collate = partial(data.collate, multiple=multiple)
    return Loop(*parts, data, work, on_progress)


def trained(loop):
    return loop.method.trained(loop.backbone)


RECORDED = pytest.param("vera", True, marks=pytest.mark.skipif(not GPU, reason="CUDA graphs"))


@pytest.mark.parametrize(("method", "graphs"), [("vera", False), ("full", False), RECORDED])
def test_a_killed_run_goes_on_with_the_same_numbers(method, graphs, tmp_path):
    """Deterministic operations, dropout, and a fused optimiser, whose moments and counts come back."""

    def loop(work, on_progress=lambda *_: None):
        return looped(method, work, on_progress, cuda_graphs=graphs)

    def kill(step, total, loss):
        if step == 20:
            raise Killed

    whole = loop(tmp_path / "whole")
    whole.fit()
    with pytest.raises(Killed):
        loop(tmp_path / "killed", kill).fit()
    resumed = loop(tmp_path / "killed")
    resumed.fit()
    assert resumed.spent["restarts"] == 1 and resumed.history == whole.history
    ours, theirs = trained(resumed), trained(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


METHODS = ("vera", "lora", "lora_fa", "ia3", "bitfit", "adapter_h", "full")


@pytest.mark.skipif(not GPU, reason="CUDA graphs")
@pytest.mark.parametrize(
    ("method", "pieces", "precision"),
    [*((method, None, "fp32") for method in METHODS), ("vera", 4, "fp32"), ("lora", None, "bf16"), ("full", None, "bf16")],
)
def test_replayed_passes_train_as_ordinary_ones_do(method, pieces, precision, tmp_path):
    """With dropout, batches of several shapes, and gradients of several pieces summed; under autocast, with no cast of weights
    as they were. The same lengths: dropout draws by place."""
    changes = {"precision": precision, "micro_batch_size": pieces}
    ordinary = looped(method, tmp_path / "ordinary", multiple=16, **changes)
    replayed = looped(method, tmp_path / "replayed", cuda_graphs=True, **changes)
    before = {name: tensor.clone() for name, tensor in trained(ordinary).items()}
    ordinary.fit()
    replayed.fit()
    assert len(replayed.graphs.passes) >= 4
    ours, theirs = trained(replayed), trained(ordinary)
    for name, start in before.items():
        moved = (theirs[name] - start).norm()
        assert (ours[name] - theirs[name]).norm() <= (1e-2 if precision == "fp32" else 5e-2) * moved, name
    losses = [[entry["train_loss"] for entry in loop.history] for loop in (replayed, ordinary)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.skipif(not GPU, reason="CUDA graphs")
def test_an_eager_mask_of_attention_is_recorded(tmp_path):
    """It has a number that comes from the CPU; MiniLM's config asks for this attention."""
    loops = looped("vera", tmp_path / "ordinary", multiple=16), looped("vera", tmp_path / "replayed", cuda_graphs=True)
    for loop in loops:
        loop.backbone.model.set_attn_implementation("eager")
        loop.fit()
    losses = [[entry["train_loss"] for entry in loop.history] for loop in loops]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.skipif(not GPU, reason="CUDA graphs")
def test_what_a_replay_would_repeat_or_cannot_hold_is_refused(tmp_path):
    from vera.errors import ConfigError

    def fitted(change):
        loop = looped("vera", tmp_path / "work", cuda_graphs=True)
        loop.backbone.model.roberta.register_forward_pre_hook(change)
        loop.fit()

    def draws(*_):
        torch.rand(1)

    def waits(*_):
        torch.zeros(1, device=DEVICE).item()

    with pytest.raises(ConfigError, match="random numbers on the CPU"):
        fitted(draws)
    with pytest.raises(ConfigError, match="cannot be recorded"):
        fitted(waits)


@pytest.mark.skipif(not GPU, reason="CUDA graphs")
def test_tensors_that_are_elsewhere_after_an_evaluation_are_recorded_again(tmp_path):
    ordinary, moved = looped("vera", tmp_path / "a", multiple=16), looped("vera", tmp_path / "b", cuda_graphs=True)
    scored = moved._evaluate

    def evaluated(epoch):
        found = scored(epoch)
        with torch.no_grad():
            for parameter in moved.backbone.model.parameters():
                parameter.data = parameter.data.clone()
        return found

    moved._evaluate = evaluated
    ordinary.fit()
    moved.fit()
    assert [e["train_loss"] for e in moved.history] == pytest.approx([e["train_loss"] for e in ordinary.history], rel=1e-2)


@pytest.mark.skipif(not GPU, reason="CUDA graphs")
def test_recordings_of_a_run_leave_no_memory_behind(tmp_path):
    left = []
    for name in "abc":
        looped("vera", tmp_path / name, cuda_graphs=True).fit()
        gc.collect()
        left.append(torch.cuda.memory_allocated())
    assert left[1] == left[2]
