"""A run's weights leave for plain transformers and PEFT, with the run's own logits; what cannot leave is refused by name."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from tests.conftest import REHEARSAL, ROOT
from vera.commands import run as command_line
from vera.config import build, choice
from vera.config import compose as compose_run
from vera.config.paths import work_of
from vera.errors import AdapterError, ConfigError, ModelError, RecordError
from vera.nn import VeraConfig, attach, load_adapter
from vera.records.kept import kept
from vera.records.store import Store
from vera.run import execute, prepare
from vera.seeds import seed_everything
from vera.trained import export as module
from vera.trained import publish
from vera.trained.export import NoSuchForm, cut, export

KEYS = ["train.max_steps=3", "train.epochs=3", "train.batch_size=8", "train.lr=0.05", "train.head_lr=0.05", "train.save=true"]
RUNS = {
    "vera": ["model=roberta_base", "task=rte", "method=vera"],
    "vera variant": ["model=roberta_base", "task=rte", "method=vera", "method.sharing=unique", "method.init=kaiming_normal"],
    "only b": ["model=roberta_base", "task=rte", "method=vera", "method.train=only_b"],
    "only d": ["model=roberta_base", "task=rte", "method=vera", "method.train=only_d", "method.sharing=unique"],
    "frozen head": ["model=roberta_base", "task=rte", "method=vera", "method.train_head=false", "train.lr=1.0"],
    "adalora": ["model=roberta_base", "task=rte", "method=adalora", "method.interval=1"],
    "full": ["model=roberta_base", "task=rte", "method=full"],
    "decoder": ["model=auto_text", "model.tiny.family=llama", "task=rte", "method=lora"],
    "relu": ["model=roberta_base", "task=rte", "method=lora", "++model.config.hidden_act=relu"],
    "dropout": ["model=roberta_base", "task=rte", "method=lora", "++model.config.hidden_dropout_prob=0.3"],
    "adapter": ["model=roberta_base", "task=rte", "method=adapter_p"],
    "vblora": ["model=roberta_base", "task=rte", "method=vblora"],
    "p_tuning": ["model=roberta_base", "task=rte", "method=p_tuning"],
    "gpt2 dora": ["model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=dora"],
    "gpt2 vera": ["model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=vera", "train.lr=1.0"],
    "gpt2 lora": ["model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=lora"],
    "gpt2 ia3": ["model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=ia3"],
    "square Conv1D": [
        "model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=vera", "+model.targets.out=attn.c_proj",
        "method.targets=[out]", "train.lr=1.0",
    ],
    "gpt2 tied": [
        "model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=lora", "+model.targets.lm=lm_head",
        "method.targets=[query,value,lm]",
    ],
    "gpt2 tied ia3": [
        "model=gpt2_medium", "task=alpaca", "~recipe@_global_", "method=ia3", "+model.targets.lm=lm_head",
        "method.targets=[lm]", "method.feedforward=false",
    ],
    "vit": ["model=vit_base", "task=cifar100", "method=vera"],
    "llama": ["model=llama2_7b", "task=alpaca", "model.quantisation=none", "method=vera", "train.lr=1.0"],
    "llama nf4": ["model=llama2_7b", "task=alpaca", "model.quantisation=nf4", "method=vera", "train.lr=1.0"],
    "llama ia3": ["model=llama2_7b", "task=alpaca", "model.quantisation=none", "method=ia3"],
}  # fmt: skip
IN_BITS = "llama nf4"
ANY_PEFT = ("vblora", "p_tuning", "gpt2 dora")
IA3 = ("gpt2 ia3", "gpt2 tied ia3", "llama ia3")
TIED = {"gpt2 tied": "lora", "gpt2 tied ia3": "peft"}  # and the form that there is
CLASSES = {
    "text": AutoModelForSequenceClassification,
    "generation": AutoModelForCausalLM,
    "image": AutoModelForImageClassification,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """Runs by name, each made once: config, record's path, folder of trained weights."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def make(name):
        if name not in made:
            places = [f"cache_dir={cache}", f"results_dir={root / 'results'}", f"work_dir={root / 'work' / 'results'}"]
            run = compose_run([*REHEARSAL, *KEYS, *places, *RUNS[name]])
            execute(run)
            made[name] = run, Store(run.results_dir).path(run.run_name), root / "work" / "results" / run.run_name
        return made[name]

    return make


