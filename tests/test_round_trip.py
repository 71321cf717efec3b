"""Every method through training, saving and loading again: into a fresh model of this project, and into plain PEFT."""

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import own_methods
from vera.config import build
from vera.errors import ConfigError, ModelError
from vera.run import prepare
from vera.seeds import seed_everything

METHODS = own_methods()
PEFT = ["lora", "lora_fa", "dylora", "adalora", "ia3", "vera", "vera_budget"]
assert set(PEFT) <= set(METHODS)
TASKS = {"roberta_base": "rte", "vit_base": "cifar100", "gpt2_medium": "e2e", "llama2_7b": "alpaca"}
STEPS = 12
# AdaLoRA prunes at every step, and half of its steps come after its last pruning.
KEYS = {"adalora": ["method.interval=1", "method.warmup=0.1", "method.final=0.5"]}
MODEL_KEYS = {"gpt2_medium": ["task.synthetic=true"], "llama2_7b": ["model.quantisation=none"]}


@pytest.fixture
def trained(compose, tmp_path):
    """A method trained on a tiny model beyond its schedule and saved: config, folder, inputs, logits."""

    def make(method, model, *overrides):
        keys = [*KEYS.get(method, []), *MODEL_KEYS.get(model, []), *overrides]
        run = compose(f"method={method}", f"model={model}", f"task={TASKS[model]}", *keys)
        backbone, built, _, data = prepare(run)
        batch = data.collate([data.train[0], data.train[1]])
        inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "pixel_values")}
        adapter, head = built.parameter_groups(backbone).values()
        optimizer = torch.optim.Adam([parameter for _, parameter in adapter + head], lr=0.05)
        backbone.model.train()
        for step in range(STEPS):
            built.on_step(backbone, step, STEPS, 1e-3)
            loss = backbone.model(**inputs).logits.float().square().mean()
            penalty = built.penalty(backbone)
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()
            optimizer.step()
            built.after_step(backbone, step, STEPS)
        built.save(backbone, tmp_path / "best")
        return run, tmp_path / "best", inputs, logits(backbone.model, inputs)

    return make


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits.float()


def fresh(run, outputs):
    model_config = build(run.model, "model")
    seed_everything(run.seed + 1, "head")
    return model_config.load(outputs, run.cache_dir), model_config


def outputs_of(model, wanted):
    return 0 if model in ("gpt2_medium", "llama2_7b") else wanted.shape[-1]


def trained_or_skipped(method, model, trained):
    try:
        return trained(method, model)
    except (ConfigError, ModelError) as error:  # such as the head of a language model, which has none to train
        if model in ("gpt2_medium", "llama2_7b") and re.search("trains nothing|no transformer blocks", str(error)):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("model", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_method_loads_into_a_fresh_model_and_opens_in_plain_peft(method, model, trained, tmp_path):
    run, folder, inputs, wanted = trained_or_skipped(method, model, trained)
    backbone, model_config = fresh(run, outputs_of(model, wanted))
    before = logits(backbone.model, inputs)
    built = build(run.method, "method")
    built.load(backbone, model_config, folder)
    found = logits(backbone.model, inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 1e-3
    built.save(backbone, tmp_path / "again")  # what was loaded is the whole of what was trained
    ours, again = load_file(next(folder.glob("*.safetensors"))), load_file(next((tmp_path / "again").glob("*.safetensors")))
    assert ours.keys() == again.keys() and all(torch.equal(ours[name], again[name]) for name in ours)
    if method in PEFT:
        opens_in_plain_peft(method, model, run, folder, inputs, wanted)


def opens_in_plain_peft(method, model, run, folder, inputs, wanted):
    if model == "gpt2_medium":  # as transformers alone has it, with its attention in one matrix
        plain = AutoModelForCausalLM.from_pretrained(build(run.model, "model").source(run.cache_dir))
    else:
        plain = fresh(run, outputs_of(model, wanted))[0].model
    if method.startswith("vera") and model == "gpt2_medium":
        with pytest.raises(ValueError):
            PeftModel.from_pretrained(plain, folder)
        assert "attention split" in (folder / "README.md").read_text()
        return
    before = logits(plain, inputs)
    found = logits(PeftModel.from_pretrained(plain, folder), inputs)
    effect = (wanted - before).abs().max()
    half = next(plain.parameters()).dtype == torch.bfloat16  # the last digits of the two libraries differ there
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0.01 * effect if half else 1e-5)
    assert effect > 1e-3


def test_adalora_keeps_what_was_pruned(trained):
    run, folder, *_ = trained("adalora", "gpt2_medium")
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    kept = [sum(rows) for rows in pattern.values()]
    assert len(pattern) == 2 and all(len(rows) == 2 * run.method["initial_rank"] for rows in pattern.values())
    assert sum(kept) == 4 * run.method["rank"] and set(kept) != {2 * run.method["initial_rank"]}
    backbone, model_config = fresh(run, 0)
    built = build(run.method, "method")
    built.load(backbone, model_config, folder)
    for layer in built.layers(backbone).values():
        assert len(layer.lora_E["default"]) == run.method["initial_rank"], "a loaded model can be trained as before"


def damage(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_a_fused_file_that_no_parts_make_is_refused(trained):
    run, folder, *_ = trained("lora", "gpt2_medium")

    def mix(tensors):
        name = next(name for name in tensors if name.endswith("lora_B.weight"))
        tensors[name] = torch.ones_like(tensors[name])

    damage(folder, mix)
    backbone, model_config = fresh(run, 0)
    with pytest.raises(ModelError, match=r"lora_B.weight is not what adapters of query, value apart make"):
        build(run.method, "method").load(backbone, model_config, folder)


def test_a_rank_pattern_that_does_not_fit_is_refused(trained):
    run, folder, *_ = trained("adalora", "roberta_base")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    name, rows = next(iter(config["rank_pattern"].items()))
    for value in ([not row for row in rows] + [True], "no", [1.0]):
        path.write_text(json.dumps({**config, "rank_pattern": {name: value}}))
        backbone, model_config = fresh(run, 2)
        with pytest.raises(ModelError, match="rank_pattern"):
            build(run.method, "method").load(backbone, model_config, folder)
