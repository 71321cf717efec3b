"""Mixed batches equal one adapter at a time, whatever fits the memory, and bad input changes nothing."""

import re
import shutil

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification

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
    with pytest.raises(AdapterError, match="do not hold one adapter"):
        AdapterBank(roberta(), memory_bytes=100).add("a0", tmp_path / "a0")


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
    bank.add("a0", tmp_path / "a1")
    assert bank.names == ["a0", "a2"]
    with bank.use(["a0"]):
        torch.testing.assert_close(logits(model, x), one)
    bank.close()
    assert len(bank) == 0 and torch.equal(logits(model, x), logits(roberta(), x))
    attach(model, VeraConfig(rank=2, targets=("query",)))  # the model is its own again


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
    write(tmp_path / "family", "llama", count=1)
    model = roberta()
    bank = AdapterBank(model)
    bank.load(tmp_path / "all")
    with pytest.raises(AdapterError, match="rank=8, the adapters of this bank have 6"):
        bank.add("x", tmp_path / "rank" / "a0")
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
        bank.load(tmp_path / "a0")


def test_the_same_input_is_multiplied_with_A_once(tmp_path, monkeypatch):
    write(tmp_path, "llama", count=2)
    model = llama()
    bank = AdapterBank(model)
    bank.load(tmp_path)
    import vera.nn.bank as module

    products = []

    class Counting:
        @staticmethod
        def linear(x, weight):
            products.append(tuple(weight.shape))
            return torch.nn.functional.linear(x, weight)

    monkeypatch.setattr(module, "F", Counting)
    with bank.use(["a0", "a1"]):
        logits(model, ids(2))
    per_block = {"A": [(6, 32)] * 3 + [(6, 80)], "B": 7}  # q k v; o; gate up; down
    assert [shape for shape in products if shape[0] == 6] == per_block["A"] * 2
    assert len([shape for shape in products if shape[0] != 6]) == per_block["B"] * 2


def test_merged_single_adapter_stays_available_beside_a_bank(tmp_path):
    """A bank does not change what load_adapter gives on another copy of the backbone."""
    write(tmp_path, count=1)
    model = load_adapter(roberta(), tmp_path / "a0")
    bank = AdapterBank(roberta())
    bank.load(tmp_path)
    with bank.use(["a0"]):
        torch.testing.assert_close(logits(bank.model, ids(1)), logits(model, ids(1)), rtol=1e-4, atol=1e-4)
    set_adapter(model, None)