def inputs(modality):
    draw = torch.Generator().manual_seed(1)
    if modality == "image":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=draw)}
    return {"input_ids": torch.randint(5, 60, (2, 7), generator=draw)}


@torch.no_grad()
def logits(model, modality):
    return model.eval()(**inputs(modality)).logits.float()


def own(run, folder, which="best"):
    """The run's own logits, the logits of the backbone alone, and a backbone as transformers knows it."""
    model_config, task = build(run.model, "model"), build(run.task, "task")
    seed_everything(run.seed, "head")
    backbone = model_config.load(task.outputs, run.cache_dir)
    build(run.method, "method").load(backbone, model_config, folder / which)
    labels = {"num_labels": task.outputs, "ignore_mismatched_sizes": True} if task.outputs else {}
    source = model_config.source(run.cache_dir)
    plain = CLASSES[model_config.modality].from_pretrained(source, dtype=backbone.model.dtype, **labels)
    if model_config.modality == "text" and run.method.get("train_head") is False:
        plain.classifier.load_state_dict(backbone.model.classifier.state_dict())
    return logits(backbone.model, model_config.modality), plain, model_config.modality


def test_weights_of_an_earlier_run_of_this_name_never_leave_under_a_record_that_kept_none(compose, tmp_path):
    """Trained again without keeping anything, beside what the first run kept."""
    given = ["train.max_steps=2", "method=vera", f"work_dir={tmp_path / 'work' / 'results'}"]
    first = compose(*given, "train.save=true")
    record, path = execute(first), Store(first.results_dir).path(first.run_name)
    assert kept(record, first.work_dir, "best")[1] == record.weights["best"]
    path.unlink()
    again = execute(compose(*given, "train.save=false"))
    folder = Path(first.work_dir) / again.name
    assert again.name == record.name and (folder / "best").is_dir()
    for source in (path, folder):
        with pytest.raises(
            ModelError, match=r"kept no weights of its best epoch: train\.save=false, so those in .* are not its"
        ):
            export(source, tmp_path / "out", "lora")
    collapsed = record.model_copy(update={"collapsed": "a loss that is not finite", "weights": {}})
    with pytest.raises(ModelError, match="kept no weights of its last epoch: it has collapsed"):
        kept(collapsed, first.work_dir, "last")
    late = record.model_copy(update={"weights": {"last": record.weights["last"]}})  # resumed with train.save=true
    with pytest.raises(ModelError, match=r"its best epoch: an earlier start had train\.save=false, so those"):
        kept(late, first.work_dir, "best")
    older = record.model_copy(update={"weights": {}})  # from before records named them
    assert kept(older, first.work_dir, "best")[1] == record.weights["best"]


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("full", "adapter", "relu", IN_BITS, *IA3, *ANY_PEFT)])
def test_a_lora_opens_in_plain_peft(name, runs, tmp_path, cache):
    run, _, folder = runs(name)
    lines = export(folder, tmp_path / "out", "lora", overrides=[f"cache_dir={cache}"])
    wanted, plain, modality = own(run, folder)
    config = PeftConfig.from_pretrained(tmp_path / "out")
    assert config.peft_type == "LORA" and config.r == config.lora_alpha and "exact" in lines[0]
    assert config.task_type == {"text": "SEQ_CLS", "generation": "CAUSAL_LM", "image": None}[modality]
    rank = run.method.get("rank") if "adalora" not in name else run.method["initial_rank"]
    assert config.r == (2 * rank if "gpt2" in name else rank)
    assert ("set model.config.pad_token_id = " in (tmp_path / "out" / "README.md").read_text()) == (name == "decoder")
    before = logits(plain, modality)
    found = logits(PeftModel.from_pretrained(plain, tmp_path / "out"), modality)
    effect = (wanted - before).abs().max()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0.05 * effect if "llama" in name else 1e-5)
    assert effect > 1e-4
    if name != "decoder":
        _only_this_head(tmp_path / "out", run)


