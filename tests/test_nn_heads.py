"""modules_to_save: each adapter has copies of its own and the backbone keeps its own, whatever is active, saved or copied."""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from vera.errors import AdapterError
from vera.nn import (
    AdapterBank,
    VeraConfig,
    attach,
    disabled,
    heads,
    load_adapter,
    merge,
    save_adapter,
    set_adapter,
    unload,
    unmerge,
    vera_layers,
)

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1


class Net(nn.Module):
    """A body, and a head with buffers below a name of its own."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(8, 8)
        self.head = nn.ModuleDict({"norm": nn.BatchNorm1d(8), "out": nn.Linear(8, 3)})

    def forward(self, x):
        return self.head["out"](self.head["norm"](self.body(x)))


def config(heads=("head",), **settings):
    return VeraConfig(rank=4, targets=("body",), modules_to_save=heads, **settings)


def train(model, seed, steps=3):
    """Some steps of what is trainable, in training mode; the model is in evaluation mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.train()
    for _ in range(steps):
        model(torch.randn(16, 8, generator=generator) * seed + seed)
    return model.eval()


def out(model, x=X):
    with torch.no_grad():
        return model(x)


def two_adapters():
    """A model with trained adapters a and b, and what each gives."""
    model, found = Net(), {None: out(Net().eval())}
    for seed, name in enumerate("ab", start=1):
        found[name] = out(train(attach(model, config(), name), seed))
    return model, found


def test_each_adapter_has_its_own_head_with_its_buffers_and_the_backbone_keeps_its_own():
    model, found = two_adapters()
    assert not torch.allclose(found["a"], found["b"], atol=1e-2)
    for name in ("a", None, "b", "a", "b", None):
        set_adapter(model, name)
        assert torch.equal(out(model), found[name])
    attach(model, config(), "c")  # starts from the backbone's own head, not from the last active one
    assert torch.equal(model.head["norm"].running_mean, torch.zeros(8)) and torch.equal(out(model), found[None])
    attach(model, config(()), "d")  # an adapter without a head runs the backbone's own, frozen
    assert not any(parameter.requires_grad for parameter in model.head.parameters())
    assert torch.equal(out(model), found[None])


def test_names_and_parameters_of_the_model_are_those_of_one_ordinary_head():
    plain, model = Net(), attach(attach(Net(), config(), "a"), config(), "b")
    heads = {name: p.shape for name, p in plain.named_parameters() if name.startswith("head.")}
    assert {name: p.shape for name, p in model.named_parameters() if name.startswith("head.")} == heads
    assert [n for n, p in model.named_parameters() if p.requires_grad and "vectors" not in n] == list(heads)


def test_an_adapter_saved_while_another_is_active_brings_its_own_head(tmp_path):
    model, found = two_adapters()
    for name in ("a", "b"):
        save_adapter(model, tmp_path / name, name)
    for name in ("a", "b"):
        assert torch.equal(out(load_adapter(Net().eval(), tmp_path / name)), found[name])
    both = Net().eval()
    for name in ("a", "b"):
        load_adapter(both, tmp_path / name, name)
    for name in ("a", None, "b"):
        set_adapter(both, name)
        assert torch.equal(out(both), found[name])
    load_adapter(both, tmp_path / "b", "a")  # values into an adapter that is there: into its own copy
    assert torch.equal(out(both), found["b"])
    set_adapter(both, None)
    assert torch.equal(out(both), found[None])


def test_files_with_buffers_go_to_peft_and_come_from_it(tmp_path):
    import peft

    class Called(Net):  # PEFT takes no ModuleDict
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))

        def forward(self, x):
            return self.head(self.body(x))

    model = train(attach(Called(), config()), 3)
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(Called(), tmp_path / "ours").eval()
    torch.testing.assert_close(out(theirs), out(model))
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(out(load_adapter(Called().eval(), tmp_path / "theirs")), out(model))


def test_switching_in_the_middle_of_training_keeps_parameters_and_optimiser_states():
    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()

    def fresh():
        model = attach(Net().train(), config(), "a")
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

    straight, optimizer = fresh()
    steps(straight, optimizer, 4)
    model, optimizer = fresh()
    steps(model, optimizer, 2)
    attach(model, config(), "b")
    steps(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1), 3)
    set_adapter(model, "a")
    steps(model, optimizer, 2)
    assert torch.equal(out(model.eval()), out(straight.eval()))


