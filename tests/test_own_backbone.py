"""Any backbone of transformers by its checkpoint alone: tiny random ones of many families, saved as folders."""

import argparse
import json
import shutil
from contextlib import nullcontext

import peft
import pytest
import torch
import transformers as t
from huggingface_hub import constants
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing

from vera.commands import model as command
from vera.commands import serve_mixed
from vera.config import build, choice
from vera.errors import ConfigError, DataError, ModelError
from vera.models import base, found
from vera.models.causal import causal
from vera.models.tiny import END, byte_tokenizer, bytes_of, causal_tokenizer, image_processor
from vera.run import execute, prepare
from vera.seeds import seed_everything
from vera.tasks.text import columns_for, encode
from vera.train.loop import Loop

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"vocab_size": 261, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
FAMILIES = {
    "distilbert": t.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **TOKENS),
    "modernbert": t.ModernBertConfig(**SIZES, **TOKENS, cls_token_id=0, sep_token_id=2, global_attn_every_n_layers=1),
    "deberta-v2": t.DebertaV2Config(**SIZES, **TOKENS, pooler_hidden_size=16),
    "qwen3": t.Qwen3Config(**SIZES, **TOKENS, num_key_value_heads=1, head_dim=8),
    "gpt_neox": t.GPTNeoXConfig(**SIZES, **TOKENS),
    "bert": t.BertConfig(**SIZES, **TOKENS),
    "deberta": t.DebertaConfig(**SIZES, **TOKENS, pooler_hidden_size=16),
}
FOUND = {  # query, value, head
    "distilbert": ("q_lin", "v_lin", ["pre_classifier", "classifier"]),
    "modernbert": ("Wqkv", "Wqkv", ["head", "classifier"]),
    "deberta-v2": ("query_proj", "value_proj", ["pooler", "classifier"]),
    "qwen3": ("q_proj", "v_proj", ["score"]),
    "gpt_neox": ("query_key_value", "query_key_value", ["score"]),
    "bert": ("query", "value", ["classifier"]),
    "deberta": ("self.in_proj", "self.in_proj", ["pooler", "classifier"]),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each family without its head, made once."""
    made = {}

    def folder(family):
        if family not in made:
            path = made[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            t.AutoModelForSequenceClassification.from_config(FAMILIES[family]).base_model.save_pretrained(path)
            tokenizer = byte_tokenizer()
            if family in ("qwen3", "gpt_neox"):
                tokenizer.pad_token = None
            tokenizer.save_pretrained(path)
        return made[family]

    return folder


def loaded(path, cache, kind="auto_text", **changes):
    model = build({**choice("model", kind), "path": str(path), "name": "mine", **changes}, "model")
    seed_everything(0, "head")
    return model, model.load(3, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_attention_are_found(family, folders, cache):
    query, value, head = FOUND[family]
    model, backbone = loaded(folders(family), cache)
    assert list(backbone.head) == head == backbone.notes["head"]
    assert model.resolve_targets(backbone, ["query", "value"]) == tuple(dict.fromkeys((query, value)))
    assert ("fused" in backbone.notes) == (query == value) and backbone.notes["targets"] == list(dict.fromkeys((query, value)))
    assert backbone.preprocess.pad_token_id is not None and backbone.model.config.pad_token_id is not None
    names = model.resolve_targets(backbone, ["all_linear"])
    modules = dict(backbone.model.named_modules())
    linear = {name for name, m in modules.items() if isinstance(m, torch.nn.Linear) and name.split(".")[0] not in head}
    assert set(names) == linear and len(names) > 4


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *[(family, "vera") for family in FAMILIES],
        *[("distilbert", method) for method in ("lora", "adapter_h", "adapter_p", "ia3")],
        *[("modernbert", "adapter_h"), ("qwen3", "adapter_l"), ("qwen3", "dora"), ("gpt_neox", "adapter_h")],
    ],
)
def test_a_record_without_any_yaml(family, method, folders, compose):
    record = execute(
        compose(
            *("model=auto_text", "model.name=mine", f"model.path={folders(family)}", "task=rte", f"method={method}"),
            *("train.lr=1e-3", "model.size=full", "method.train_head=true"),
        )
    )
    assert record.provenance.model_source == "local folder" and record.parameters.adapter > 0
    if method in ("vera", "lora", "dora"):
        assert record.provenance.notes["targets"]


def test_a_pretrained_layer_of_the_head_stays(folders, cache, tmp_path):
    config = FAMILIES["modernbert"]
    torch.manual_seed(0)
    masked = t.AutoModelForMaskedLM.from_config(config)
    masked.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    _, backbone = loaded(tmp_path, cache)
    assert backbone.head == ("classifier",) and torch.equal(backbone.model.head.dense.weight, masked.head.dense.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rehearsal_is_the_checkpoint_s_own_architecture_small(family, folders, cache):
    _, backbone = loaded(folders(family), cache, size="tiny")
    assert backbone.model.config.model_type == family and backbone.source == "tiny random"
    assert sum(p.numel() for p in backbone.model.parameters()) < 30_000


def test_the_rehearsal_has_the_class_that_the_checkpoint_names(cache, tmp_path):
    """Of two that transformers has for DeiT."""
    config = t.DeiTConfig(**SIZES, image_size=16, patch_size=8)
    t.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    image_processor(config).save_pretrained(tmp_path)
    heads = [loaded(tmp_path, cache, "auto_image", size=size)[1].head for size in ("full", "tiny")]
    assert heads == [("cls_classifier", "distillation_classifier")] * 2


def test_the_rehearsal_has_the_tokenizer_that_the_checkpoint_has_now(folders, cache, tmp_path):
    """A checkpoint of the same sizes with another tokenizer, or one that was edited, gets a stand-in of its own."""
    shutil.copytree(folders("bert"), tmp_path / "bert")
    first = loaded(tmp_path / "bert", cache, size="tiny")[1].preprocess
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path / "bert")
    now = loaded(tmp_path / "bert", cache, size="tiny")[1].preprocess
    assert first("A")["input_ids"] != first("a")["input_ids"] and now("A") == now("a") == first("a")
    assert (first.model_max_length, now.model_max_length) == (512, 64)
    model, _ = loaded(tmp_path / "bert", cache, size="tiny")
    assert model.source(cache) == model.source(cache)


def test_the_rehearsal_has_the_image_processor_that_the_checkpoint_has_now(cache, tmp_path):
    config = t.ViTConfig(**SIZES, image_size=32, patch_size=16)
    t.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    for mean in (0.5, 0.25):
        processor = image_processor(config)
        processor.image_mean = [mean] * 3
        processor.save_pretrained(tmp_path)
        assert loaded(tmp_path, cache, "auto_image", size="tiny")[1].preprocess.processor.image_mean == (mean,) * 3


def test_a_pooler_that_a_masked_language_model_was_saved_without_is_a_part_of_the_head(cache, tmp_path):
    """Drawn with the seed and trained with the classifier, as transformers has it; a part of it that is missing is damage."""
    torch.manual_seed(0)
    t.BertForMaskedLM(FAMILIES["bert"]).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    _, backbone = loaded(tmp_path, cache)
    assert backbone.head == ("bert.pooler", "classifier") and backbone.notes["head"] == ["bert.pooler", "classifier"]
    _, again = loaded(tmp_path, cache)
    seed_everything(1, "head")
    other = build({**choice("model", "auto_text"), "path": str(tmp_path), "name": "mine"}, "model").load(3, cache)
    weights = [each.model.bert.pooler.dense.weight for each in (backbone, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert backbone.fingerprint == other.fingerprint
    model = t.BertModel(FAMILIES["bert"])
    del model.pooler.dense.bias
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks bert\.pooler\.dense\.bias; it is not a complete checkpoint"):
        loaded(tmp_path, cache)


@pytest.mark.parametrize(
    "config",
    [
        t.FNetConfig(hidden_size=16, num_hidden_layers=1, intermediate_size=16, **TOKENS),
        t.ConvBertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **TOKENS),
        t.NystromformerConfig(**SIZES, **TOKENS),
        t.YosoConfig(**SIZES, **TOKENS),
        t.MobileBertConfig(**SIZES, **TOKENS, intra_bottleneck_size=16, embedding_size=16, true_hidden_size=16),
        t.FunnelConfig(**TOKENS, block_sizes=[1, 1, 1], d_model=16, n_head=2, d_head=8, d_inner=32),
        t.CanineConfig(**SIZES, pad_token_id=1, num_hash_buckets=64, local_transformer_stride=16),
    ],
    ids=lambda config: config.model_type,
)
def test_families_whose_scores_depend_on_the_padding_are_refused(config, cache, tmp_path):
    t.AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"a row's scores in \w+ForSequenceClassification depend on the padding"):
        loaded(tmp_path, cache)
    with pytest.raises(DataError, match="depend on the padding"):
        serve_mixed._load(argparse.Namespace(model=str(tmp_path), generate=0, labels=3, device="cpu"))


def test_attention_that_follows_from_the_longest_row_is_refused(cache, tmp_path):
    t.AutoModel.from_config(t.BigBirdConfig(**SIZES, **TOKENS)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"ends for good at a batch of short rows; model.config.attention_type=original_full"):
        loaded(tmp_path, cache)
    assert loaded(tmp_path, cache, config={"attention_type": "original_full"})[1].head == ("classifier",)


@pytest.mark.parametrize(
    "config",
    [
        FAMILIES["qwen3"],
        t.GPT2Config(n_embd=16, n_layer=2, n_head=2, **TOKENS),
        t.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, **TOKENS),
    ],
    ids=lambda config: config.model_type,
)
def test_a_row_s_scores_do_not_depend_on_its_batch(config, cache, tmp_path):
    """A checkpoint whose config.json has another padding id than its tokenizer, which has none, and pads on the wrong side."""
    torch.manual_seed(0)
    made = t.AutoModelForSequenceClassification.from_config(config).base_model
    made.config.pad_token_id = 5
    made.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.init_kwargs["padding_side"] = None, "right" if config.model_type == "xlnet" else "left"
    tokenizer.save_pretrained(tmp_path)
    model, backbone = loaded(tmp_path, cache)
    options = argparse.Namespace(model=str(tmp_path), generate=0, labels=3, device="cpu")
    for tokenizer, classifier in ((backbone.preprocess, backbone.model), serve_mixed._load(options)[:2]):
        classifier.eval()
        rows = [tokenizer("a dog"), tokenizer("the cat sleeps in the house")]
        with torch.no_grad():
            batch = classifier(**tokenizer.pad(rows, return_tensors="pt")).logits
            for row, wanted in zip(rows, batch, strict=True):
                alone = classifier(**tokenizer.pad([row], return_tensors="pt")).logits
                torch.testing.assert_close(alone[0], wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(batch[0], batch[1], rtol=1e-5, atol=1e-6)
    for name in ("prompt_tuning", "p_tuning") * (config.model_type != "xlnet"):
        method = build({**choice("method", name), "settings": choice("method", name)["settings"]}, "method")
        with pytest.raises(ConfigError, match="mine cannot tell padding from its last token; use method=prefix_tuning"):
            method.attach(backbone, model)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        loaded(tmp_path, cache)


@pytest.mark.parametrize("kind", ["auto_text", "auto_causal"])
def test_a_tokenizer_that_leaves_out_the_mask_gives_one(kind, folders, cache, tmp_path):
    shutil.copytree(folders("bert"), tmp_path, dirs_exist_ok=True)
    if kind == "auto_causal":
        t.AutoModelForCausalLM.from_config(FAMILIES["qwen3"]).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"model_input_names": ["input_ids"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    backbone = loaded(tmp_path, cache, kind)[1]
    served = serve_mixed._load(
        argparse.Namespace(model=str(tmp_path), generate=int(kind == "auto_causal"), labels=3, device="cpu")
    )
    for tokenizer in (backbone.preprocess, served[0]):
        padded = tokenizer.pad({"input_ids": [[5, 6], [7]]}, padding_side="right", return_tensors="pt")
        assert padded["attention_mask"].tolist() == [[1, 1], [1, 0]]
    if kind == "auto_text":
        data = build({**choice("task", "rte"), "synthetic": True, "data_dir": None}, "task").load(backbone, 0)
        rows = [data.train[0], max(data.train, key=lambda example: len(example["input_ids"]))]
        alone, both = (data.collate(some) for some in (rows[:1], rows))
        scores = [backbone.model.eval()(**{k: v for k, v in b.items() if k != "labels"}).logits[0] for b in (alone, both)]
        assert len(both["input_ids"][0]) > len(alone["input_ids"][0])
        torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("between", [False, True])
def test_two_texts_are_never_glued_together(between, folders, cache, tmp_path):
    path = folders("bert") if between else tmp_path
    if not between:
        t.GPT2Model(t.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=257)).save_pretrained(path)
        causal_tokenizer(bytes_of([END])).save_pretrained(path)
    _, backbone = loaded(path, cache)
    task = build({**choice("task", "rte"), "synthetic": True, "data_dir": None}, "task")
    texts = [pair for pair, _ in task.source_rows()[0]["train"]]
    data, tokenizer = task.load(backbone, 0), backbone.preprocess
    found = [tokenizer.decode(example["input_ids"]) for example in data.train]
    if between:
        assert found == [f"<s>{first}</s></s>{second}</s>" for first, second in texts] and "pairs" not in data.notes
    else:
        assert found == [f"{first}\n{second}" for first, second in texts] and "line break" in data.notes["pairs"]


def test_joined_texts_that_are_cut_lose_tokens_of_the_longer_one_first():
    """One token a byte, and GPT-2's two tokens none: nothing between two texts."""
    tokenizer = causal_tokenizer(bytes_of([END]))
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = [("a" * 40, "b" * 5), ("c" * 5, "d" * 40), ("e" * 40, "f" * 40), ("g" * 9, "h" * 10)]
    found, cut = encode(tokenizer, rows, 20)
    texts = ["a" * 14 + "\n" + "b" * 5, "c" * 5 + "\n" + "d" * 14, "e" * 10 + "\n" + "f" * 9, "g" * 9 + "\n" + "h" * 10]
    assert [tokenizer.decode(ids) for ids in found["input_ids"]] == texts and cut == [True, True, True, False]
    assert found["token_type_ids"] == [[0] * 20] * 4
    options = argparse.Namespace(max_position_embeddings=20)
    requests = [{"adapter": None, "text": first, "pair": second} for first, second in rows]
    model = torch.nn.Module()
    model.config = options
    assert [row["input_ids"] for row in serve_mixed._encoded(tokenizer, model, requests, 0)] == found["input_ids"]


def test_a_tokenizer_that_knows_no_letter_of_ours_keeps_its_pairs():
    tokenizer = Tokenizer(BPE(vocab={"[SEP]": 0, "漢": 1, "字": 2}, merges=[]))
    tokenizer.post_processor = TemplateProcessing(pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", 0)])
    rows = [("漢", "字字"), ("字", "漢")]
    assert columns_for(t.PreTrainedTokenizerFast(tokenizer_object=tokenizer), rows) == [["漢", "字"], ["字字", "漢"]]


def test_without_a_checkpoint_the_rehearsal_is_some_small_model(cache):
    for kind in ("auto_text", "auto_image", "auto_causal"):
        assert build({**choice("model", kind), "path": None, "size": "tiny"}, "model").load(0 if "causal" in kind else 2, cache)


def test_an_image_model_and_a_language_model(tmp_path, cache):
    torch.manual_seed(0)
    config = t.ViTConfig(**SIZES, image_size=16, patch_size=8)
    t.AutoModelForImageClassification.from_config(config).base_model.save_pretrained(tmp_path / "vit")
    image_processor(config).save_pretrained(tmp_path / "vit")
    model, backbone = loaded(tmp_path / "vit", cache, "auto_image")
    assert model.resolve_targets(backbone, ["query"]) in (("query",), ("q_proj",)) and backbone.head == ("classifier",)
    t.AutoModelForCausalLM.from_config(FAMILIES["qwen3"]).save_pretrained(tmp_path / "qwen")
    byte_tokenizer().save_pretrained(tmp_path / "qwen")
    model, backbone = loaded(tmp_path / "qwen", cache, "auto_causal")
    assert backbone.head == () and "lm_head" not in model.resolve_targets(backbone, ["all_linear"])


@pytest.mark.parametrize("method", ["full", "head"])
def test_running_statistics_stay_the_checkpoints_whatever_the_micro_batches(method, tmp_path, compose):
    torch.manual_seed(0)
    config = t.ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    plain = t.ResNetForImageClassification(config).train()
    plain(torch.randn(8, 3, 16, 16))  # statistics of their own
    plain.save_pretrained(tmp_path / "resnet")
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "resnet")
    keys = ["model=auto_image", "model.name=resnet", f"model.path={tmp_path / 'resnet'}", "model.size=full", "task=digits"]
    keys += [f"method={method}", "train.lr=0.01", "train.head_lr=0.1", "train.batch_size=6", "train.max_steps=3"]

    def fitted(*more):
        run = compose(*keys, *more)
        loop = Loop(run, *prepare(run), tmp_path / "-".join(["work", *more]))
        loop.fit()
        return loop

    loop, parts = fitted(), fitted("train.micro_batch_size=2")
    assert loop.history[0]["train_loss"] == pytest.approx(parts.history[0]["train_loss"], rel=1e-4)
    moved = dict(loop.backbone.model.named_buffers())
    assert moved and all(torch.equal(value, moved[name]) for name, value in plain.named_buffers())
    assert loop.backbone.model.training and any(isinstance(m, torch.nn.BatchNorm2d) for m in loop.backbone.model.modules())


def test_a_layout_can_stand_in_the_yaml(folders, cache):
    places = {"blocks": "layers", "attention": "attn.Wo", "feedforward": "mlp.Wo", "output": "", "contraction": "mlp.Wi"}
    model, backbone = loaded(folders("modernbert"), cache, layouts=[places])
    assert model.blocks(backbone.model)[1]["contraction"] == "model.layers.1.mlp.Wi"
    model, backbone = loaded(folders("deberta-v2"), cache)
    with pytest.raises(ConfigError, match=r"model.layouts.0.block is not a key; allowed: attention, blocks"):
        loaded(folders("bert"), cache, layouts=[{**places, "block": "x"}])


def test_a_name_that_does_not_exist_lists_those_that_do(folders, cache):
    model, backbone = loaded(folders("distilbert"), cache, targets={"query": "q_proj"})
    with pytest.raises(
        ModelError, match=r"no module called q_proj for target 'query'; the linear ones are q_lin, k_lin, v_lin"
    ):
        model.resolve_targets(backbone, ["query"])
    model, backbone = loaded(folders("distilbert"), cache)
    with pytest.raises(ConfigError, match=r"has no 'gate'; allowed: query, key, value, all_linear"):
        model.resolve_targets(backbone, ["gate"])
    with pytest.raises(ConfigError, match=r"; a layer by its name: \+model\.targets\.out=\[lin1\] method\.targets=\[out\]"):
        model.resolve_targets(backbone, ["lin1"])
    model, backbone = loaded(folders("distilbert"), cache, targets={"out": "lin1"})
    assert model.resolve_targets(backbone, ["out"]) == ("lin1",)
    with pytest.raises(ConfigError, match=r"has no 'gate'; allowed: out, all_linear$"):
        model.resolve_targets(backbone, ["gate"])


def test_names_are_written_out_where_the_head_has_them_too(folders, cache):
    targets = {"key": "k_lin", "first": "lin1"}
    model, backbone = loaded(folders("distilbert"), cache, targets=targets)
    assert model.resolve_targets(backbone, ["key", "first"]) == ("k_lin", "lin1")
    backbone.model.classifier = torch.nn.ModuleDict({"lin1": torch.nn.Linear(16, 16)})
    layers = [f"distilbert.transformer.layer.{number}.ffn.lin1" for number in range(2)]
    assert model.resolve_targets(backbone, ["key", "first"]) == ("k_lin", *layers)
    backbone.model.lin1 = torch.nn.Linear(16, 16)
    with pytest.raises(ConfigError, match=r"method.targets: lin1 of mine means classifier.lin1 of its head too; leave it out"):
        model.resolve_targets(backbone, ["first"])


def test_a_model_without_attention_says_what_it_has():
    assert found.attention(["layers.0.pwconv1", "layers.0.pwconv2"]) is None
    assert found.attention(["a.query", "a.key", "a.value"]) == found.Targets("query", "key", "value")


def test_own_weights_need_a_name_and_some_weights(folders, cache):
    with pytest.raises(ModelError, match=r"weights of your own need a name of their own: add model.name="):
        loaded(folders("bert"), cache, name="auto_text")
    with pytest.raises(ModelError, match=r"^nothing says where the weights of model \w+ are; give "):
        build({**choice("model", "auto_text"), "path": None}, "model").load(2, cache)


def test_the_command_prints_what_it_would_adapt_and_a_yaml_that_works(folders, cache, monkeypatch, capsys):
    path = folders("gpt_neox")
    monkeypatch.setattr("sys.argv", ["model.py", str(path)])
    assert command.main() == 0
    out = capsys.readouterr().out
    assert "query, value: query_key_value (query, key and value are one matrix, adapted whole)" in out
    assert "head: score" in out and "blocks for bottleneck adapters and IA3: 2" in out and f"path: {path}" in out
    _, settings = command.look(str(path), "text", "mine")
    assert json.dumps(settings) and build(settings, "model").load(2, cache).head == ("score",)
    with pytest.raises(ModelError, match="cannot be looked into"):
        command.look("nobody/nothing", "text", "mine")
    with pytest.raises(ConfigError, match=r"model\.checkpoint: .* got '/nowhere/at/all'"):
        command.look("/nowhere/at/all", "text", "mine")


UNFIT = {  # asked for, and what it is
    "swin": (t.SwinConfig, "text", "--for image"),
    "clip": (t.CLIPConfig, "causal", "--for image"),
    "mamba": (t.MambaConfig, "text", "--for causal"),
    "qwen3": (t.Qwen3Config, "image", "--for text or --for causal"),
}


@pytest.mark.parametrize("family", UNFIT)
def test_a_checkpoint_of_another_kind_is_told_which(family, tmp_path):
    config, asked, helps = UNFIT[family]
    config().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        command.look(str(tmp_path), asked, "mine")
    name = config.__name__
    assert str(caught.value).endswith(f": {helps}") and f" of {name}, but AutoModelFor" in str(caught.value)


def test_a_checkpoint_of_no_kind_is_told_so(tmp_path):
    t.DPTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no AutoModelForCausalLM of DPTConfig, nor an auto class of another kind here$"):
        command.look(str(tmp_path), "causal", "mine")


def test_a_run_with_a_checkpoint_of_another_kind_is_told_so(folders, cache, tmp_path):
    shutil.copytree(folders("qwen3"), tmp_path / "mamba")
    t.MambaConfig().save_pretrained(tmp_path / "mamba")
    with pytest.raises(ModelError, match=r"no AutoModelForSequenceClassification of MambaConfig, but AutoModelForCausalLM$"):
        loaded(tmp_path / "mamba", cache)


def test_the_command_writes_a_yaml_of_a_hub_id_that_a_run_reads(folders, train, tmp_path, monkeypatch, capsys):
    cached = tmp_path / "hub" / "models--me--mine"
    for folder in (cached / "snapshots" / ("0" * 40), tmp_path / "copies" / "mine", tmp_path / "a ${seed}"):
        shutil.copytree(folders("bert"), folder)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["model.py", "me/mine", "--write", "ours"])
    assert command.main() == 0
    assert f"vera --project {tmp_path} train model=ours" in capsys.readouterr().out
    run = train(
        *("model=ours", "task=rte", "method=bitfit", "train.lr=1e-3", "model.size=full", f"models_dir={tmp_path / 'copies'}"),
        VERA_PROJECT=str(tmp_path),
    )
    assert run.returncode == 0, run.stderr
    (record,) = (tmp_path / "results" / "runs").glob("*.json")
    assert json.loads(record.read_text())["run"]["config"]["model"]["checkpoint"] == "me/mine"
    monkeypatch.setattr("sys.argv", ["model.py", str(tmp_path / "a ${seed}")])
    with pytest.raises(ConfigError, match=r"path: .* has a \$\{, which a yaml of conf/ reads as a reference"):
        command.main()


