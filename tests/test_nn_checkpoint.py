"""Adapter files: round trips, PEFT both ways, and every way in which a file can fail to belong."""

import copy
import json
import warnings

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from vera.errors import AdapterError
from vera.nn import AdapterBank, VeraConfig, attach, load_adapter, merge, save_adapter, set_adapter, unmerge, vera_layers
from vera.nn.checkpoint import WEIGHTS_FILE, read_weights
from vera.nn.count import vera_parameters

warnings.filterwarnings("ignore")
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def roberta(seed=0, hidden=32):
    torch.manual_seed(seed)
    config = RobertaConfig(
        hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=60, num_labels=3
    )
    return RobertaForSequenceClassification(config).eval()


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80, vocab_size=60
    )
    return LlamaForCausalLM(config).eval()


CONFIG = {"rank": 16, "targets": ("query", "value"), "projection_seed": 7, "modules_to_save": ("classifier",)}
FAMILIES = {"roberta": (roberta, ("query", "value"), ("classifier",)), "llama": (llama, LLAMA, ())}
IDS = torch.randint(5, 59, (3, 11), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapted(family="roberta", rank=16, **settings):
    make, targets, head = FAMILIES[family]
    config = VeraConfig(rank=rank, targets=targets, projection_seed=7, modules_to_save=head, **settings)
    model = attach(make(), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("sharing", ["shared", "unique"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_into_a_bare_and_into_an_adapted_model(family, sharing, tmp_path):
    model = adapted(family, sharing=sharing)
    save_adapter(model, tmp_path)
    make, targets, head = FAMILIES[family]
    bare = load_adapter(make(), tmp_path).eval()
    assert torch.equal(logits(bare), logits(model))
    config = VeraConfig(rank=16, targets=targets, projection_seed=7, modules_to_save=head, sharing=sharing)
    fresh = load_adapter(attach(make(), config), tmp_path).eval()
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_what_we_write(family, tmp_path):
    from peft import PeftModel

    model = adapted(family)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(FAMILIES[family][0](), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("save_projection", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_what_peft_writes(family, save_projection, tmp_path):
    from peft import VeraConfig as PeftVera
    from peft import get_peft_model

    make, targets, head = FAMILIES[family]
    config = PeftVera(
        r=16,
        target_modules=list(targets),
        projection_prng_key=7,
        save_projection=save_projection,
        modules_to_save=[*head, "score"] if head else None,  # PEFT itself lists names that a model may not have
    )
    theirs = get_peft_model(make(), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(make(), tmp_path).eval()
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    merge(ours)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    unmerge(ours)


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pairs_that_peft_rounded_beside_a_half_precision_base(dtype, into, tmp_path):
    from peft import PeftModel, get_peft_model
    from peft import VeraConfig as PeftVera

    theirs = get_peft_model(llama().to(dtype), PeftVera(r=8, target_modules=["q_proj", "v_proj"], projection_prng_key=7))
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lambda" in name:
                value.add_(torch.randn_like(value) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = logits(PeftModel.from_pretrained(llama().to(into), tmp_path / "theirs").eval())
    ours = load_adapter(llama().to(into), tmp_path / "theirs").eval()
    slack = 1e-5 if into == torch.float32 else 0.02 * wanted.abs().max()
    assert (logits(ours) - wanted).abs().max() <= slack
    save_adapter(ours, tmp_path / "ours")
    assert torch.equal(logits(load_adapter(llama().to(into), tmp_path / "ours").eval()), logits(ours))
    again = logits(PeftModel.from_pretrained(llama().to(into), tmp_path / "ours").eval())
    assert (again - wanted).abs().max() <= slack


@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
        {"target_modules": "all-linear"},
        {"target_modules": r".*attention\.self\.(query|value)"},
        {"target_modules": "roberta.encoder.layer.1.output.dense"},
        {"target_modules": ["query", "value", "q_proj", "v_proj"]},
        {"target_modules": ["query"], "layers_to_transform": [1]},
        {"target_modules": ["query", "value"], "layers_to_transform": 0, "layers_pattern": "layer"},
    ],
    ids=lambda choice: " ".join(map(str, choice.values())),
)
def test_layers_that_peft_chose_in_any_way(choice, tmp_path):
    from peft import VeraConfig as PeftVera
    from peft import get_peft_model

    theirs = get_peft_model(roberta(), PeftVera(r=8, **choice)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(roberta(), tmp_path).eval()
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    assert len(list(vera_layers(ours))) == sum("vera_lambda_d" in name for name, _ in theirs.named_parameters())


def test_a_layer_in_a_head_that_is_named_as_a_target_is_refused_for_that_reason():
    config = VeraConfig(rank=2, targets=("query", "classifier.dense"), modules_to_save=("classifier",))
    with pytest.raises(AdapterError, match=r"classifier\.dense lies in modules_to_save"):
        attach(roberta(), config)


def test_file_holds_vectors_and_head_alone_and_no_projection(tmp_path):
    model = adapted(train="both")
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    vectors = sum(value.numel() for key, value in tensors.items() if "vera_lambda" in key)
    shapes = [(layer.out_features, layer.in_features) for _, layer in vera_layers(model)]
    assert vectors == vera_parameters(shapes, 16) == 4 * (32 + 16)
    assert {key.rpartition(".")[2] for key in tensors} == {"vera_lambda_b", "vera_lambda_d", "weight", "bias"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compact_file_gives_the_same_adapter_and_peft_refuses_it(family, tmp_path):
    from peft import PeftModel

    model = adapted(family)
    save_adapter(model, tmp_path, compact=True)
    make = FAMILIES[family][0]
    assert torch.equal(logits(load_adapter(make(), tmp_path).eval()), logits(model))
    with pytest.raises(Exception, match="VERA_VARIANT"):
        PeftModel.from_pretrained(make(), tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({"base_model.model.vera_lambda": torch.ones(7)}))
    with pytest.raises(AdapterError, match=r"vera_lambda has shape \[7\]"):
        load_adapter(make(), tmp_path)


def test_a_compact_file_goes_on_no_other_layers_than_its_own(tmp_path):
    """It names none, and in 4 bits no norm of W0 tells them apart."""
    save_adapter(adapted(), tmp_path, compact=True)
    other = attach(roberta(), VeraConfig(rank=16, targets=("query", "key"), projection_seed=7, modules_to_save=("classifier",)))
    with pytest.raises(AdapterError, match=r"is for other layers than the attached adapter, such as .*value"):
        load_adapter(other, tmp_path)


def test_bytes_of_a_file_at_roberta_base_and_rank_256(tmp_path):
    """The formula's 4 (sum of d_out + r) bytes; names and metadata are the rest."""
    from torch import nn

    model = nn.Module()
    model.roberta = nn.Module()
    model.roberta.encoder = nn.Module()
    model.roberta.encoder.layer = nn.ModuleList()
    for _ in range(12):
        layer = nn.Module()
        layer.attention = nn.Module()
        layer.attention.self = nn.ModuleDict({name: nn.Linear(768, 768) for name in ("query", "value")})
        model.roberta.encoder.layer.append(layer)
    attach(model, VeraConfig(rank=256, targets=("query", "value")))
    formula = 4 * vera_parameters([(768, 768)] * 24, 256)
    sizes = {}
    for compact in (True, False):
        save_adapter(model, tmp_path, compact=compact)
        sizes[compact] = (tmp_path / "adapter_model.safetensors").stat().st_size / formula
    assert 1 < sizes[True] <= 1.01 and sizes[False] <= 1.075


def test_half_precision_copy_of_the_backbone_is_accepted(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    half = load_adapter(roberta().to(torch.bfloat16), tmp_path).eval()
    assert (logits(half).float() - logits(model)).abs().max() < 0.05 * logits(model).abs().max()


def test_saving_a_merged_model_records_the_original_backbone(tmp_path):
    model = merge(adapted())
    save_adapter(model, tmp_path)
    load_adapter(roberta(), tmp_path)


def test_several_adapters_from_files(tmp_path):
    first, second = adapted(), adapted(rank=4)
    save_adapter(first, tmp_path / "first")
    save_adapter(second, tmp_path / "second")
    model = roberta()
    head = copy.deepcopy(model.classifier.state_dict())
    load_adapter(model, tmp_path / "first", name="first")
    load_adapter(model, tmp_path / "second", name="second")
    assert torch.equal(logits(model.eval()), logits(second))
    set_adapter(model, "first")
    model.classifier.load_state_dict(first.classifier.state_dict())
    assert torch.equal(logits(model), logits(first))
    assert head.keys() == model.classifier.state_dict().keys()


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_metadata(folder, **changes):
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata["vera"] = json.dumps({**json.loads(metadata["vera"]), **changes})
    save_file(tensors, path, metadata)


def edit_tensors(folder, function):
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    function(tensors)
    save_file(tensors, path, metadata)


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def first_vector(tensors):
    return next(key for key in sorted(tensors) if key.endswith("vera_lambda_d"))


BROKEN = {
    "truncated": (truncate, "truncated or not a safetensors file"),
    "pickle": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x80\x04K\x01."), "not a safetensors file"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "does not exist"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "does not exist"),
    "config is not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "not an adapter configuration"),
    "LoRA": (lambda f: edit_config(f, peft_type="LORA"), "'LORA', expected 'VERA'"),
    "no rank": (lambda f: edit_config(f, r=None), "rank"),
    "other rank": (lambda f: edit_config(f, r=8), r"shape \[16\], this model needs \[8\]"),
    "other seed": (lambda f: edit_config(f, projection_prng_key=8), "fingerprint"),
    "other fingerprint": (lambda f: edit_metadata(f, fingerprint="0" * 16), "fingerprint"),
    "other backbone": (lambda f: edit_metadata(f, norms=[1.0] * 4), "another backbone"),
    "other shapes": (lambda f: edit_metadata(f, shapes=[[9, 9]] * 4), "9x9, this model has 32x32"),
    "other targets": (lambda f: edit_config(f, target_modules=["q_proj"]), "q_proj"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(first_vector(t))), "lacks"),
    "foreign tensor": (lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.x": torch.ones(1)})), "has x"),
    "not finite": (lambda f: edit_tensors(f, lambda t: t[first_vector(t)].fill_(float("nan"))), "not finite"),
    "unknown init": (lambda f: edit_metadata(f, init="zeros"), "init must be one of"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_does_not_belong_is_refused_and_nothing_is_changed(how, tmp_path):
    save_adapter(adapted(), tmp_path)
    damage, message = BROKEN[how]
    damage(tmp_path)
    model = roberta()
    before = logits(model)
    with pytest.raises(AdapterError, match=message) as error:
        load_adapter(model, tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not list(vera_layers(model)) and torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_checkpoint_of_the_same_shape_is_refused(tmp_path):
    save_adapter(adapted(), tmp_path)
    with pytest.raises(AdapterError, match="another backbone"):
        load_adapter(roberta(seed=1), tmp_path)
    with pytest.raises(AdapterError, match=r"does not fit this model|shape"):
        load_adapter(roberta(hidden=64), tmp_path)


def test_variants_that_peft_cannot_express_are_refused_by_peft(tmp_path):
    from peft import PeftModel

    save_adapter(adapted(sharing="unique"), tmp_path)
    with pytest.raises(Exception, match="VERA_VARIANT"):
        PeftModel.from_pretrained(roberta(), tmp_path)


def test_nothing_to_save():
    with pytest.raises(AdapterError, match="not attached"):
        save_adapter(roberta(), "/nowhere")


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_of_another_pair_is_refused(strict, tmp_path):
    source = adapted()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    with pytest.raises(RuntimeError, match=r"query.*another pair A, B: seed 7, here 8"):
        attach(roberta(), VeraConfig(**{**CONFIG, "projection_seed": 8})).load_state_dict(state, strict=strict)
    with pytest.raises(RuntimeError, match="another pair A, B: seed 7, here"):
        attach(roberta(), VeraConfig(**CONFIG, sharing="unique")).load_state_dict(state, strict=strict)
    without = {name: state.pop(name) for name in list(state) if ".vectors." in name}
    attach(roberta(), VeraConfig(**{**CONFIG, "projection_seed": 8})).load_state_dict(state, strict=False)  # W0 and heads alone
    state.update(without)
    for fitting in (state, dict(state)):  # a plain dict, as safetensors gives, does not say
        same = attach(roberta(1), VeraConfig(**CONFIG)).eval()
        same.load_state_dict(fitting, strict=strict)
        assert torch.equal(logits(same), logits(source))


def test_what_trains_beside_the_adapter_is_warned_of_when_it_is_saved(tmp_path):
    model = adapted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path)
    for parameter in model.roberta.embeddings.LayerNorm.parameters():
        parameter.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"leaves out roberta\.embeddings\.LayerNorm\.weight and 1 more, which train beside"):
        save_adapter(model, tmp_path)


def test_a_norm_whose_statistics_train_is_warned_of_when_it_is_saved(tmp_path):
    def net():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))

    model = attach(net(), VeraConfig(rank=2, targets=("0",), modules_to_save=("2",)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match="leaves out 1, which train beside"):
        save_adapter(nn.SyncBatchNorm.convert_sync_batchnorm(model).train(), tmp_path)
    before = attach(nn.SyncBatchNorm.convert_sync_batchnorm(net()), VeraConfig(rank=2, targets=("0",))).train()
    assert not before[1].training


def distilbert():
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=40, max_position_embeddings=40)
    return DistilBertForSequenceClassification(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=40)).eval()


def trained_by_peft(make, targets, folder, **settings):
    """What a model of PEFT answers that has moved in all it trains, and was saved."""
    model = get_peft_model(make(), peft.VeraConfig(r=8, target_modules=targets, projection_prng_key=7, **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return logits(model)


def test_peft_saves_whatever_ends_in_the_letters_of_a_head_s_name(tmp_path):
    """DistilBERT's pre_classifier, by "classifier": PEFT's file has it, and PEFT asks for it."""
    expected = trained_by_peft(distilbert, ["q_lin", "v_lin"], tmp_path / "peft", task_type="SEQ_CLS")
    torch.testing.assert_close(logits(load_adapter(distilbert(), tmp_path / "peft").eval()), expected)
    bank = AdapterBank(distilbert())
    bank.add("a", tmp_path / "peft")
    with bank.use(["a"] * len(IDS)):
        torch.testing.assert_close(logits(bank.model), expected)
    settings = {"rank": 8, "targets": ("q_lin", "v_lin")}
    model = attach(distilbert(), VeraConfig(**settings, modules_to_save=("classifier",)))
    with pytest.warns(UserWarning, match="PEFT will ask this file for pre_classifier as well"):
        save_adapter(model, tmp_path / "one")
    both = attach(distilbert(), VeraConfig(**settings, modules_to_save=("classifier", "pre_classifier"))).eval()
    model.upper_classifier, model.declassifier = nn.Dropout(), nn.Linear(2, 2).requires_grad_(False)
    with pytest.warns(UserWarning, match="for pre_classifier, declassifier as well"):  # a Dropout has no state
        save_adapter(model, tmp_path / "two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path / "compact", compact=True)
        save_adapter(both, tmp_path / "both")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(distilbert(), tmp_path / "both").eval()), logits(both))


def test_a_head_that_peft_finds_by_a_part_of_its_name_alone(tmp_path):
    expected = trained_by_peft(distilbert, ["q_lin", "v_lin"], tmp_path, modules_to_save=["assifier"])
    torch.testing.assert_close(logits(load_adapter(distilbert(), tmp_path).eval()), expected)


def test_peft_writes_the_frozen_output_layer_beside_its_adapter(tmp_path):
    expected = trained_by_peft(gpt2, ["c_attn", "lm_head"], tmp_path)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / WEIGHTS_FILE)
    torch.testing.assert_close(logits(load_adapter(gpt2(), tmp_path).eval()), expected)
    other = gpt2()
    with torch.no_grad():
        other.lm_head.weight[3, 3] += 1e-3
    with pytest.raises(AdapterError, match=r"its lm_head\.base_layer\.weight is not that of this model's lm_head"):
        load_adapter(other, tmp_path)
    trained_by_peft(lambda: gpt2().bfloat16(), ["c_attn", "lm_head"], tmp_path / "bf16")
    for model in (gpt2(), gpt2().bfloat16()):  # W0 is rounded on one side
        load_adapter(model, tmp_path / "bf16")
    again = load_adapter(gpt2(), tmp_path)
    torch.testing.assert_close(logits(load_adapter(again, tmp_path).eval()), expected)  # W0 is inside the adapted layer now


@pytest.mark.parametrize("how", ["attach", "load"])
def test_what_is_attached_in_inference_mode_can_be_trained(how, tmp_path):
    save_adapter(adapted(), tmp_path)
    model = roberta()
    with torch.inference_mode():
        attach(model, VeraConfig(**CONFIG)) if how == "attach" else load_adapter(model, tmp_path)
    model(input_ids=IDS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("sharing", ["shared", "unique"])
def test_a_pair_that_no_call_has_drawn_yet_is_named_in_the_file(sharing, tmp_path):
    """A backbone from the meta device, by load_state_dict(assign=True)."""
    config = VeraConfig(rank=2, targets=("0", "1"), sharing=sharing)
    source = attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), config)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    attach(model, config).load_state_dict(source.state_dict(), assign=True)
    for part in (model[:0], model[:1], model):  # how much of it has been called
        part(torch.ones(1, 4))
        save_adapter(model, tmp_path / "late")
        save_adapter(source, tmp_path / "early")
        late, early = (read_weights(tmp_path / folder / WEIGHTS_FILE)[1] for folder in ("late", "early"))
        assert late == early
        load_adapter(model, tmp_path / "late")


class Outer(nn.Module):
    def __init__(self, compiled=()):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict({"q": nn.Linear(4, 4), "head": nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))})
        if "part" in compiled:
            self.inner["head"][0] = torch.compile(self.inner["head"][0], backend="eager")
        if "head" in compiled:
            self.inner["head"] = torch.compile(self.inner["head"], backend="eager")

    def forward(self, x):
        return self.inner["head"](self.inner["q"](x))


@pytest.mark.parametrize("compiled", [(), ("head",), ("part",), ("part", "head")], ids=str)
def test_a_head_is_named_alike_whatever_of_it_is_compiled(compiled, tmp_path):
    model = attach(Outer(compiled), VeraConfig(rank=2, targets=("q",), modules_to_save=("inner.head",)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.rand_like(parameter))
    x = torch.randn(3, 4)
    save_adapter(model, tmp_path / "a")
    for other in ((), ("head",), ("part",), ("part", "head")):
        torch.testing.assert_close(load_adapter(Outer(other), tmp_path / "a")(x), model(x))
        bank = AdapterBank(Outer(other))
        if other:
            with pytest.raises(AdapterError, match=r"inner\.head in modules_to_save is compiled"):
                bank.add("a", tmp_path / "a")
            continue
        bank.add("a", tmp_path / "a")
        with bank.use(["a", None, "a"]):
            torch.testing.assert_close(bank.model(x)[::2], model(x)[::2])


def test_a_head_below_what_is_compiled_is_named_as_in_the_plain_model(tmp_path):
    def net(compiled):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        return nn.Sequential(torch.compile(body, backend="eager") if compiled else body)

    x = torch.randn(3, 4)
    for compiled in (True, False):
        model = attach(net(compiled), VeraConfig(rank=2, targets=("0.0",), modules_to_save=("0.1",)))
        with torch.no_grad():
            dict(model.named_modules(remove_duplicate=False))["0._orig_mod.1" if compiled else "0.1"].weight.add_(1)
        save_adapter(model, tmp_path)
        for other in (True, False):
            torch.testing.assert_close(load_adapter(net(other), tmp_path)(x), model(x))
    with pytest.raises(AdapterError, match="belongs to modules_to_save"):
        attach(attach(net(True), VeraConfig(rank=2, targets=("0.0",), modules_to_save=("0.1",))), VeraConfig(2, ("0.1",)), "b")


def test_a_class_that_torch_makes_of_an_adapted_layer_is_no_variant(tmp_path):
    """fully_shard gives each module a class of its own."""
    model = adapted()
    for _, layer in vera_layers(model):
        layer.__class__ = type("FSDPVeraLinear", (type(layer),), {})
    save_adapter(model, tmp_path)
    torch.testing.assert_close(logits(load_adapter(roberta(), tmp_path).eval()), logits(model))