def test_copies_pickles_and_threads_of_a_model_are_their_own():
    model, found = two_adapters()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        set_adapter(twin, "a")
        with torch.no_grad():
            twin.head["out"].weight.zero_()
        set_adapter(twin, None)
        assert torch.equal(out(twin), found[None])
    for name in ("a", None, "b"):
        set_adapter(model, name)
        assert torch.equal(out(model), found[name])


@pytest.mark.parametrize("merged", ["neither", "source", "target", "both"])
def test_a_state_dict_holds_every_head_and_loads_into_the_same_adapters(merged):
    model, found = two_adapters()
    other = attach(attach(Net(seed=5), config(), "a"), config(), "b").eval()
    if merged in ("source", "both"):
        merge(model)
    if merged in ("target", "both"):
        merge(other)
    other.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    torch.testing.assert_close(out(other), found["b"])
    unmerge(other)
    for name in ("a", None, "b"):
        set_adapter(other, name)
        assert torch.equal(out(other), found[name])
    set_adapter(other, "a")
    for strict in (True, False):
        with pytest.raises(AdapterError, match=r"taken with adapter 'b' active, here it is 'a': set_adapter first"):
            other.load_state_dict(model.state_dict(), strict=strict)
        assert torch.equal(out(other), found["a"])
    plain = Net()
    assert plain.state_dict().keys() & model.state_dict().keys() >= {"head.out.weight"}


def test_the_copies_follow_device_dtype_and_mode_of_the_model():
    model, _ = two_adapters()
    model.double().train()
    for name in ("a", None, "b"):
        set_adapter(model, name)
        assert {p.dtype for p in model.head.parameters()} == {torch.float64}
        frozen = [] if name else [model.head["norm"]]  # the backbone's own keeps its statistics
        assert [module for module in model.modules() if not module.training] == frozen
        assert model(X.double()).dtype == torch.float64
    with torch.device("meta"):
        bare = Net()
    attach(bare, config()).to_empty(device="cpu")
    with pytest.raises(AdapterError, match="no values"):
        set_adapter(bare, None)
    source = train(attach(Net(), config()), 1)
    bare.load_state_dict(source.state_dict())
    set_adapter(bare, None)
    set_adapter(source, None)
    assert torch.equal(out(bare.eval()), out(source))


@pytest.mark.parametrize("merged", [False, True])
def test_merging_leaves_the_active_head_where_it_is(merged, tmp_path):
    model, found = two_adapters()
    if merged:
        merge(model)
        with pytest.raises(AdapterError, match="unmerge"):
            set_adapter(model, None)
        torch.testing.assert_close(out(model), found["b"])
        unmerge(model)
    assert torch.equal(out(model), found["b"])