def test_a_yaml_of_a_folder_in_conf_is_its_own_name(folders, cache, tmp_path, monkeypatch):
    """As `make model --write` puts it there, also for a copy of the folder; auto_text stays nobody's name."""
    _, settings = command.look(str(folders("distilbert")), "text", "written")
    named = {"written": settings, "auto_text": choice("model", "auto_text")}
    monkeypatch.setattr(base, "choices", lambda group: tuple(named))
    monkeypatch.setattr("vera.config.choice", lambda group, name: named[name])
    shutil.copytree(folders("distilbert"), tmp_path / "copy")
    for path in (settings["path"], str(tmp_path / "copy")):
        assert build({**settings, "path": path}, "model").load(2, cache).head == ("pre_classifier", "classifier")
    with pytest.raises(ModelError, match="weights of your own need a name"):
        build({**settings, "name": "auto_text"}, "model").load(2, cache)


@pytest.mark.parametrize("kind", ["auto_text", "auto_image", "auto_causal"])
def test_a_checkpoint_with_a_peft_adapter_beside_it_is_refused(kind, cache, tmp_path, monkeypatch):
    """transformers would load the adapter as a part of the backbone."""
    torch.manual_seed(0)
    if kind == "auto_image":
        config, made = t.ViTConfig(**SIZES, image_size=16, patch_size=8), t.AutoModelForImageClassification
        image_processor(config).save_pretrained(tmp_path)
    else:
        config, made = FAMILIES["qwen3"], t.AutoModelForCausalLM
        byte_tokenizer().save_pretrained(tmp_path)
    made.from_config(config).save_pretrained(tmp_path)
    whole = {path.name for path in tmp_path.iterdir()}
    targets = ["query", "q_proj"]
    peft.get_peft_model(made.from_config(config), peft.LoraConfig(r=2, target_modules=targets)).save_pretrained(tmp_path)
    said = "holds a PEFT adapter, .* merge it first"
    with pytest.raises(ModelError, match=said):
        loaded(tmp_path, cache, kind)
    with pytest.raises(ModelError, match=said):
        command.look(str(tmp_path), kind.removeprefix("auto_"), "mine")
    with monkeypatch.context() as patched, pytest.raises(ModelError, match=said):  # as from the hub, whose files are not listed
        patched.setattr(base.Model, "lacking", lambda *_: None)
        loaded(tmp_path, cache, kind)
    options = argparse.Namespace(model=str(tmp_path), generate=1, labels=3, device="cpu")
    if kind == "auto_causal":
        with pytest.raises(ModelError, match=said):
            serve_mixed._load(options)
    for name in whole:
        (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=said):  # an adapter alone
        loaded(tmp_path, cache, kind)
    with pytest.raises(ModelError, match=said):
        command.look(str(tmp_path), kind.removeprefix("auto_"), "mine")