@pytest.mark.parametrize(
    "name", ["vera", "only b", "frozen head", "adalora", "vblora", "p_tuning", "gpt2 lora", "gpt2 ia3", "gpt2 tied ia3", "vit"]
)
def test_pefts_own_format_opens_in_plain_peft(name, runs, tmp_path, cache):
    run, record, folder = runs(name)
    export(record, tmp_path / "out", "peft", work=folder.parent, overrides=[f"cache_dir={cache}"])
    wanted, plain, modality = own(run, folder)
    _only_this_head(tmp_path / "out", run)
    if run.method["name"] == "vera" and run.method["train"] == "both":
        other = own(run, folder)[1]
        torch.testing.assert_close(logits(load_adapter(other, tmp_path / "out"), modality), wanted, rtol=1e-4, atol=1e-5)
        stranger = own(run, folder)[1]
        with torch.no_grad():
            for weight in stranger.parameters():
                weight.mul_(1.5)
        with pytest.raises(AdapterError, match="trained on another backbone"):
            load_adapter(stranger, tmp_path / "out")
    found = logits(PeftModel.from_pretrained(plain, tmp_path / "out"), modality)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _only_this_head(out, run):
    """The file has the model's one head, not also the backbone's own, which lies aside while an adapter's is in the model."""
    head = [name for name in load_file(out / "adapter_model.safetensors") if "classifier" in name]
    assert len(head) == {"rte": 4, "cifar100": 2}.get(run.task["name"], 0) and not any("vera_heads" in name for name in head)


def test_every_adapter_file_s_names_are_looked_at(runs, tmp_path, cache, monkeypatch):
    def refuse(backbone):
        raise NoSuchForm("looked at")

    monkeypatch.setattr(module, "_check_names", refuse)
    for form in ("lora", "peft"):
        with pytest.raises(NoSuchForm, match="looked at"):
            export(runs("vera")[2], tmp_path / form, form, overrides=[f"cache_dir={cache}"])
    export(runs("vera")[2], tmp_path / "merged", "merged", overrides=[f"cache_dir={cache}"])


@pytest.mark.parametrize("library", ["vera.nn", "peft"])
def test_an_adapted_layer_that_peft_takes_for_the_head_is_refused(library):
    """It compares ends of names, and so opens no file with both."""
    for targets in (["q_lin"], ["q_lin", "pre_classifier"]):
        model = DistilBertForSequenceClassification(
            DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2, vocab_size=50)
        )
        if library == "peft":
            inject_adapter_in_model(LoraConfig(target_modules=targets), model)
        else:
            attach(model, VeraConfig(rank=4, targets=tuple(targets), projection_seed=0))
        backbone = SimpleNamespace(model=model, head=("classifier",))
        if len(targets) == 1:
            module._check_names(backbone)
        else:
            with pytest.raises(NoSuchForm, match=r"the adapted layer pre_classifier for the head classifier.*--to merged"):
                module._check_names(backbone)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("adapter", IN_BITS, *TIED, *ANY_PEFT)])
def test_a_merged_model_is_a_plain_one(name, runs, tmp_path, cache):
    run, _, folder = runs(name)
    lines = export(folder / "last", tmp_path / "out", "merged", overrides=[f"cache_dir={cache}"])
    wanted, plain, modality = own(run, folder, "last")
    merged, info = type(plain).from_pretrained(tmp_path / "out", output_loading_info=True, dtype=plain.dtype)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert merged.state_dict().keys() == plain.state_dict().keys()
    effect = (wanted - logits(plain, modality)).abs().max()
    found = logits(merged, modality)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0.1 * effect if "llama" in name else 1e-5)
    assert ("bfloat16" in " ".join(lines)) == ("llama" in name)
    if run.task["name"] == "rte":
        assert merged.config.id2label == {0: "entailment", 1: "not_entailment"}


