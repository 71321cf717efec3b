"""Mixed batches equal one adapter at a time, whatever fits the memory, and bad input changes nothing."""

import asyncio
import copy
import dataclasses
import re
import shutil
import threading
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import (
    CLIPVisionConfig,
    FSMTConfig,
    FSMTModel,
    GenerationConfig,
    LEDConfig,
    LEDModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LongformerConfig,
    LongformerModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    SwitchTransformersConfig,
    SwitchTransformersModel,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

from vera.errors import AdapterError
from vera.nn import AdapterBank, VeraConfig, attach, load_adapter, merge, save_adapter, set_adapter

LENGTH = 9


def roberta(seed=0):
    torch.manual_seed(seed)
    config = RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=60, num_labels=3
    )
    return RobertaForSequenceClassification(config).eval()


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80, vocab_size=60,
        pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


FAMILIES = {
    "roberta": (roberta, ("query", "value"), ("classifier",)),
    "llama": (llama, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), ()),
}


def write(folder, family="roberta", count=5, rank=6, compact=False, **settings):
    """Folders a0, a1, ... of adapters that differ; the odd ones compact when asked for."""
    make, targets, head = FAMILIES[family]
    model = attach(make(), VeraConfig(rank=rank, targets=targets, projection_seed=3, modules_to_save=head, **settings))
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        save_adapter(model, folder / f"a{index}", compact=compact and index % 2 == 1)
    return folder


def ids(rows, seed=0):
    return torch.randint(5, 59, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def alone(folder, family, name, call):
    """The same call with one adapter, merged into the weights; the bare model for no name."""
    model = FAMILIES[family][0]()
    if name is not None:
        merge(load_adapter(model, folder / name))
    with torch.no_grad():
        return call(model)


def logits(model, x):
    with torch.no_grad():
        return model(input_ids=x).logits


@pytest.mark.parametrize("sharing", ["shared", "unique"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_its_adapter_alone(family, sharing, tmp_path):
    write(tmp_path, family, compact=True, sharing=sharing)
    model = FAMILIES[family][0]()
    bank = AdapterBank(model)
    assert bank.load(tmp_path) == {} and len(bank) == 5
    names, x = ["a3", "a0", None, "a3", "a4", "a1", "a2"], ids(7)
    with bank.use(names):
        mixed = logits(model, x)
    for row, name in enumerate(names):
        wanted = alone(tmp_path, family, name, lambda model, row=row: model(input_ids=x[row : row + 1]).logits)
        torch.testing.assert_close(mixed[row : row + 1], wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed[0], mixed[1], atol=1e-2)  # the adapters do differ
    torch.testing.assert_close(logits(model, x), logits(FAMILIES[family][0](), x))  # outside `use`: the bare backbone


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"num_beams": 3}, {"use_cache": False}])
def test_generation_with_a_cache_equals_one_at_a_time(settings, tmp_path):
    write(tmp_path, "llama", count=3)
    model = llama()
    bank = AdapterBank(model)
    bank.load(tmp_path)
    names, x = ["a2", "a0", "a1", "a0"], ids(4)
    config = GenerationConfig(max_new_tokens=8, pad_token_id=0, **settings)
    with bank.use(names, copies=settings.get("num_beams", 1)):
        found = model.generate(x, attention_mask=torch.ones_like(x), generation_config=config)
    for row, name in enumerate(names):
        prompt = x[row : row + 1]
        wanted = alone(
            tmp_path, "llama", name,
            lambda m, p=prompt: m.generate(p, attention_mask=torch.ones_like(p), generation_config=config),
        )  # fmt: skip
        assert torch.equal(found[row : row + 1], wanted)


def test_beyond_the_memory_limit_adapters_wait_in_a_file(tmp_path):
    write(tmp_path, count=9)
    model = roberta()
    probe = AdapterBank(roberta())
    probe.add("a0", tmp_path / "a0")
    bank = AdapterBank(model, memory_bytes=3 * probe.adapter_bytes + 5)
    assert bank.load(tmp_path) == {} and len(bank) == 9
    x = ids(3)
    for names in (["a0", "a1", "a2"], ["a8", "a0", "a5"], ["a7", "a7", "a6"], ["a2", "a4", "a0"]):
        with bank.use(names):
            mixed = logits(model, x)
        assert len(bank.resident) == 3 and set(names) <= set(bank.resident)
        for row, name in enumerate(names):
            wanted = alone(tmp_path, "roberta", name, lambda model, row=row: model(input_ids=x[row : row + 1]).logits)
            torch.testing.assert_close(mixed[row : row + 1], wanted, rtol=1e-4, atol=1e-4)
    before = bank.resident
    with pytest.raises(AdapterError, match=r"4 different adapters, but .* hold 3"), bank.use(["a0", "a1", "a2", "a3"]):
        pass
    assert bank.resident == before
    for name in ("a0", "a1", "a2", "a0", "a3"):
        with bank.use([name]):
            pass
    assert bank.resident == ["a2", "a0", "a3"]  # a1 has made room: the one used longest ago, not the one fetched longest ago
    with pytest.raises(AdapterError, match="do not hold one adapter"):
        AdapterBank(roberta(), memory_bytes=100).add("a0", tmp_path / "a0")