CAUSAL = {  # families that transformers makes language models of though they see what comes next, and what makes them causal
    "bert": (t.BertConfig(**SIZES, **TOKENS), {"is_decoder": True}),
    "bert-generation": (t.BertGenerationConfig(**SIZES, **TOKENS), {"is_decoder": True}),
    "xlm": (t.XLMConfig(emb_dim=16, n_layers=2, n_heads=2, n_words=261, **TOKENS), {"causal": True}),
    "gemma3_text": (
        t.Gemma3TextConfig(**SIZES, **TOKENS, num_key_value_heads=1, head_dim=8, use_bidirectional_attention=True),
        {"use_bidirectional_attention": False},
    ),
    "xlnet": (t.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, **TOKENS), None),
}


@pytest.mark.parametrize("family", CAUSAL)
def test_a_model_that_sees_what_comes_next_is_no_language_model_unless_it_is_made_causal(family, cache, tmp_path):
    """Found by a trial, whatever its name; what is said to make it causal does, as two texts show that differ at the end."""
    torch.manual_seed(0)
    config, remedy = CAUSAL[family]
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    hint = "".join(f"; model.config.{key}={str(value).lower()} makes it causal" for key, value in (remedy or {}).items())
    with pytest.raises(ModelError) as refused:
        loaded(tmp_path, cache, "auto_causal")
    said = f"{family} is no causal language model: the scores of a token depend on those behind it{hint}"
    assert str(refused.value) == said
    if remedy:
        _, backbone = loaded(tmp_path, cache, "auto_causal", config=remedy)
        ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 9]])
        logits = backbone.model.eval()(input_ids=ids).logits
        torch.testing.assert_close(logits[0, :2], logits[1, :2])  # what follows changes nothing