@pytest.mark.parametrize(("name", "form"), TIED.items())
def test_nothing_is_merged_into_a_weight_that_is_the_embeddings_too(name, form, runs, tmp_path, cache):
    _, _, folder = runs(name)
    with pytest.raises(AdapterError, match=f"^lm_head has a weight that another module has too.*--to {form}$"):
        export(folder, tmp_path / "out", "merged", overrides=[f"cache_dir={cache}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama", "llama ia3"])
def test_a_merged_weight_that_is_not_finite_is_refused(name, runs, tmp_path, cache, monkeypatch):
    _, _, folder = runs(name)
    load = module._load

    def overflowing(*given):
        backbone = load(*given)
        for key, parameter in backbone.model.named_parameters():
            if "ia3_l" in key or key.endswith(".b"):
                parameter.data.fill_(torch.inf)
        return backbone

    monkeypatch.setattr(module, "_load", overflowing)
    with pytest.raises(AdapterError, match=r"_proj gives weights that are not finite in torch\.bfloat16"):
        export(folder, tmp_path / "out", "merged", overrides=[f"cache_dir={cache}"])


def test_a_configuration_of_the_run_s_own_is_said_or_refused(runs, tmp_path, cache):
    place = [f"cache_dir={cache}"]
    for form in ("lora", "peft"):
        with pytest.raises(NoSuchForm, match=r"model\.config\.hidden_act is the run's.*; --to merged holds it"):
            export(runs("relu")[2], tmp_path / "relu", form, overrides=place)
        export(runs("dropout")[2], tmp_path / form, form, overrides=place)
        assert "| model.config | hidden_dropout_prob: 0.3 |" in (tmp_path / form / "README.md").read_text()
    _, form = publish._exported(None, runs("relu")[2], tmp_path / "relu", None, None, None, place)
    assert form == "merged" and "| model.config | hidden_act: relu |" in (tmp_path / "relu" / "README.md").read_text()
    unmerged = build({**choice("method", "vblora")}, "method")
    with pytest.raises(ConfigError, match=r"model\.config\.hidden_act .*method=vblora cannot be merged") as caught:
        module._check(runs("relu")[0], unmerged, "peft")
    assert not isinstance(caught.value, NoSuchForm)  # so that publish looks for no other form


@pytest.mark.parametrize("name", ["llama", IN_BITS])
def test_an_adapter_says_how_its_backbone_was_held_and_the_card_opens_it_there(name, runs, tmp_path, cache):
    """In bf16, or in 4 bits, whatever the dtype of the checkpoint's files is."""
    if name == IN_BITS:
        pytest.importorskip("bitsandbytes")
    run, record, folder = runs(name)
    said = {"llama": "bfloat16", IN_BITS: "nf4"}[name]
    for form, rank in (("lora", None), ("lora", 2), ("peft", None)):
        out = tmp_path / f"{form}{rank}"
        (line, *_) = export(folder, out, form, rank, overrides=[f"cache_dir={cache}"])
        assert line.endswith(f", on the backbone in {said}") and ("exact" in line) == (form == "lora" and rank is None)
        (row,) = (row for row in (out / "README.md").read_text().splitlines() if row.startswith("| its weights |"))
        assert said in row and ("bnb_4bit_use_double_quant=True" in row) == (said == "nf4")
    made = module.read_record(record)
    source = tmp_path / "half"
    model = build(run.model, "model")
    AutoModelForCausalLM.from_pretrained(model.source(cache), dtype=torch.float16).save_pretrained(source)
    found, task = {}, build(run.task, "task")
    exec(publish._use("lora", str(tmp_path / "loraNone"), str(source), task, model), found)
    for layer in found["model"].modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # no other packing of the weights, which takes no model as tiny as this
    backbone = model.load(task.outputs, cache)
    before = logits(backbone.model, "generation")
    build(run.method, "method").load(backbone, model, folder / "best")
    wanted = logits(backbone.model, "generation")
    effect = (wanted - before).abs().max()
    torch.testing.assert_close(logits(found["model"], "generation"), wanted, rtol=1e-4, atol=0.01 * effect)
    frozen = [{p.dtype for p in each.parameters() if p.dtype != torch.float32} for each in (found["model"], backbone.model)]
    assert frozen[0] == frozen[1] != set()
    card = publish.card(made, Store(tmp_path), "me/x", "best", "lora", "---\n\n# x\n", None)
    assert f", with the backbone in {said}; nothing is in percent." in card