class Tree(nn.Module):
    """Heads at several depths, one of them under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(8, 8)
        self.inner = nn.ModuleDict({"head": nn.Linear(8, 8)})
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.again = self.inner["head"]

    def forward(self, x):
        return self.head(self.again(x) + self.inner["head"](self.body(x)))


def test_heads_at_several_depths_nested_and_under_two_names(tmp_path):
    model = attach(Tree(), config(("head",)), "wide")
    found = {}
    found["wide"] = out(train(model, 1))
    found["narrow"] = out(train(attach(model, config(("head.2", "again")), "narrow"), 2))
    found["both"] = out(train(attach(model, config(("head", "head.2")), "both"), 3))  # the outermost counts
    found[None] = out(Tree())
    for name in ("wide", "both", None, "narrow", "wide", "narrow", None, "both"):
        set_adapter(model, name)
        assert torch.equal(out(model), found[name])
        assert model.again is model.inner["head"]
        if name:
            save_adapter(model, tmp_path / name)
    for name in ("wide", "narrow", "both"):
        torch.testing.assert_close(out(load_adapter(Tree(), tmp_path / name)), found[name])


def test_forgotten_adapters_leave_the_backbones_head_and_released_ones_what_is_in_the_model():
    model, found = two_adapters()
    heads.drop(model, "b")  # the active one
    assert torch.equal(model.head["out"].weight, Net().head["out"].weight)
    assert not [key for key in model.state_dict() if "adapter.b" in key]
    set_adapter(model, "a")
    heads.release(model)
    assert torch.equal(out(model), found["a"]) and not [key for key in model.state_dict() if "vera_heads" in key]
    model.load_state_dict(model.state_dict())
    assert not hasattr(model, "vera_heads")


def test_a_head_that_is_tied_to_the_embeddings_trains_alone(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
    made = {
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=True)),
        "bert": BertForMaskedLM(BertConfig(**sizes)),  # its head holds one bias under two names
    }
    ids = torch.arange(5).view(1, 5)
    for family, (target, head) in {"llama": ("q_proj", "lm_head"), "bert": ("query", "cls")}.items():
        model, plain = made[family].eval(), copy.deepcopy(made[family].eval())
        before = plain(input_ids=ids).logits
        attach(model, VeraConfig(rank=4, targets=(target,), modules_to_save=(head,)))
        with torch.no_grad():
            for parameter in getattr(model, head).parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
        trained = model(input_ids=ids).logits
        save_adapter(model, tmp_path / family)
        again = load_adapter(copy.deepcopy(plain), tmp_path / family)
        torch.testing.assert_close(again(input_ids=ids).logits, trained)
        set_adapter(model, None)
        torch.testing.assert_close(model(input_ids=ids).logits, before)


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def no_copy(model):
    model.head["out"].weight.data = model.head["out"].weight.data  # still a leaf
    model.head["out"].kept = model.head["out"].weight * 2


REFUSED = {
    "unknown": (lambda model: None, ("classifier",), "'classifier', which this model does not have"),
    "parameter": (lambda model: None, ("out.weight",), "a parameter; name the module"),
    "adapted": (lambda model: attach(model, VeraConfig(rank=2, targets=("out",)), "x"), ("head",), "adapter adapts"),
    "state": (lambda model: model.head.update({"out": Stateful(8, 3)}), ("head",), "no tensor"),
    "whole numbers": (
        lambda model: model.head.update({"k": nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.int8), False)])}),
        ("head",), "int8 and cannot be trained",
    ),
    "cannot be copied": (no_copy, ("head",), "cannot be copied"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_a_head_is_refused_and_nothing_is_changed(how):
    prepare, names, message = REFUSED[how]
    model = Net().eval()
    prepare(model)
    before, layers = out(model), len(list(vera_layers(model)))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(AdapterError, match=message):
        attach(model, config(names), "new")
    assert torch.equal(out(model), before) and len(list(vera_layers(model))) == layers
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


def test_a_target_in_another_adapters_head_is_refused():
    model, found = two_adapters()
    with pytest.raises(AdapterError, match=r"head\.out belongs to modules_to_save of adapter 'b'"):
        attach(model, VeraConfig(rank=4, targets=("out",)), "c")
    assert torch.equal(out(model), found["b"]) and all(p.requires_grad for p in model.head.parameters())


def test_a_file_that_does_not_fit_the_head_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    def edited(folder, **changes):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path) | {f"base_model.model.{key}": value for key, value in changes.items()}
        save_file(tensors, path)
        return folder

    model, _ = two_adapters()
    for changes, message in (
        ({"head.norm.num_batches_tracked": torch.tensor(1.5)}, "num_batches_tracked holds float32, this model needs int64"),
        ({"head.out.bias": torch.zeros(3, dtype=torch.int64)}, "head.out.bias holds int64, this model needs float32"),
        ({"head.norm.running_var": torch.tensor([float("nan")] * 8)}, "running_var holds values that are not finite"),
        ({"head.norm.running_max": torch.zeros(8)}, "has head.norm.running_max"),
    ):
        save_adapter(model, tmp_path)
        bare = Net().eval()
        with pytest.raises(AdapterError, match=message):
            load_adapter(bare, edited(tmp_path, **changes))
        assert torch.equal(out(bare), out(Net().eval()))

    class Tied(Tree):
        def __init__(self):
            super().__init__()
            self.head[1].b = self.head[0].bias

    save_adapter(attach(Tied(), config()), tmp_path)
    with pytest.raises(AdapterError, match=r"head\.1\.b and head\.0\.bias differ, but they are one tensor"):
        load_adapter(Tied(), edited(tmp_path, **{"head.1.b": torch.ones(8)}))


class Seq2Seq(nn.Module):
    """As transformers' T5: an embedding that nobody calls, whose weight two others and the output layer have."""

    def __init__(self):
        super().__init__()
        self.shared, self.encoder, self.decoder = (nn.Embedding(9, 8) for _ in range(3))
        self.body, self.lm_head = nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.tie()

    def tie(self):
        self.encoder.weight = self.decoder.weight = self.lm_head.weight = self.shared.weight

    def forward(self, x):
        return self.lm_head(self.body(self.encoder(x) + self.decoder(x)))