def test_the_trial_asks_in_every_command(cache, tmp_path):
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(FAMILIES["bert"]).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="bert is no causal language model"):
        command.look(str(tmp_path), "causal", "mine")
    with pytest.raises(ModelError, match="bert is no causal language model"):
        serve_mixed._load(argparse.Namespace(model=str(tmp_path), generate=3, device="cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", "mixtral", "mamba", "xlm"])
def test_the_trial_passes_causal_models_in_every_precision_and_leaves_them_as_they_were(family, dtype):
    """Experts that tokens are routed to and states that are carried on among them."""
    torch.manual_seed(0)
    more = {
        "mixtral": t.MixtralConfig(**SIZES, **TOKENS, num_key_value_heads=1, num_local_experts=4, router_jitter_noise=0.1),
        "mamba": t.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **TOKENS),
        "xlm": t.XLMConfig(emb_dim=16, n_layers=2, n_heads=2, n_words=261, causal=True, **TOKENS),
    }
    model = t.AutoModelForCausalLM.from_config({**FAMILIES, **more}[family]).to(dtype).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    draws = torch.get_rng_state()
    assert causal(model) is model and model.training and torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_what_no_trial_can_be_made_of_is_said(monkeypatch):
    model = t.AutoModelForCausalLM.from_config(FAMILIES["qwen3"])
    monkeypatch.setattr(model.model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ModelError, match=r"^Qwen3ForCausalLM cannot be called with tokens alone: division by zero$"):
        causal(model)
    assert model.training