def test_a_cut_is_the_nearest_matrix_of_its_rank_and_says_what_is_lost(runs, tmp_path, cache):
    draw = torch.Generator().manual_seed(0)
    A, B = torch.randn(6, 9, generator=draw), torch.randn(12, 6, generator=draw)
    values = torch.linalg.svdvals(B @ A)
    new_A, new_B, lost = cut(A, B, 2)
    assert new_A.shape == (2, 9) and new_B.shape == (12, 2)
    torch.testing.assert_close((B @ A - new_B @ new_A).norm(), values[2:].norm())
    assert lost == pytest.approx((values[2:].norm() / values.norm()).item(), rel=1e-5)
    wide_A, wide_B, nothing = cut(A[:, :3], B, 5)  # of rank 3
    torch.testing.assert_close(wide_B @ wide_A, B @ A[:, :3])
    assert wide_A.shape == (5, 3) and nothing < 1e-6

    run, _, folder = runs("vera")
    (_, line) = export(folder, tmp_path / "cut", "lora", rank=2, overrides=[f"cache_dir={cache}"])
    tensors = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert {len(value) for name, value in tensors.items() if "lora_A" in name} == {2}
    assert f"cut from rank {run.method['rank']} to 2" in line and "% of" in line
    assert PeftConfig.from_pretrained(tmp_path / "cut").lora_alpha == 2


def test_a_cut_of_gpt2_is_of_the_fused_matrix_and_has_the_rank_asked_for(runs, tmp_path, cache):
    run, _, folder = runs("gpt2 tied")  # query and value in c_attn, and a matrix of its own beside
    updates, rank = {}, run.method["rank"]
    for asked in (None, rank + 1):  # more than lm_head has
        out = tmp_path / str(asked)
        export(folder, out, "lora", rank=asked, overrides=[f"cache_dir={cache}"])
        tensors = load_file(out / "adapter_model.safetensors")
        names = [name for name in tensors if "lora_A" in name]
        updates[asked] = {name: tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for name in names}
        if asked:
            assert {len(tensors[name]) for name in names} == {asked} and sum("c_attn" in name for name in names) == len(
                names
            ) - 1
            plain = own(run, folder)[1]
            peft = PeftModel.from_pretrained(plain, out)
    config = PeftConfig.from_pretrained(out)
    assert (config.r, config.lora_alpha, config.rank_pattern) == (rank + 1, rank + 1, {})
    for name, whole in updates[None].items():
        values = torch.linalg.svdvals(whole)
        torch.testing.assert_close((whole - updates[asked][name]).norm(), values[asked:].norm(), rtol=1e-3, atol=1e-6)
        layer = peft.get_submodule(name.removesuffix(".lora_A.weight"))
        W = layer.get_delta_weight("default")
        torch.testing.assert_close(W if W.shape == whole.shape else W.T, updates[asked][name], rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match=f"--rank {2 * rank + 1}: this adapter's rank is {2 * rank};"):
        export(folder, tmp_path / "more", "lora", rank=2 * rank + 1, overrides=[f"cache_dir={cache}"])


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_readme_says_how_a_pair_is_read_and_the_folder_s_tokenizer_does_it(family, tmp_path, cache):
    """GPT-2's tokenizer puts nothing between two texts, so that a pair is one text; both kinds cut some rows here."""
    places = [f"cache_dir={cache}", f"results_dir={tmp_path / 'results'}", f"work_dir={tmp_path / 'work' / 'results'}"]
    chosen = ["model=auto_text", f"model.tiny.family={family}", "task=rte", "method=full", "task.max_length=16"]
    chosen += ["~model.tiny.intermediate_size"] * (family == "gpt2")
    run = compose_run([*REHEARSAL, *KEYS, *places, *chosen])
    record = execute(run)
    export(Store(run.results_dir).path(record.name), tmp_path / "out", "merged", overrides=[f"cache_dir={cache}"])
    said = re.search(r"^\| input \| (.*) \|$", (tmp_path / "out" / "README.md").read_text(), re.M)[1]
    assert ("pairs" in record.provenance.notes) == (family == "gpt2") == ("a pair is one text" in said)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    _, _, task, data = prepare(run)
    rows = task.read()[0]["validation"]
    assert len(rows) == len(data.evaluation) and record.provenance.notes["truncated"]
    for (texts, _), example in zip(rows, data.evaluation, strict=True):
        first, second = texts
        names = {"tokenizer": tokenizer, "texts": texts, "first": first, "second": second}
        whole, *cut_ones = (eval(call, names)["input_ids"] for call in re.findall(r"tokenizer\(.*?\)(?=$|,| or)", said))
        assert example["input_ids"] == (cut_ones[0] if cut_ones and len(whole) > 16 else whole)
        if family == "bert":
            assert example["input_ids"] == tokenizer(first, second, truncation=True)["input_ids"]