def test_a_copy_that_others_of_its_kind_would_not_follow_is_refused():
    model = Seq2Seq()
    with pytest.raises(AdapterError, match="'shared', whose weight is also that of encoder"):
        attach(model, config(("shared",)))
    with pytest.raises(AdapterError, match="'encoder', whose weight is also that of decoder"):
        attach(model, config(("shared", "encoder")))
    assert not list(vera_layers(model)) and all(parameter.requires_grad for parameter in model.parameters())
    attach(model, config(("shared", "encoder", "decoder")))
    model(torch.arange(5)).sum().backward()
    assert model.encoder.weight.grad is not None and model.lm_head.weight.grad is None


def test_an_output_layer_that_is_tied_again_is_not_saved_as_the_adapters(tmp_path):
    model = attach(Seq2Seq(), config(("lm_head",)))
    save_adapter(model, tmp_path / "before")
    model.tie()
    with pytest.raises(AdapterError, match="weight of adapter 'default' in modules_to_save has become that of shared"):
        save_adapter(model, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_a_head_that_is_offloaded_is_refused(tmp_path):
    """A copy of it would compute with the backbone's own values, which accelerate brings at each call."""
    save_adapter(train(attach(Net(), config()), 1), tmp_path / "a")
    model = cpu_offload(Net().eval(), execution_device="cpu")
    with pytest.raises(AdapterError, match=r"'head' in modules_to_save is offloaded; keep it on a device"):
        load_adapter(model, tmp_path / "a")
    save_adapter(train(attach(Net(), config(("head.out",))), 1), tmp_path / "b")
    with pytest.raises(AdapterError, match=r"'head\.out' in modules_to_save is offloaded"):
        AdapterBank(model).add("b", tmp_path / "b")


class Normed(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_statistics_of_the_backbone_stay_its_own_in_training(tmp_path):
    """The adapter's file does not hold them: it would give other numbers on the backbone that it was made for."""
    bare = out(Normed().eval())
    model = attach(Normed(), VeraConfig(rank=4, targets=("0",)))
    found = out(train(model, 1))
    assert not torch.equal(found, bare)
    save_adapter(model, tmp_path)
    assert torch.equal(out(load_adapter(Normed(), tmp_path).eval()), found)
    assert torch.equal(out(copy.deepcopy(model).train()), found)
    with disabled(model):
        assert torch.equal(out(model), bare)
    unload(model.train())
    assert model[1].training and torch.equal(out(model.eval()), bare)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_head_trains_its_own_statistics_and_leaves_those_of_the_backbone(order):
    """Whatever was attached first, also where nobody calls train() in between."""
    model = Net().train()
    bare = {key: value.clone() for key, value in model.head.state_dict().items()}
    for name in order:
        attach(model, config() if name == "b" else VeraConfig(rank=4, targets=("body",)), name)

    def moves(name):
        set_adapter(model, name)
        before = model.head["norm"].running_mean.clone()
        model(torch.randn(16, 8) + 3)
        return not torch.equal(model.head["norm"].running_mean, before)

    assert [moves(name) for name in ("b", "a", None, "b", None)] == [True, False, False, True, False]
    model.train()
    assert not moves("a") and moves("b") and not moves(None)
    assert all(torch.equal(value, bare[key]) for key, value in model.head.state_dict().items())