@pytest.mark.parametrize("family", ["bart", "whisper", "gpt2"])
def test_the_decoder_of_an_encoder_decoder_is_no_language_model(family, cache, tmp_path):
    sizes = {f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in (("layers", 1), ("ffn_dim", 16))}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    config = {
        "bart": lambda: t.BartConfig(**sizes, **TOKENS),
        "whisper": lambda: t.WhisperConfig(**sizes, **TOKENS, decoder_start_token_id=3),
        "gpt2": lambda: t.GPT2Config(n_embd=16, n_layer=1, n_head=2, add_cross_attention=True, **TOKENS),
    }[family]()
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    said = f"{family} is the decoder of an encoder-decoder here, whose attention to the encoder nothing calls"
    with pytest.raises(ModelError, match=said):
        loaded(tmp_path, cache, "auto_causal")
    with pytest.raises(ModelError, match=said):
        command.look(str(tmp_path), "causal", "mine")


def test_a_tokenizer_without_an_end_token_writes_no_text(cache, tmp_path):
    t.AutoModelForCausalLM.from_config(FAMILIES["qwen3"]).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match="its tokenizer has no end token, by which a model learns to stop; give it an eos_token"
    ):
        loaded(tmp_path, cache, "auto_causal")


def test_what_is_trained_and_counted_but_never_used_is_said(cache, tmp_path, compose, warned):
    """ESM's head for contacts lies within the backbone, and a classifier does not call it."""
    torch.manual_seed(0)
    t.EsmModel(t.EsmConfig(**SIZES, **TOKENS, mask_token_id=4)).save_pretrained(tmp_path / "esm")
    byte_tokenizer().save_pretrained(tmp_path / "esm")
    keys = [
        "model=auto_text",
        "model.name=mine",
        f"model.path={tmp_path / 'esm'}",
        "task=rte",
        "train.lr=1e-3",
        "model.size=full",
    ]
    record = execute(compose(*keys, "method=lora", "method.targets=[all_linear]"))
    unreached = record.provenance.notes["unreached"]
    assert all("contact_head" in name for name in unreached["names"]) and unreached["parameters"] == 8 * (2 * 2 + 1)
    assert "nothing that is scored depends on 2 of the" in warned()[-1]
    assert "unreached" not in execute(compose(*keys, "method=lora")).provenance.notes