def test_the_command_from_a_folder_says_whose_weights_these_are_and_no_path(runs, cache, monkeypatch, capsys):
    run, record, folder = runs("gpt2 vera")
    command = [f"work/results/{folder.name}", "out", "--to", "lora", f"cache_dir={cache}"]
    monkeypatch.chdir(folder.parents[2])
    status = command_line("export", command)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    out = folder.parents[2] / "out"
    assert printed.out.startswith("out: LoRA of rank ") and sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    readme = (out / "README.md").read_text()
    found = json.loads(record.read_text())
    for value in (run.run_name, run.cell_id, found["provenance"]["model_fingerprint"], "tiny random", "| seed | 0 |"):
        assert value in readme
    for file in out.iterdir():
        for path in (str(cache), str(folder.parents[2]), str(ROOT)):
            assert path.encode() not in file.read_bytes()
    shutil.rmtree(out)


def test_the_base_models_id_and_commit_go_along(runs, tmp_path, cache, monkeypatch):
    run, record, folder = runs("gpt2 lora")
    found = module.read_record(record)
    commit = "0" * 40
    provenance = found.provenance.model_copy(update={"model_source": run.model["checkpoint"], "model_commit": commit})
    monkeypatch.setattr(module, "read_record", lambda path: found.model_copy(update={"provenance": provenance}))
    export(record, tmp_path / "out", "lora", work=folder.parent, overrides=[f"cache_dir={cache}"])
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("openai-community/gpt2-medium", commit)
    readme = (tmp_path / "out/README.md").read_text()
    assert readme.startswith("---\nbase_model: openai-community/gpt2-medium\nlibrary_name: peft\n---\n") and commit in readme
    asked = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, **keys: asked.append((name, keys)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # PEFT asks the hub for that model
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert asked[0][0] == "openai-community/gpt2-medium"


def test_bad_input_is_one_line_and_leaves_nothing(runs, tmp_path, cache):
    run, record, folder = runs("vera")
    place = [f"cache_dir={cache}"]
    out = tmp_path / "out"

    def refused(error, words, *arguments, **keys):
        with pytest.raises(error, match=words):
            export(*arguments, **{"overrides": place, **keys})
        assert list(tmp_path.iterdir()) == before

    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "note.txt").touch()
    before = list(tmp_path.iterdir())
    refused(ConfigError, "is not a run's folder: it has neither best/ nor last/", tmp_path / "empty", out, "lora")
    refused(ConfigError, "is neither a run's folder nor its record", tmp_path / "note.txt", out, "lora")
    refused(ConfigError, "nowhere does not exist", tmp_path / "nowhere", out, "lora")
    refused(ConfigError, f"--rank 9999: this adapter's rank is {run.method['rank']};", folder, out, "lora", rank=9999)
    refused(ConfigError, "--rank 0", folder, out, "lora", rank=0)
    refused(ConfigError, "--rank cuts a LoRA; with --to merged", folder, out, "merged", rank=2)
    refused(ConfigError, "full is there already", folder, tmp_path / "full", "lora")
    refused(ConfigError, "is the last epoch, not the best one", folder / "last", out, "lora", checkpoint="best")
    refused(RecordError, "no record of the run .* --results DIR", folder, out, "lora", results=tmp_path / "empty")
    refused(ModelError, "holds no trained weights; was it trained with train.save=true", record, out, "lora", work=tmp_path)
    refused(ConfigError, "cannot be written as a LoRA here", runs("full")[2], out, "lora")
    refused(ConfigError, "PEFT has no format for method=full", runs("full")[2], out, "peft")
    refused(ConfigError, "is not known to leave a plain model.*not merged", runs("adapter")[2], out, "merged")
    refused(ConfigError, "cannot be written as a LoRA here", runs("gpt2 ia3")[2], out, "lora")
    refused(ConfigError, "PEFT's LORA cannot say what this run has on GPT-2's attention", runs("gpt2 dora")[2], out, "peft")
    refused(ConfigError, "method=p_tuning is not known to leave a plain model", runs("p_tuning")[2], out, "merged")
    refused(ConfigError, "method=vblora is merged by PEFT alone: .* --to peft", runs("vblora")[2], out, "merged")
    refused(ConfigError, "PEFT's VeRA cannot say .*--to lora", runs("gpt2 vera")[2], out, "peft")
    refused(ConfigError, "PEFT's VeRA has no init=kaiming_normal .*--to lora", runs("vera variant")[2], out, "peft")
    broken = tmp_path / "work" / folder.name
    shutil.copytree(folder, broken)
    weights = broken / "best/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    before = list(tmp_path.iterdir())
    refused(ModelError, "holds the weights of another run", record, out, "lora", work=tmp_path / "work")