def test_a_bank_that_was_filled_in_inference_mode_can_be_changed_outside(tmp_path):
    write(tmp_path)
    probe = AdapterBank(roberta())
    probe.add("a0", tmp_path / "a0")
    bank = AdapterBank(roberta(), memory_bytes=2 * probe.adapter_bytes)
    with torch.inference_mode():
        assert not bank.load(tmp_path)
    for names in (["a0", "a1"], ["a2", "a3"], ["a0", "a1"]):  # from the file, in the place of others
        with bank.use(names), probe.use(["a0"]):
            both, one = logits(bank.model, ids(2)), logits(probe.model, ids(2)[:1])
        assert torch.allclose(both[:1], one, atol=1e-5) == (names[0] == "a0")
    bank.add("a0", tmp_path / "a0")


def test_bfloat16_halves_the_memory_and_stays_close(tmp_path):
    write(tmp_path, count=2)
    banks = {dtype: AdapterBank(roberta(), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    found = {}
    for dtype, bank in banks.items():
        bank.load(tmp_path)
        with bank.use(["a1", "a0"]):
            found[dtype] = logits(bank.model, ids(2))
    assert banks[torch.bfloat16].adapter_bytes * 2 == banks[torch.float32].adapter_bytes
    difference = (found[torch.bfloat16] - found[torch.float32]).norm() / found[torch.float32].norm()
    assert 0 < difference < 0.02


def test_replaced_and_evicted_adapters(tmp_path):
    write(tmp_path, count=3)
    model = roberta()
    bank = AdapterBank(model)
    bank.load(tmp_path)
    x = ids(1)
    with bank.use(["a1"]):
        one = logits(model, x)
    bank.evict("a1")
    with pytest.raises(AdapterError, match="a1"):
        bank.evict("a1")
    bank.add("a0", tmp_path / "a1")
    assert bank.names == ["a0", "a2"]
    with bank.use(["a0"]):
        torch.testing.assert_close(logits(model, x), one)
    bank.close()
    assert len(bank) == 0 and torch.equal(logits(model, x), logits(roberta(), x))
    attach(model, VeraConfig(rank=2, targets=("query",)))  # the model is its own again


def test_a_model_in_a_bank_is_not_written_as_if_it_were_its_backbone(tmp_path):
    write(tmp_path / "kept", count=1)
    model = roberta()
    bank = AdapterBank(model)
    bank.load(tmp_path / "kept")
    with pytest.raises(AdapterError, match=r"in an AdapterBank.* close the bank first"):
        model.save_pretrained(tmp_path / "written")
    assert not (tmp_path / "written").exists()
    bank.close()
    assert "save_pretrained" not in vars(model)  # it writes by itself again, also what a later change makes of it
    model.save_pretrained(tmp_path / "written")
    written = RobertaForSequenceClassification.from_pretrained(tmp_path / "written")
    torch.testing.assert_close(written.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_batches_that_do_not_fit_are_refused(tmp_path):
    write(tmp_path, count=2)
    model = roberta()
    bank = AdapterBank(model)
    with pytest.raises(AdapterError, match="empty"), bank.use(["a0"]):
        pass
    bank.load(tmp_path)
    with pytest.raises(AdapterError, match="called 'b7', 'b8'; it holds 2"), bank.use(["a0", "b7", "b8"]):
        pass
    for names in (["a0"], ["a0"] * 3, ["a0"] * 4):
        with pytest.raises(AdapterError, match=f"a batch of 2 rows, but {len(names)} adapter names"), bank.use(names):
            logits(model, ids(2))
    with pytest.raises(AdapterError, match="not the string"), bank.use("a0"):
        pass
    with bank.use(["a0", "a1"]):  # an error leaves the bank usable, and a batch keeps its adapters
        with pytest.raises(AdapterError, match="in use"):
            bank.evict("a0")
        logits(model, ids(2))


def test_an_adapter_of_another_kind_or_backbone_changes_nothing(tmp_path):
    write(tmp_path / "all", count=2)
    write(tmp_path / "rank", count=1, rank=8)
    write(tmp_path / "dtype", count=1, projection_dtype="bfloat16")
    write(tmp_path / "family", "llama", count=1)
    model = roberta()
    bank = AdapterBank(model)
    bank.load(tmp_path / "all")
    with pytest.raises(AdapterError, match="rank=8, the adapters of this bank have 6"):
        bank.add("x", tmp_path / "rank" / "a0")
    with pytest.raises(AdapterError, match="projection_dtype='bfloat16', the adapters of this bank have"):
        bank.add("x", tmp_path / "dtype" / "a0")
    with pytest.raises(AdapterError, match="does not fit this model"):
        bank.add("x", tmp_path / "family" / "a0")
    assert bank.names == ["a0", "a1"]
    other = AdapterBank(roberta(seed=1))
    with pytest.raises(AdapterError, match="another backbone"):
        other.add("a0", tmp_path / "all" / "a0")
    assert len(other) == 0
    with pytest.raises(AdapterError, match="without adapters"):
        AdapterBank(model)
    with pytest.raises(AdapterError, match="without adapters"):
        AdapterBank(attach(roberta(), VeraConfig(rank=2, targets=("query",))))


def test_one_corrupted_file_among_many_is_named_and_the_others_load(tmp_path):
    write(tmp_path, count=40)
    weights = tmp_path / "a17" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    shutil.rmtree(tmp_path / "a3")
    shutil.copytree(tmp_path / "a17", tmp_path / "a0-first")  # the first file of all is broken, too
    bank = AdapterBank(roberta())
    failed = bank.load(tmp_path)
    assert failed.keys() == {"a0-first", "a17"} and re.search(r"a17.*truncated", failed["a17"])
    assert len(bank) == 38 and "a17" not in bank
    with pytest.raises(AdapterError, match="holds no folder"):
        bank.load(tmp_path / "nowhere")


class Products(TorchDispatchMode):
    """Shapes of the matrices that something is multiplied with."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.shapes.append(tuple(args[1].shape))
        return function(*args, **(kwargs or {}))


def test_the_same_input_is_multiplied_with_A_once(tmp_path):
    write(tmp_path, "llama", count=2)
    model = llama()
    bank = AdapterBank(model)
    bank.load(tmp_path)
    with bank.use(["a0", "a1"]), Products() as products:
        logits(model, ids(2))
    per_block = [(32, 6)] * 3 + [(80, 6)]  # q k v; o; gate up; down
    assert [shape for shape in products.shapes if shape[1] == 6] == per_block * 2
    assert len([shape for shape in products.shapes if shape[0] == 6]) == 7 * 2


def test_merged_single_adapter_stays_available_beside_a_bank(tmp_path):
    """A bank does not change what load_adapter gives on another copy of the backbone."""
    write(tmp_path, count=1)
    model = load_adapter(roberta(), tmp_path / "a0")
    bank = AdapterBank(roberta())
    bank.load(tmp_path)
    with bank.use(["a0"]):
        torch.testing.assert_close(logits(bank.model, ids(1)), logits(model, ids(1)), rtol=1e-4, atol=1e-4)
    set_adapter(model, None)


# What a bank does around heads, threads, layers of other kinds and its file, on a model of three small layers.


class Net(nn.Module):
    """q and v read the same x; `call` says how the head is called."""

    def __init__(self, head=None, call=lambda head, h: head(h), linear=nn.Linear):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v = linear(8, 8), linear(8, 8)
        self.head = head() if head else nn.Linear(8, 3)
        self.call = call

    def forward(self, x):
        return self.call(self.head, self.q(x) + self.v(x))


ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
NAMES = ["a", "b", None, "a"]


def adapters(folder, make, names="ab", **settings):
    """Adapters of a net in folder/<name>, and what each gives for ROWS alone."""
    found = {None: make().eval()(ROWS)}
    for seed, name in enumerate(names, start=1):
        model = attach(make(), VeraConfig(**{"rank": 4, "targets": ("q", "v"), "modules_to_save": ("head",), **settings}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
        model.train()(ROWS * seed)
        save_adapter(model, folder / name)
        found[name] = model.eval()(ROWS)
    return found


def banked(folder, make, **settings):
    bank = AdapterBank(make(), **settings)
    assert bank.load(folder) == {}
    return bank


def mixed(bank, names=NAMES, x=ROWS):
    with bank.use(names):
        return bank.model(x)


def assert_rows(got, found, names=NAMES):
    for row, name in enumerate(names):
        torch.testing.assert_close(got[row], found[name][row], rtol=1e-5, atol=1e-5)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 4)

    def forward(self, h, scale=None, both=False):
        y = self.out(h) * (1 if scale is None else scale)
        return (y, h) if both else y


class Turned(Scaled):
    def forward(self, h, matrix):
        return self.out(h) @ matrix


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    label: str = "x"


class Answers(Scaled):
    def forward(self, h):
        return Answer(self.out(h))


class Outputs(Scaled):
    def forward(self, hidden):
        return {"first": BaseModelOutput(last_hidden_state=self.out(hidden["h"]), hidden_states=(hidden["h"],)), "other": None}


class Norm(nn.Sequential):
    def __init__(self):
        super().__init__(nn.BatchNorm1d(8), nn.Linear(8, 3))


class Counts(nn.Linear):
    """A head that counts its calls in a buffer."""

    def __init__(self):
        super().__init__(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h):
        self.calls += 1
        return super().forward(h) + self.calls


PER_ROW, PER_LABEL = torch.arange(1.0, 5.0)[:, None], torch.arange(1.0, 5.0)  # four rows, and four labels
CALLS = {
    "keyword": (Scaled, lambda head, h: head(h=h)),
    "a value a row": (Scaled, lambda head, h: head(h, PER_ROW)),
    "a value a label, of which there are as many as rows": (Scaled, lambda head, h: head(h, scale=PER_LABEL)),
    "a matrix with as many rows as the batch": (Turned, lambda head, h: head(h, torch.arange(16.0).view(4, 4))),
    "tuple": (Scaled, lambda head, h: sum(part.sum(-1, keepdim=True) for part in head(h, both=True))),
    "dataclass": (Answers, lambda head, h: head(h).logits),
    "nested": (Outputs, lambda head, h: head({"h": h})["first"].last_hidden_state),
    "GRU": (lambda: nn.GRU(8, 5, batch_first=True), lambda head, h: head(h.unsqueeze(1))[0]),
    "GRU's state, whose rows come second": (
        lambda: nn.GRU(8, 5, batch_first=True), lambda head, h: head(h.unsqueeze(1))[1].transpose(0, 1),
    ),
    "batch norm": (Norm, lambda head, h: head(h)),
    "embedding": (lambda: nn.Embedding(9, 5), lambda head, h: head(h.argmax(-1, keepdim=True))),
}  # fmt: skip


@pytest.mark.parametrize("how", CALLS)
def test_a_head_may_be_called_and_may_answer_in_any_way_that_shows_its_rows(how, tmp_path):
    def make():
        return Net(*CALLS[how])

    found = adapters(tmp_path, make)
    bank = banked(tmp_path, make)
    assert_rows(mixed(bank), found)
    for names in (["b"] * 4, [None] * 4, ["b", "a", "b", "a"]):
        assert_rows(mixed(bank, names), found, names)
    torch.testing.assert_close(bank.model(ROWS), found[None])


class Writes(Scaled):
    def forward(self, h):
        return self.out(h.mul_(2))


class Odd(Scaled):
    def forward(self, h):
        return SimpleNamespace(logits=self.out(h))


class Mean(Scaled):
    def forward(self, h):
        return self.out(h).mean()


class Gram(Scaled):
    def forward(self, h):
        return self.out(h) @ self.out(h).T


class Ignores(Scaled):
    def forward(self, h, ignored):
        return self.out(h)


UNREADABLE = {
    "writes to its input": (Writes, lambda head, h: head(h.clone()), "head writes to its arguments"),
    "a result that hides tensors": (Odd, lambda head, h: head(h).logits, "head returns a SimpleNamespace"),
    "an argument that hides tensors": (Scaled, lambda head, h: head(h, both=object()), "head takes a object"),
    "one number for the batch": (Mean, lambda head, h: head(h), r"shape \[\] does not have a row"),
    "rows against rows": (Gram, lambda head, h: head(h), "does not have a row"),
    "two tensors, one unused": (Ignores, lambda head, h: head(h, PER_ROW), "which are the batch's does not show"),
    "no tensor": (Scaled, lambda head, h: head(None) if h is None else head(both=True, h=3), "called without a tensor"),
    "its weight read": (Scaled, lambda head, h: h @ head.out.weight.T, r"head\.out is read by itself"),
    "its parts called": (Norm, lambda head, h: head[1](h), r"head\[1\] is read by itself"),
    "its parts in a row": (Norm, lambda head, h: [part(h) for part in head][1], "head's modules is read by itself"),
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_head_whose_rows_do_not_show_is_refused_by_name(how, tmp_path):
    head, call, message = UNREADABLE[how]
    for name in "ab":
        model = attach(Net(head), VeraConfig(rank=4, targets=("q", "v"), modules_to_save=("head",)))
        save_adapter(model, tmp_path / name)
    bank = banked(tmp_path, lambda: Net(head, call))
    with pytest.raises(AdapterError, match=message), bank.use(NAMES):
        bank.model(ROWS)
    assert len(list(bank.model.head.parameters())) and bank.model.head.training is False  # outside a batch it is all there


def test_buffers_of_a_head_belong_to_its_adapter_and_are_not_written_to(tmp_path):
    found = adapters(tmp_path, lambda: Net(Counts))
    bank = banked(tmp_path, lambda: Net(Counts))
    for _ in range(2):  # each call counts from what was saved
        got = mixed(bank)
        for row, name in enumerate(["a", "b"]):
            torch.testing.assert_close(got[row], found[name][row])


REFUSED_HEADS = {
    "a list of modules": (
        lambda: nn.ModuleList([nn.Linear(8, 3)]), lambda head, h: head[0](h), "head in modules_to_save is a ModuleList",
    ),
    "a weight kept twice": (None, lambda head, h: head(h), "keeps a parameter in kept"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED_HEADS)
def test_a_head_that_cannot_be_switched_is_refused_when_it_is_added(how, tmp_path):
    head, call, message = REFUSED_HEADS[how]

    def make():
        model = Net(head, call)
        if head is None:
            model.head.kept = [model.head.weight]
        return model

    adapters(tmp_path, make, "a")
    bank = AdapterBank(make())
    with pytest.raises(AdapterError, match=message):
        bank.add("a", tmp_path / "a")
    assert len(bank) == 0 and type(bank.model.q) is nn.Linear and bank.model.training


def test_heads_in_half_precision_and_under_autocast(tmp_path):
    found = adapters(tmp_path, Net)
    bank = banked(tmp_path, Net)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixed(bank)
    half = banked(tmp_path, lambda: Net().bfloat16())
    for result in (got, mixed(half, x=ROWS.bfloat16())):
        assert result.dtype == torch.bfloat16
        for row, name in enumerate(NAMES):
            assert (result[row].float() - found[name][row]).norm() < 0.03 * found[name].norm()


def test_threads_and_tasks_have_their_own_batches(tmp_path):
    found = adapters(tmp_path, Net)
    bank = banked(tmp_path, Net)
    together, got = threading.Barrier(3, timeout=120), {}

    def serve(key, names):
        for _ in range(5):
            if names is None:
                together.wait()
                got[key] = bank.model(ROWS).detach()
                together.wait()
                continue
            with bank.use(names):
                together.wait()
                got[key] = bank.model(ROWS)
                together.wait()

    wanted = {"one": ["a"] * 4, "two": ["b", None, "a", "b"], "bare": None}
    threads = [threading.Thread(target=serve, args=item) for item in wanted.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, names in wanted.items():
        assert_rows(got[key], found, names or [None] * 4)

    async def task(names):
        with bank.use(names):
            await asyncio.sleep(0)
            first = bank.model(ROWS)
            await asyncio.sleep(0)
            return first, await asyncio.to_thread(lambda: torch.no_grad()(bank.model)(ROWS))

    async def tasks():
        return await asyncio.gather(task(["a"] * 4), task(["b"] * 4))

    answers = asyncio.run(tasks())
    assert torch.is_grad_enabled()  # though the first batch ended while the second one was in use
    for results, name in zip(answers, "ab", strict=True):
        for result in results:
            assert_rows(result, found, [name] * 4)


def in_thread(function):
    raised = []

    def call():
        try:
            function()
        except AdapterError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.parametrize("limit", [None, 2])
def test_a_batch_keeps_its_adapters_while_another_thread_replaces_and_evicts_them(limit, tmp_path):
    found = adapters(tmp_path, Net, "abc")
    probe = banked(tmp_path, Net)
    bank = AdapterBank(Net(), memory_bytes=limit and limit * probe.adapter_bytes)
    for name in "abc":
        bank.add(name, tmp_path / name)
    with bank.use(["a", "a", None, "a"]):
        assert in_thread(lambda: bank.add("a", tmp_path / "b")) is None
        assert in_thread(lambda: bank.evict("c")) is None
        for _ in range(3):  # takes every free place in turn
            assert in_thread(lambda: bank.add("c", tmp_path / "c")) is None
        assert_rows(bank.model(ROWS), found, ["a", "a", None, "a"])
        assert "in use by a batch of another thread" in in_thread(bank.close)
    assert_rows(mixed(bank, ["a"] * 4), found, ["b"] * 4)
    assert_rows(mixed(bank, ["c", "b"] * 2), found, ["c", "b"] * 2)
    if limit:
        with bank.use(["a", "b"] * 2):
            assert "batches use all of them" in in_thread(lambda: bank.add("d", tmp_path / "a"))
        assert bank.names == ["a", "b", "c"]
        assert len(bank._blocks[0]) == 2 and sum(map(len, bank._blocks)) == 2
    bank.add("d", tmp_path / "a")
    assert_rows(mixed(bank, ["d"] * 4), found, ["a"] * 4)


def test_an_error_inside_leaves_the_bank_as_it_was_and_uses_do_not_nest(tmp_path):
    found = adapters(tmp_path, Net)
    bank, other = banked(tmp_path, Net), banked(tmp_path, Net)
    with pytest.raises(ZeroDivisionError), bank.use(NAMES):
        raise ZeroDivisionError
    with bank.use(NAMES):
        with pytest.raises(AdapterError, match="in use"), bank.use(["a"] * 4):
            pass
        with other.use(["b"] * 4):  # another model
            assert_rows(other.model(ROWS), found, ["b"] * 4)
            assert_rows(bank.model(ROWS), found)
        for change in (bank.close, lambda: bank.add("a", tmp_path / "b"), lambda: bank.evict("a")):
            with pytest.raises(AdapterError, match="in use"):
                change()
        assert_rows(bank.model(ROWS), found)
    assert_rows(bank.model(ROWS), found, [None] * 4)
    assert_rows(mixed(bank), found)


class InPlace(Net):
    def forward(self, x):
        x = x.clone()
        q = self.q(x)
        x += 1
        return self.head(q + self.v(x))


@pytest.mark.parametrize("sharing", ["shared", "unique"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_product_is_shared_by_the_same_values_and_the_same_A_alone(inference, sharing, tmp_path):
    for make in (Net, InPlace):
        found = adapters(tmp_path / make.__name__, make, sharing=sharing)
        bank, static = banked(tmp_path / make.__name__, make), torch.empty_like(ROWS)
        with bank.use(NAMES), torch.inference_mode() if inference else nullcontext():
            for x in (ROWS * 2, ROWS):  # a static input buffer
                got = bank.model(static.copy_(x))
            assert_rows(got, found)
            assert_rows(checkpoint(bank.model, static, use_reentrant=False), found)


def test_training_mode_and_gradients_are_refused(tmp_path):
    adapters(tmp_path, Net)
    model = Net().train()
    model.v.eval()
    bank = AdapterBank(model)
    bank.load(tmp_path)
    assert not any(module.training for module in model.modules())  # from the first adapter on
    with bank.use(NAMES), torch.enable_grad(), pytest.raises(AdapterError, match="no gradients"):
        model(ROWS)
    for part in (model, model.head):
        part.train()
        with bank.use(NAMES), pytest.raises(AdapterError, match="training mode"):
            model(ROWS)
        model.eval()
    bank.close()
    assert model.training and model.head.training and not model.v.training


@pytest.mark.parametrize("count", [3, 30])
def test_the_file_does_not_grow_with_refreshes_and_goes_with_the_bank(count, tmp_path):
    found = adapters(tmp_path, Net, "abcd")
    size = banked(tmp_path, Net).adapter_bytes
    bank = AdapterBank(Net(), memory_bytes=2 * size)
    bank.load(tmp_path)
    for index in range(count):
        bank.add("abcd"[index % 4], tmp_path / "abcd"[index % 4])
        mixed(bank, ["a", "b", "a", "b"] if index % 2 else ["c", "d", "c", "d"])
    file = bank._file
    assert file.seek(0, 2) <= 4 * size
    for names in (["a", "c"] * 2, ["d", "b"] * 2):
        assert_rows(mixed(bank, names), found, names)
    for name in "abc":
        bank.evict(name)
    for name in "abc":
        bank.add(name, tmp_path / name)
    assert file.seek(0, 2) <= 4 * size
    bank.close()
    assert file.closed


def test_a_full_disk_is_reported_and_changes_nothing(tmp_path, monkeypatch):
    found = adapters(tmp_path, Net)
    bank = AdapterBank(Net(), memory_bytes=banked(tmp_path, Net).adapter_bytes)
    bank.add("a", tmp_path / "a")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(AdapterError, match=r"adapter 'a' cannot wait in a file.*No space left"):
        bank.add("b", tmp_path / "b")
    assert bank.names == ["a"]
    assert_rows(mixed(bank, ["a"] * 4), found, ["a"] * 4)


def test_folders_as_peft_lays_them_out(tmp_path):
    peft = pytest.importorskip("peft")
    config = {"r": 4, "target_modules": ["q", "v"], "modules_to_save": ["head"]}
    theirs = peft.get_peft_model(Net(), peft.VeraConfig(**config))
    theirs.add_adapter("two", peft.VeraConfig(**config))
    found = {None: Net()(ROWS)}
    for seed, name in enumerate(("default", "two")):
        theirs.set_adapter(name)
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.4)
        found[name] = theirs.eval()(ROWS)
    theirs.save_pretrained(tmp_path)
    bank = AdapterBank(Net())
    assert bank.load(tmp_path) == {} and bank.names == ["default", "two"]
    names = ["default", "two", None, "default"]
    assert_rows(mixed(bank, names), found, names)
    shutil.copytree(tmp_path / "two", tmp_path / "default")
    with pytest.raises(AdapterError, match="hold an adapter called default"):
        AdapterBank(Net()).load(tmp_path)
    (tmp_path / "default" / "adapter_config.json").unlink()
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_model.safetensors").unlink()
    failed = AdapterBank(Net()).load(tmp_path)
    assert failed.keys() == {"default"} and "adapter_config.json does not exist" in failed["default"]


def test_a_bank_and_attached_adapters_exclude_each_other(tmp_path):
    found = adapters(tmp_path, Net)
    bank = banked(tmp_path, Net)
    for part in (bank.model, nn.Sequential(bank.model)):
        with pytest.raises(AdapterError, match="is in an AdapterBank"):
            attach(part, VeraConfig(rank=4, targets=("q",)))
    with pytest.raises(AdapterError, match="is in an AdapterBank"):
        load_adapter(bank.model, tmp_path / "a")
    with pytest.raises(AdapterError, match="cannot be copied"):
        copy.deepcopy(bank.model)
    assert_rows(mixed(bank), found)
    early, late = AdapterBank(model := Net()), AdapterBank(model)
    early.add("a", tmp_path / "a")
    with pytest.raises(AdapterError, match="without adapters"):
        late.add("a", tmp_path / "a")
    assert_rows(mixed(early, ["a"] * 4), found, ["a"] * 4)
    bank.close()
    assert_rows(load_adapter(bank.model, tmp_path / "a")(ROWS), found, ["a"] * 4)
    waiting = AdapterBank(model := Net())
    load_adapter(model, tmp_path / "a")
    with pytest.raises(AdapterError, match="without adapters"):
        waiting.add("b", tmp_path / "b")


class Flat(Net):
    def forward(self, x):
        return torch.stack([super(Flat, self).forward(row) for row in x])


class Encoder(Net):
    """Reads each row once and gives two answers for it."""

    def forward(self, x):
        return self.head(self.v(self.q(x).repeat_interleave(2, 0)))


def test_names_must_fit_the_rows(tmp_path):
    adapters(tmp_path / "flat", Flat)
    bank = banked(tmp_path / "flat", Flat)
    with pytest.raises(AdapterError, match="q is called with one row alone"):
        mixed(bank, ["a"] * 8)
    for names, message in (([3], "must be a string, or None"), ([["a"]], "must be a string, or None")):
        with pytest.raises(AdapterError, match=message), bank.use(names):
            pass
    with pytest.raises(AdapterError, match="copies must be"), bank.use(["a"], copies=0):
        pass
    found = adapters(tmp_path / "twice", Encoder)
    bank = banked(tmp_path / "twice", Encoder)
    with bank.use(NAMES, copies=2):  # an encoder reads one row a name, what follows one a copy
        got = bank.model(ROWS)
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(got[2 * row : 2 * row + 2], found[name][2 * row : 2 * row + 2])
    with pytest.raises(AdapterError, match="a batch of 3 rows, but 8 adapter names"), bank.use(NAMES, copies=2):
        bank.model(ROWS[:3])


class Plus(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(d_in, d_out):
    layer = nn.Linear(d_in, d_out)
    layer.register_forward_hook(lambda module, _, out: kept.append(out))
    return layer


kept = []
KINDS = {
    "transposed": lambda d_in, d_out: Conv1D(d_out, d_in),
    "subclass": Plus,
    "hook that keeps its output": hooked,
    "weight_norm": lambda *s: nn.utils.parametrizations.weight_norm(nn.Linear(*s)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_not_plain_keep_their_own_call(kind, tmp_path):
    model = attach(Net(linear=KINDS[kind]), VeraConfig(rank=4, targets=("q", "v")))
    bare = Net(linear=KINDS[kind])
    with torch.no_grad():
        outputs = [bare.q(ROWS), bare.v(ROWS)]
        wanted = []
        for layer, h in zip((model.q, model.v), outputs, strict=True):
            A, B, b, d = layer.matrices("default")
            b.normal_()
            wanted.append(h + (ROWS @ A.T * d) @ B.T * b)
        wanted = bare.head(sum(wanted))
    save_adapter(model, tmp_path / "a")
    bank = banked(tmp_path, lambda: Net(linear=KINDS[kind]))
    kept.clear()
    torch.testing.assert_close(mixed(bank, ["a"] * 4), wanted)
    for output, h in zip(kept, outputs, strict=False):  # what a hook keeps is the layer's own, and nobody writes to it
        torch.testing.assert_close(output, h)


def test_heads_that_share_a_weight_in_the_backbone_and_an_encoder_with_beams(tmp_path):
    """Generation whose embeddings and output layer are both an adapter's own, and one whose encoder runs before the beams."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    tied = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=True)).eval()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    t5 = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    x, names = torch.randint(5, 39, (3, 6)), ["a", None, "b"]
    settings = {"max_new_tokens": 5, "num_beams": 3, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None}
    config = GenerationConfig(**settings)

    def generated(model, rows):
        return model.generate(rows, attention_mask=torch.ones_like(rows), generation_config=config)

    for backbone, targets, head in ((tied, ("q_proj",), ("lm_head", "embed_tokens")), (t5, ("q", "v", "wo"), ())):
        folder, alone = tmp_path / type(backbone).__name__, {None: backbone}
        for seed, name in enumerate("ab"):
            model = attach(copy.deepcopy(backbone), VeraConfig(rank=4, targets=targets, modules_to_save=head))
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            save_adapter(model, folder / name)
            alone[name] = model
        bank = banked(folder, lambda backbone=backbone: copy.deepcopy(backbone))
        with bank.use(names, copies=3):
            found = generated(bank.model, x)
        for row, name in enumerate(names):
            assert torch.equal(found[row : row + 1], generated(alone[name], x[row : row + 1]))


def test_a_compiled_model_sees_the_batch_of_each_call(tmp_path):
    found = adapters(tmp_path, Net)
    bank = banked(tmp_path, Net)
    compiled = torch.compile(bank.model, backend="eager")
    for names in (NAMES, ["b", "b", None, "a"], [None] * 4, ["a"] * 4):
        with bank.use(names):
            assert_rows(compiled(ROWS), found, names)
    assert_rows(compiled(ROWS), found, [None] * 4)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q = self.other = nn.Linear(8, 8)

    def forward(self, x):
        return torch.stack([self.q(x), self.other(input=x)], 1)


def test_a_layer_under_two_names_is_adapted_where_it_is_named_in_full(tmp_path):
    found = adapters(tmp_path, Twice, targets=("other",), modules_to_save=())
    bank = banked(tmp_path, Twice)
    got = mixed(bank)
    assert_rows(got, found)
    torch.testing.assert_close(got[:, 0], found[None][:, 0])
    assert_rows(bank.model(ROWS), found, [None] * 4)
    bank.close()
    assert type(bank.model.q) is nn.Linear and bank.model.q is bank.model.other


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_layer_of_torch_calls_the_bank_and_is_refused_with_rows_second(batch_first, tmp_path):
    def make():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
        return nn.TransformerEncoder(layer, 1, enable_nested_tensor=batch_first).eval()

    x = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    model = attach(make(), VeraConfig(rank=4, targets=("linear1", "linear2")))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "a")
    bank = AdapterBank(make())
    if not batch_first:
        assert "needs batch_first=True" in bank.load(tmp_path)["a"]
        return
    bank.load(tmp_path)
    got = mixed(bank, ["a", None, "a", None], x)
    torch.testing.assert_close(got[1::2], make()(x)[1::2])
    assert not torch.allclose(got[::2], make()(x)[::2], atol=1e-2)
    torch.testing.assert_close(got[::2], model(x)[::2])
    padding = torch.arange(4) >= torch.tensor([[4], [2], [1], [3]])  # torch's encoder makes a nested tensor of the rows
    with bank.use(["a", None, "a", None]):
        got = bank.model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        torch.testing.assert_close(got[::2], model(x, src_key_padding_mask=padding)[::2])
        torch.testing.assert_close(got[1::2], make()(x, src_key_padding_mask=padding)[1::2], rtol=1e-4, atol=1e-5)


ROWS_SECOND = {
    "XLNet": lambda: XLNetModel(XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8)),
    "Longformer": lambda: LongformerModel(
        LongformerConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, attention_window=4,
        )
    ),
    "LED": lambda: LEDModel(
        LEDConfig(
            vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=8, decoder_ffn_dim=8, attention_window=4,
        )
    ),
    "FSMT": lambda: FSMTModel(
        FSMTConfig(
            src_vocab_size=20, tgt_vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ROWS_SECOND)
def test_a_model_with_rows_in_the_second_dimension_is_refused(family):
    model, rows, length, firsts = ROWS_SECOND[family]().eval(), 3, 8, set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: firsts.add(len(inputs[0])))
    with torch.no_grad():
        model(torch.full((rows, length), 7))
    assert length in firsts  # so that rows and tokens would be taken for each other where both are three
    with pytest.raises(AdapterError, match=f"^{family.lower()} .* second dimension"):
        AdapterBank(model)


def test_a_model_in_a_wrapper_of_torch(tmp_path):
    found = adapters(tmp_path, Net)
    compiled = torch.compile(Net(), backend="eager")
    compiled(ROWS)
    bank = AdapterBank(compiled)
    assert bank.load(tmp_path) == {}
    assert_rows(mixed(bank), found)
    bank.close()
    assert_rows(compiled(ROWS), found, [None] * 4)


@pytest.mark.parametrize("how", ["export", "trace"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_trace_would_keep_the_batch_and_is_refused(how, inside, tmp_path):
    bank = AdapterBank(nn.Sequential(nn.Linear(8, 8)).eval())
    save_adapter(attach(copy.deepcopy(bank.model), VeraConfig(rank=2, targets=("0",))), tmp_path / "a")
    bank.add("a", tmp_path / "a")
    trace = partial(torch.export.export, strict=False) if how == "export" else torch.jit.trace
    refused = pytest.raises(AdapterError, match="a trace of a model in an AdapterBank would keep the batch")
    with torch.no_grad(), bank.use(["a", None]) if inside else nullcontext(), refused:
        trace(bank.model, (torch.ones(2, 8),))


def test_experts_of_a_mixture_read_no_rows_and_are_refused(tmp_path):
    """As many tokens as there are rows may come to one: they would be taken for the rows."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2, "num_experts": 2}
    settings = SwitchTransformersConfig(**sizes, vocab_size=30, num_sparse_encoder_layers=1, num_sparse_decoder_layers=0)
    model = SwitchTransformersModel(settings).eval()
    save_adapter(attach(copy.deepcopy(model), VeraConfig(rank=2, targets=("wi",))), tmp_path / "a")
    with pytest.raises(AdapterError, match=r"expert_0\.wi lies in encoder.*\.experts, where experts read the tokens"):
        AdapterBank(copy.deepcopy(model)).add("a", tmp_path / "a")
    save_adapter(attach(copy.deepcopy(model), VeraConfig(rank=2, targets=("q", "router.classifier"))), tmp_path / "b")
    AdapterBank(model).add("b", tmp_path / "b")
    for names, refused in {"experts.0.up": True, "shared_experts.up": False, "mlp.up": False}.items():
        part = nn.Linear(8, 8)
        for name in reversed(names.split(".")):
            part = nn.ModuleDict({name: part})
        folder = tmp_path / names
        save_adapter(attach(copy.deepcopy(part), VeraConfig(rank=2, targets=("up",))), folder)
        with pytest.raises(AdapterError, match="lies in experts") if refused else nullcontext():
            AdapterBank(part.eval()).add("a", folder)


def test_a_layer_that_reads_images_beside_texts_is_refused_in_a_bank(tmp_path):
    """A row of the batch may have two images, and the next one none."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    settings = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**sizes, vocab_size=30), image_token_id=29, vision_feature_layer=-1
    )
    model = LlavaForConditionalGeneration(settings).eval()
    save_adapter(attach(copy.deepcopy(model), VeraConfig(rank=2, targets=("q_proj",))), tmp_path / "a")
    with pytest.raises(AdapterError, match=r"vision_tower.*q_proj lies in CLIPVision\w+, which reads pixel_values"):
        AdapterBank(copy.deepcopy(model)).add("a", tmp_path / "a")
    save_adapter(attach(copy.deepcopy(model), VeraConfig(rank=2, targets=("lm_head",))), tmp_path / "b")
    AdapterBank(model).add("b", tmp_path / "b")