def test_a_served_model_may_have_a_head_of_another_size(tmp_path):
    t.AutoModelForSequenceClassification.from_config(FAMILIES["bert"]).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    _, model, drawn = serve_mixed._load(argparse.Namespace(model=str(tmp_path), generate=0, labels=5, device="cpu"))
    assert model.classifier.out_features == 5 and drawn == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("config", "unused"), [(t.RobertaConfig, 2), (t.MPNetConfig, 2), (t.BertConfig, 0)])
def test_texts_are_as_long_as_a_model_has_positions_for_also_where_its_tokenizer_has_no_limit(config, unused, cache, tmp_path):
    """RoBERTa's kin count positions from behind the padding token's id, 1 here."""
    torch.manual_seed(0)
    t.AutoModel.from_config(config(**SIZES, **TOKENS, max_position_embeddings=34)).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)

    def load(length, backbone):
        task = build({**choice("task", "sst2"), "synthetic": True, "max_length": length}, "task")
        return task.load(backbone, 0)

    model, backbone = loaded(tmp_path, cache)
    longest = 34 - unused
    with pytest.raises(ConfigError, match=f"task.max_length=35 is more than this model's {longest} positions"):
        load(35, backbone)
    with pytest.raises(ConfigError, match="more than this model's") if unused else nullcontext():
        load(34, backbone)
    data = load(longest, backbone)
    batch = data.collate(list(data.train))
    batch.pop("labels")
    assert batch["input_ids"].shape[1] == longest and backbone.model(**batch).logits.shape == (24, 3)
    prompts = build({**choice("method", "prompt_tuning"), "settings": {"num_virtual_tokens": 5}}, "method")
    prompts.attach(backbone, model)
    with pytest.raises(ConfigError, match=f"more than this model's {longest - 5} positions"):
        load(longest, backbone)
    assert backbone.model(**data.collate([{k: v[: longest - 5] if k != "labels" else v for k, v in data.train[0].items()}]))


