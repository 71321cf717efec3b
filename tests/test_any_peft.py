"""Every method of PEFT that a yaml names, on tiny models: train, merge, unmerge, save, load here, load by plain PEFT."""

import copy
import json
import re
from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from transformers import ElectraConfig, ElectraForSequenceClassification

from tests.conftest import ROOT, trained
from vera.checks.verify import run_of
from vera.config import build, choice, choices
from vera.config.components import own_target, own_values
from vera.errors import ConfigError
from vera.methods.base import count
from vera.methods.peft_types import TYPES, config_of
from vera.run import execute
from vera.seeds import seed_everything

NAMES = [name for name in choices("method") if str(own_target("method", name)).endswith(".AnyPeft")]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VALUES = {"${seed}": 3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tiny backbone by modality, as it is loaded, its model's settings, and a batch."""
    cache = tmp_path_factory.mktemp("cache")

    def load(name):
        settings = {**choice("model", name), "size": "tiny", "path": None}
        model = build(settings, "model")
        seed_everything(1, "head")
        backbone = model.load(3, cache)
        for key, parameter in backbone.model.named_parameters():
            if key.endswith("bias"):  # zero in a new model, so that what scales it would not move
                torch.nn.init.normal_(parameter, std=0.1)
        return model, backbone

    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 200, (6, 9), generator=draws)
    batches = {
        "digits_vit": {"pixel_values": torch.randn(6, 1, 8, 8, generator=draws)},
        "roberta_base": {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
    }
    return {name: (*load(name), batch) for name, batch in batches.items()}


def settings_of(name, **changes):
    settings = {**own_values("method", name), **changes}
    filled = {key: VALUES.get(str(value), value) for key, value in settings["settings"].items()}
    return {**settings, "settings": filled}


@pytest.fixture
def attached(plain):
    def make(name, seed=1, **changes):
        method = build(settings_of(name, **changes), "method")
        model_config, backbone, batch = plain["roberta_base" if TYPES[method.type].prompts else "digits_vit"]
        backbone = copy.deepcopy(backbone)
        seed_everything(seed, "dropout")
        return method, model_config, backbone, batch

    return make


@pytest.fixture(scope="module")
def conv1d(tmp_path_factory):
    """A tiny GPT-2 with a name for a square Conv1D of it."""
    settings = choice("model", "gpt2_medium")
    settings = {**settings, "size": "tiny", "path": None, "targets": {**settings["targets"], "out": "attn.c_proj"}}
    model = build(settings, "model")
    backbone = model.load(0, tmp_path_factory.mktemp("gpt2"))
    return model, backbone, {"input_ids": torch.arange(5, 17).view(2, 6)}


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def all_tensors(model):
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("name", NAMES)
def test_a_peft_method_trains_merges_saves_and_is_read_back(name, attached, tmp_path):
    method, model_config, backbone, batch = attached(name)
    bare = copy.deepcopy(backbone)
    method.attach(backbone, model_config)
    groups = method.parameter_groups(backbone)
    declared = dict(groups["adapter"] + groups["head"])
    assert declared.keys() == {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert {id(p) for p in method._peft.parameters() if p.requires_grad} == {id(p) for p in declared.values()}
    assert all("classifier" in name for name, _ in groups["head"]) and count(groups, backbone.model)["head"] > 0

    before = all_tensors(backbone.model)
    optimizer = torch.optim.AdamW(declared.values(), lr=0.03)
    backbone.model.train()
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone.model(**batch).logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        optimizer.step()
    after = all_tensors(backbone.model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == declared.keys(), "not what was declared has moved"

    wanted = logits(backbone.model, batch)
    assert not torch.allclose(wanted, logits(bare.model, batch), atol=1e-3)
    alone = logits(backbone.model, {key: rows[:1] for key, rows in batch.items()})
    torch.testing.assert_close(alone, wanted[:1], rtol=1e-4, atol=1e-5)  # LILY's would be a mixture over the batch
    kept = all_tensors(backbone.model)
    for _ in range(2):
        with method.merged(backbone):
            torch.testing.assert_close(logits(backbone.model, batch), wanted, rtol=1e-4, atol=1e-5)
            merged = [layer for layer in method.layers(backbone).values() if layer.merged_adapters]
            assert bool(merged) == (method.merge == "exact")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in all_tensors(backbone.model).items())
    assert torch.equal(logits(backbone.model, batch), wanted)

    method.save(backbone, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    again, _, other, _ = attached(name, seed=2)
    again.load(other, model_config, tmp_path)
    torch.testing.assert_close(logits(other.model, batch), wanted, rtol=1e-5, atol=1e-6)
    again.save(other, tmp_path / "again")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    theirs = PeftModel.from_pretrained(bare.model, tmp_path)
    torch.testing.assert_close(logits(theirs, batch), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if not TYPES[own_values("method", name)["type"]].prompts])
def test_on_a_conv1d_a_method_starts_where_it_does_on_a_linear_layer_or_is_refused(name, attached, conv1d):
    """Such a layer holds W0 transposed, and a square one fits both ways."""
    method, model_config, backbone, batch = attached(name)
    bare = logits(backbone.model, batch)
    method.attach(backbone, model_config)
    starts_there = torch.allclose(logits(backbone.model, batch), bare, atol=1e-5)
    model_config, backbone, batch = conv1d
    backbone, bare = copy.deepcopy(backbone), logits(backbone.model, batch)
    method = build(settings_of(name, targets=["out"] if method.targets else []), "method")
    try:
        method.attach(backbone, model_config)
    except ConfigError as error:
        assert "Conv1D" in str(error) or "does not fit this model" in str(error)
        return
    assert torch.allclose(logits(backbone.model, batch), bare, atol=1e-5) == starts_there


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning"])
def test_prompts_are_as_wide_as_the_embeddings_where_the_layers_are_wider(name, attached, tmp_path):
    """ELECTRA's and ALBERT's are factorised; PEFT takes the layers' width."""

    def electra():
        torch.manual_seed(0)
        config = ElectraConfig(vocab_size=500, embedding_size=16, hidden_size=32, num_hidden_layers=1, intermediate_size=32)
        return ElectraForSequenceClassification(config).eval()

    method, model_config, backbone, batch = attached(name)
    backbone.model = electra()
    method.attach(backbone, model_config)
    logits(trained(backbone.model), batch).sum()
    method.save(backbone, tmp_path)
    theirs = PeftModel.from_pretrained(electra(), tmp_path)
    torch.testing.assert_close(logits(theirs, batch), logits(backbone.model, batch))


def test_the_docs_name_every_type_that_peft_has():
    words = set(re.findall(r"[A-Z0-9_]+", (ROOT / "docs" / "peft_methods.md").read_text()))
    assert {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} <= words


def test_thirty_and_more_types_have_a_yaml():
    assert len({own_values("method", name)["type"] for name in NAMES}) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_what_no_yaml_sets_is_what_this_release_of_peft_would_take(name):
    """So that the closed settings are PEFT's own method, whatever a later release makes its default."""
    method = build(settings_of(name), "method")
    made = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.type]]
    ours = config_of(method.type, method.settings, "method.settings", target_modules=["a"]).to_dict()
    theirs = made(**method.settings, **({"target_modules": ["a"]} if "target_modules" in ours else {})).to_dict()
    assert {key for key in ours if ours[key] != theirs[key]} <= {"progressbar"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "randlora",
            {"megatron_core": "os"},
            r"settings.megatron_core cannot be set by a yaml; allowed for RANDLORA: r, ",
        ),
        ("dora", {"loftq_config": None}, "method.settings.loftq_config cannot be set"),
        ("dora", {"layers_to_transform": [0, 1]}, "method.settings.layers_to_transform cannot be set by a yaml; allowed for"),
        ("dora", {"rank_pattern": {"query": 4}}, "method.settings.rank_pattern cannot be set by a yaml; allowed for"),
        ("dora", {"init_lora_weights": "eva"}, "init_lora_weights must be one of true, gaussian, olora, .*; got 'eva'"),
        ("pissa", {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights must be one of .*, pissa; got 'pissa_niter_4'"),
        ("dora", {"r": "8"}, "method.settings.r must be a whole number; got '8'"),
        ("dora", {"r": True}, "method.settings.r must be a whole number; got True"),
        ("dora", {"use_dora": 1}, "method.settings.use_dora must be true or false; got 1"),
        ("shira", {"random_seed": None}, "method.settings.random_seed must be a whole number or a number; got None"),
        ("road", {"variant": "/etc/passwd"}, "variant must be one of road_1, road_2, road_4"),
        ("boft", {"boft_n_butterfly_factor": 2}, "boft_n_butterfly_factor must be one of 1; got 2"),
        ("dora", {"r": 0}, "method.settings: PEFT .* refuses them for LORA|does not fit"),
    ],
)
def test_a_setting_outside_the_allowlist_is_one_line(name, changes, message, attached):
    settings = {**settings_of(name)["settings"], **changes}
    with pytest.raises(ConfigError, match=message) as caught:
        method, model_config, backbone, _ = attached(name, settings=settings)
        method.attach(backbone, model_config)
    assert "\n" not in str(caught.value)


