"""train.cuda_graphs without a GPU: a stand-in computes anew where a GPU would replay (tests/test_gpu.py has the real ones)."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.test_gpu import looped, trained
from vera.config import build, compose
from vera.errors import ConfigError
from vera.methods.base import Method
from vera.tasks.base import Data
from vera.tasks.language import collate
from vera.train import graphs
from vera.train.state import generators


class Recomputed:
    """In the place of a recording: tensors of its own that a replay reads and writes."""

    made = 0

    def __init__(self, compute, trained, inputs, pool):
        type(self).made += 1
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        first = compute(self.inputs)
        self.logits, self.wanted = torch.zeros_like(first.detach()), torch.zeros_like(first.detach())
        self.gradients = [None if g is None else g.clone() for g in self.derived(first, trained)]

        def forward():
            with torch.enable_grad():
                self.now = compute(self.inputs)
            self.logits.copy_(self.now.detach())

        def backward():
            for kept, gradient in zip(self.gradients, self.derived(self.now, trained), strict=True):
                if kept is not None:
                    kept.copy_(gradient)

        self.forward, self.backward = SimpleNamespace(replay=forward), SimpleNamespace(replay=backward)

    def derived(self, logits, trained):
        return torch.autograd.grad(logits, trained, self.wanted, allow_unused=True)


def as_of_a_gpu():
    """The generators, torch's own of the CPU in the role of a GPU's: dropout draws from it here."""
    return {{"torch": "cuda"}.get(name, name): state for name, state in generators().items()}


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(graphs, "generators", as_of_a_gpu)
    monkeypatch.setattr(graphs, "restore_generators", lambda found: torch.set_rng_state(found["cuda"]))
    monkeypatch.setattr(graphs, "_Passes", type("Recomputed", (Recomputed,), {}))
    monkeypatch.setattr("vera.train.loop.check_recordable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    return lambda: graphs._Passes.made


@pytest.mark.parametrize(("method", "pieces"), [("vera", None), ("full", None), ("lora", 4)])
def test_replayed_passes_give_the_bits_of_ordinary_ones(method, pieces, recorded, tmp_path):
    """Of the same lengths, with dropout; a shape is recorded once, though an evaluation comes between."""
    ordinary = looped(method, tmp_path / "a", multiple=16, micro_batch_size=pieces)
    replayed = looped(method, tmp_path / "b", cuda_graphs=True, micro_batch_size=pieces)
    ordinary.fit()
    replayed.fit()
    assert len(replayed.graphs.passes) >= 4 and recorded() == len(replayed.graphs.passes)
    assert replayed.history == ordinary.history
    assert all(torch.equal(tensor, trained(ordinary)[name]) for name, tensor in trained(replayed).items())
    assert replayed.run.cell_id == ordinary.run.cell_id


def test_a_run_that_was_replayed_for_a_while_has_no_peak_of_memory(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    loop = looped("vera", tmp_path)
    loop.accelerator = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    loop._settle()
    assert loop.spent["peak_memory_bytes"] == 7
    loop.earlier = [{**loop.started, "cuda_graphs": True}]
    loop._settle()
    assert loop.spent["peak_memory_bytes"] is None


@pytest.mark.parametrize("number", [0.0, 2, True, -3.5])
@pytest.mark.parametrize("asked", [{}, {"dtype": torch.bfloat16}, {"device": "meta"}, {"dtype": torch.long, "device": "cpu"}])
def test_a_number_is_filled_in_where_it_would_be_copied(number, asked, monkeypatch):
    plain, real, made = torch.tensor(number, **asked), torch.full, []
    monkeypatch.setattr(torch, "full", lambda *given, **more: made.append(given) or real(*given, **more))
    with graphs._Filled():
        filled, copied = torch.tensor(number, **asked), torch.tensor([1.5])
        assert torch.tensor(np.float64(1.5)).dtype == torch.float64
    assert made == [((), number)]
    assert (filled.dtype, filled.device, filled.shape) == (plain.dtype, plain.device, plain.shape)
    assert filled.is_meta or torch.equal(filled, plain)
    assert copied.tolist() == [1.5]


@pytest.mark.parametrize("change", [lambda weight: weight.mul_(1), lambda weight: setattr(weight, "data", weight.data.clone())])
def test_frozen_weights_that_were_written_to_or_moved_are_recorded_again(change, recorded, tmp_path):
    loop = looped("vera", tmp_path, cuda_graphs=True)
    scored = loop._evaluate

    def evaluated(epoch):
        found = scored(epoch)
        with torch.no_grad():
            change(loop.backbone.model.roberta.encoder.layer[0].output.dense.weight)
        return found

    loop._evaluate = evaluated
    loop.fit()
    assert recorded() > len(loop.graphs.passes) >= 4


def test_a_table_that_a_longer_batch_makes_anew_is_read_by_all_recordings(recorded, tmp_path):
    loop = looped("vera", tmp_path, cuda_graphs=True, epochs=1)
    roberta, tables = loop.backbone.model.roberta, []

    def grow(module, args):
        length = args[0].shape[1]
        if not tables or len(tables[-1]) < length:
            tables.append(torch.zeros(length))
            roberta.table = tables[-1]

    roberta.register_forward_pre_hook(grow)
    loop.fit()
    assert len(tables) > 1 and recorded() > len(loop.graphs.passes) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: random.random(), "random numbers on the CPU"),
        (lambda model: np.random.rand(), "random numbers on the CPU"),
        (lambda model: model.get_buffer("count").add_(1), "in each pass"),
        (lambda model: setattr(model, "table", torch.zeros(3)), "in each pass"),
    ],
)
def test_what_a_replay_would_not_do_is_refused(change, message, recorded, tmp_path):
    loop = looped("vera", tmp_path, cuda_graphs=True)
    loop.backbone.model.register_buffer("count", torch.zeros(1))
    loop.graphs.where = loop.graphs._where()
    loop.backbone.model.roberta.register_forward_pre_hook(lambda *_: change(loop.backbone.model) and None)
    with pytest.raises(ConfigError, match=message):
        loop.fit()


def test_runs_that_cannot_be_recorded_are_refused():
    cuda, plain = torch.device("cuda"), build(compose(["method=vera"]).method, "method")
    graphs.check_recordable(cuda, 1, plain)
    with pytest.raises(ConfigError, match="needs a GPU, and this run computes on the cpu"):
        graphs.check_recordable(torch.device("cpu"), 1, plain)
    with pytest.raises(ConfigError, match="one process"):
        graphs.check_recordable(cuda, 2, plain)
    for name in ("adalora", "dylora", "vera_budget"):
        method = build(compose([f"method={name}"]).method, "method")
        assert isinstance(method, Method)
        with pytest.raises(ConfigError, match="changes the model between steps"):
            graphs.check_recordable(cuda, 1, method)
    with pytest.raises(ConfigError, match=r"train\.micro_batch_tokens.*many shapes.*set it to null"):
        compose(["model=minilm", "task=rte", "train.cuda_graphs=true"])
    assert compose(["model=minilm", "task=rte", "train.cuda_graphs=true", "train.micro_batch_tokens=null"]).train.cuda_graphs
    hooked = torch.nn.Linear(2, 2)
    hooked.weight.register_hook(lambda gradient: gradient)
    with pytest.raises(ConfigError, match="hooks on trainable parameters"):
        graphs.Graphs(hooked, hooked.parameters(), hooked)


def test_batches_are_padded_to_multiples_and_no_further_than_may_be():
    rows = [{"input_ids": [5] * n, "labels": [-100] * n} for n in (3, 18)]
    batch = collate(rows, pad=0, most=30, multiple=16)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 30)
    assert batch["attention_mask"].sum(1).tolist() == [3, 18] and (batch["labels"] == -100).all()
    assert collate(rows, pad=0, most=30)["input_ids"].shape == (2, 18)
    assert collate(rows, pad=0, most=8, multiple=16)["input_ids"].shape == (2, 18)
    equal = Data(rows, rows, list, "here", None, "f")
    assert graphs.collated(equal) is list
    with pytest.raises(ConfigError, match="takes no multiple="):
        graphs.collated(Data(rows, rows, lambda examples: {}, "here", None, "f", lengths=[3, 18]))