def test_a_classifier_that_holds_its_base_model_by_another_name_keeps_its_weights(cache, tmp_path):
    """CLIP's, whose config.json also has a part for each modality; saved with a head, so that nothing in it is new."""
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    config = t.CLIPConfig(vision_config=vision, text_config={**SIZES, **TOKENS}, projection_dim=16, num_labels=3)
    torch.manual_seed(1)
    made = t.CLIPForImageClassification(config)
    made.save_pretrained(tmp_path)
    image_processor(t.ViTConfig(image_size=16)).save_pretrained(tmp_path)
    model, backbone = loaded(tmp_path, cache, "auto_image")
    assert backbone.head == ("classifier",) and model.resolve_targets(backbone, ["query", "value"]) == ("q_proj", "v_proj")
    state = backbone.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in made.state_dict().items() if "vision_model" in name)
    assert not torch.equal(state["classifier.weight"], made.classifier.weight)
    lines, _ = command.look(str(tmp_path), "image", "mine")
    assert any(line.startswith("head: classifier") for line in lines)


def test_a_model_without_a_linear_map_says_so(cache, tmp_path):
    t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")).save_pretrained(tmp_path)
    image_processor(t.ViTConfig(image_size=16)).save_pretrained(tmp_path)
    model, backbone = loaded(tmp_path, cache, "auto_image")
    for targets in (["query"], ["all_linear"]):
        with pytest.raises(ModelError, match="mine has no linear map outside its head, so there is no matrix to adapt"):
            model.resolve_targets(backbone, targets)
    lines, _ = command.look(str(tmp_path), "image", "mine")
    assert any("no matrix to adapt" in line for line in lines)