def test_a_yaml_gives_every_setting(attached):
    with pytest.raises(ConfigError, match=r"lacks random_seed: .* settings: \{r: 4, random_seed: null\}"):
        attached("shira", settings={"r": 4})


@pytest.mark.parametrize("name", ["p_tuning", "prompt_tuning"])
def test_what_cannot_merge_refuses_to(name, attached):
    with pytest.raises(ConfigError, match=r"cannot be merged; method\.merge=never"):
        attached(name, merge="exact")


@pytest.mark.parametrize(("name", "settings"), [("beft", {}), ("dora", {"use_dora": False, "lora_bias": True})])
def test_a_bias_for_a_layer_without_one_is_evaluated_as_it_was_trained(name, settings, attached):
    settings = {**own_values("method", name)["settings"], **settings}
    method, model_config, backbone, batch = attached(name, settings=settings)
    for module in backbone.model.vit.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias = None
    method.attach(backbone, model_config)
    wanted = logits(trained(backbone.model), batch)
    with method.merged(backbone):
        assert torch.equal(logits(backbone.model, batch), wanted)


def test_a_type_is_peft_s_word_never_a_class(attached):
    with pytest.raises(ConfigError, match=r"method.type: input should be 'ADAMSS'"):
        attached("dora", type="peft.LoraConfig")