def test_the_work_folder_of_a_results_folder(tmp_path, monkeypatch):
    """As the runs had it: relative results below work/, absolute ones with their work below; named otherwise later as well."""
    monkeypatch.chdir(tmp_path)
    assert work_of("results") == Path("work/results")
    assert work_of(tmp_path / "results") == tmp_path / "results" / "work"
    (tmp_path / "work" / "results").mkdir(parents=True)
    assert work_of(tmp_path / "results") == tmp_path / "work" / "results"
    (tmp_path / "results" / "work").mkdir(parents=True)
    assert work_of(tmp_path / "results") == tmp_path / "results" / "work"


NAMED = {
    "exp1/results": "work/exp1/results",
    "results/tune": "work/results/tune",
    "exp/work": "work/exp/work",
    "../out": "../out/work",
    "../clone/results": "results/work",
    ".": "work",
}


@pytest.mark.parametrize("named", NAMED)
def test_weights_are_found_by_their_record_whatever_the_results_were_called(named, tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    clone.mkdir()
    monkeypatch.chdir(clone)
    work = Path(compose_run([f"results_dir={named}"]).work_dir)
    (work / "run" / "best").mkdir(parents=True)
    assert work.resolve() == (clone / NAMED[named]).resolve()
    (Path(named) / "work" / "another").mkdir(parents=True, exist_ok=True)
    for given in (Path(named), Path(named).absolute(), Path(named).resolve()):
        assert work_of(given, "run").samefile(work)
    asked = []
    monkeypatch.setattr(module, "Store", lambda root: asked.append(root) or SimpleNamespace(find=lambda name: None))
    with pytest.raises(RecordError, match="no record of the run run"):
        module.find(work / "run", None, None, None)
    assert any(root.resolve() == (clone / named).resolve() for root in asked)