@pytest.mark.parametrize("kind", ["auto_text", "auto_causal"])
def test_a_padding_token_that_the_embeddings_lack_is_refused(kind, cache, tmp_path):
    t.AutoModelForCausalLM.from_config(FAMILIES["qwen3"]).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match="its tokenizer pads with token 261, and its embeddings have 261: resize_token_embeddings"
    ):
        loaded(tmp_path, cache, kind)


def test_a_model_without_a_limit_reads_texts_of_any_length(cache, tmp_path):
    t.AutoModel.from_config(t.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, **TOKENS)).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    backbone = loaded(tmp_path, cache)[1]
    assert backbone.model.config.max_position_embeddings == -1 and base.positions(backbone.model) is None
    task = build({**choice("task", "sst2"), "synthetic": True, "max_length": 3000}, "task")
    data = task.load(backbone, 0)
    batch = data.collate(list(data.train[:2]))
    batch.pop("labels")
    assert backbone.model(**batch).logits.shape == (2, 3)


def test_types_of_tokens_that_the_embeddings_lack_are_refused(cache, tmp_path):
    t.AutoModel.from_config(t.BertConfig(**SIZES, **TOKENS, type_vocab_size=1)).save_pretrained(tmp_path)
    tokenizer = bytes_of(["<s>", "<pad>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_input_names=names).save_pretrained(tmp_path)
    backbone = loaded(tmp_path, cache)[1]
    pairs, single = (build({**choice("task", n), "synthetic": True, "data_dir": None}, "task") for n in ("rte", "sst2"))
    for _ in range(2):  # what is refused is not remembered
        with pytest.raises(ModelError, match="gives token_type_ids up to 1, and its embeddings have 1; leave them out"):
            pairs.load(backbone, 0)
    assert single.load(backbone, 0).train


@pytest.mark.parametrize(("kind", "task"), [("auto_text", "sst2"), ("auto_causal", "alpaca")])
def test_tokens_that_the_embeddings_lack_are_refused(kind, task, cache, tmp_path):
    t.AutoModelForCausalLM.from_config(FAMILIES["qwen3"]).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["old", "the"])  # of the synthetic rows
    tokenizer.save_pretrained(tmp_path)
    task = build({**choice("task", task), "synthetic": True, "data_dir": None}, "task")
    with pytest.raises(ModelError, match="gives input_ids up to 262, and its embeddings have 261; resize_token"):
        task.load(loaded(tmp_path, cache, kind)[1], 0)