def test_prompts_need_a_text_classifier_and_no_targets(attached, plain):
    method, *_ = attached("prompt_tuning")
    model_config, backbone, _ = plain["digits_vit"]
    with pytest.raises(ConfigError, match="PROMPT_TUNING needs a text classifier, digits_vit is none"):
        method.attach(copy.deepcopy(backbone), model_config)
    method, model_config, backbone, _ = attached("prompt_tuning", targets=["query"])
    with pytest.raises(ConfigError, match="adapts no matrix"):
        method.attach(backbone, model_config)


def test_a_release_of_peft_with_another_default_is_refused(monkeypatch):
    from peft import VeraConfig

    @dataclass
    class Later(VeraConfig):
        fourth_vector: bool = True
        quiet: bool = False

    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.VERA, Later)
    settings = settings_of("peft_vera")["settings"]
    with pytest.raises(ConfigError, match=r"gives VERA a setting that this project does not know, fourth_vector=True"):
        config_of("VERA", settings, "method.settings")


def test_a_settings_value_that_shapes_refuse_is_one_line(attached):
    settings = {**settings_of("oft")["settings"], "oft_block_size": 7}
    method, model_config, backbone, _ = attached("oft", settings=settings)
    with pytest.raises(ConfigError, match=r"method\.settings do not fit this model: .*Adjusted `oft_block_size`") as caught:
        method.attach(backbone, model_config)
    assert "\n" not in str(caught.value)


def test_a_method_whose_parameters_have_no_elements_trains_nothing(attached):
    settings = {**settings_of("oft")["settings"], "oft_block_size": 1}
    method, model_config, backbone, _ = attached("oft", settings=settings)
    method.attach(backbone, model_config)
    with pytest.raises(ConfigError, match="method oft trains nothing of this backbone; that is method=head"):
        method.parameter_groups(backbone)


def test_verify_builds_a_stranger_s_settings_from_the_allowlist_alone(compose, tmp_path):
    run = compose("method=dora", "train.max_steps=1")
    record = execute(run)
    config = copy.deepcopy(record.run.config)
    config["method"]["settings"]["megatron_core"] = "os"
    forged = record.model_copy(update={"run": record.run.model_copy(update={"config": config, "cell_id": ""})})
    with pytest.raises(ConfigError):
        run_of(forged, [f"cache_dir={run.cache_dir}"], tmp_path)
    config["method"]["settings"] = {**config["method"]["settings"]}
    with pytest.raises(ConfigError, match="megatron_core cannot be set"):
        build(config["method"], "method")
