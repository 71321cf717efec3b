"""Configs compose, unknown keys are errors, and a run's identity is what it should be and stays what it was."""

import json
from pathlib import Path

import pytest
import yaml

from vera.config import CONF_DIR, OPERATIONAL, beside, build, cell_id, choices, compose, younger
from vera.errors import ConfigError

FITTING_TASK = {
    "TextClassifier": ["task=rte"],
    "ImageClassifier": ["task=cifar100"],
    "Llama": ["task=alpaca"],
    "Gpt2": ["task=e2e"],
}
GOLDEN = json.loads((Path(__file__).parent / "golden_cells.json").read_text())


@pytest.mark.parametrize("group", ["model", "task", "method"])
def test_every_yaml_is_called_what_it_says_and_builds(group):
    for name in choices(group):
        settings = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())
        assert settings["name"] == name
        task = FITTING_TASK.get(settings["_target_"].rpartition(".")[2], [])
        composed = getattr(compose([f"{group}={name}", *task]), group)
        assert build(composed, group).name == name


def test_every_recipe_belongs_to_a_method_and_a_model():
    for recipe in choices("recipe"):
        assert any(recipe == f"{method}_{model}" for method in choices("method") for model in choices("model")), recipe


@pytest.mark.parametrize("overrides", sorted(GOLDEN))
def test_golden_identities(overrides):
    """A change here orphans every record of that cell. Give a new key a neutral default, or raise the yaml's version."""
    assert compose(overrides.split()).cell_id == GOLDEN[overrides]


def test_seed_path_device_and_launcher_are_not_part_of_the_identity():
    base = compose(["model=roberta_base", "task=rte"])
    for change in (
        "seed=3",
        "device=cpu",
        "model.path=/x",
        "task.data_dir=/y",
        "results_dir=/z",
        "cache_dir=/c",
        "tracker=wandb",
        "progress=true",
        "train.micro_batch_size=4",
        "train.eval_batch_size=7",
        "train.checkpoint_seconds=1",
        "train.save=false",
        "hydra/launcher=basic",
    ):
        assert compose(["model=roberta_base", "task=rte", change]).cell_id == base.cell_id, change


def test_science_is_part_of_the_identity():
    seen = {compose(["model=roberta_base", "task=rte"]).cell_id}
    for change in (
        "method.rank=8",
        "method.d_init=1.0",
        "method.projection_seed=0",
        "method.targets=[query]",
        "train.lr=0.5",
        "train.max_steps=3",
        "train.batch_size=32",
        "train.precision=fp32",
        "task.max_length=64",
        "task=mrpc",
        "model=roberta_large",
        "method=lora",
    ):
        found = compose(["model=roberta_base", "task=rte", change]).cell_id
        assert found not in seen, change
        seen.add(found)


def test_a_projection_seed_that_follows_is_one_cell_and_a_fixed_one_another():
    follows = [compose([f"seed={seed}"]) for seed in range(3)]
    assert len({run.cell_id for run in follows}) == 1
    assert [run.method["projection_seed"] for run in follows] == [0, 1, 2]
    fixed = {compose([f"seed={seed}", "method.projection_seed=0"]).cell_id for seed in range(3)}
    assert len(fixed) == 1 and fixed != {follows[0].cell_id}


def test_a_new_key_at_its_neutral_value_leaves_the_identity_alone():
    config = compose().scientific
    grown = {**config, "method": {**config["method"], "new": "as before", "neutral": {"new": "as before"}}}
    changed = {**config, "method": {**config["method"], "new": "else", "neutral": {"new": "as before"}}}
    version = {**config, "method": {**config["method"], "version": 2}}
    assert cell_id(grown) == cell_id(config)
    assert len({cell_id(changed), cell_id(version), cell_id(config)}) == 3


def test_a_new_key_inside_a_mapping_can_be_neutral_too():
    plain = compose().scientific

    def task(**values):
        return cell_id({**plain, "task": {**plain["task"], **values}})

    neutral = {"decoding": {"search": "old"}}
    assert task(decoding={"beams": 2}) == task(decoding={"beams": 2, "search": "old"}, neutral=neutral)
    assert len({task(), task(decoding={"beams": 2}), task(decoding={"beams": 2, "search": "new"}, neutral=neutral)}) == 3
    assert younger({"decoding": {"beams": 2}}, {**neutral, "format": 1}) == {**neutral, "format": 1}
    assert younger({"decoding": {"search": "new"}, "format": 2}, {**neutral, "format": 1}) == {}
    assert beside({"decoding": {"beams": 2}}, neutral) == {"decoding": {"beams": 2, "search": "old"}}


def test_numbers_that_are_equal_hash_equally():
    assert compose(["train.lr=1"]).cell_id == compose(["train.lr=1.0"]).cell_id == compose(["train.lr=1e0"]).cell_id


def test_operational_keys_exist():
    """Each is a key of some model, task or train yaml."""
    for key in OPERATIONAL:
        group, name = key.split(".")
        assert any(name in yaml.safe_load((CONF_DIR / group / f"{choice}.yaml").read_text()) for choice in choices(group)), key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=veera"], f"method=veera: no such choice; allowed: {', '.join(choices('method'))}"),
        (["train.epoch=3"], "train.epoch is not a key of the configuration; train has: batch_size"),
        (["sead=3"], "sead is not a key of the configuration; top level has"),
        (["train.lr=fast"], "train.lr: input should be a valid number"),
        (["train.epochs=0"], "train.epochs: input should be greater than or equal to 1, got 0"),
        (["train.schedule=step"], "train.schedule: input should be 'linear', 'cosine' or 'constant', got 'step'"),
        (["seed=-1"], "seed: input should be greater than or equal to 0"),
        (["device=tpu"], "device: "),
        (["model=roberta_base", "task=digits"], "no value table8.epochs.digits"),
    ],
)
def test_bad_input_is_one_line_with_the_allowed_values(overrides, message):
    with pytest.raises(ConfigError) as error:
        compose(overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "group", "message"),
    [
        (["method.rank=abc"], "method", "method.rank: input should be a valid integer"),
        (["method.init=normal"], "method", "'kaiming_uniform', 'kaiming_normal' or 'uniform_0_0.1'"),
        (["+method.extra=1"], "method", "method.extra is not a key; allowed: d_init"),
        (["~method.rank"], "method", "method.rank is missing"),
        (["method._target_=os.system"], "method", "not a component"),
        (["method._target_=vera.config.RunConfig"], "method", "not a component; allowed: vera.methods.adalora.AdaLora"),
    ],
)
def test_components_check_their_own_keys(overrides, group, message):
    with pytest.raises(ConfigError) as error:
        build(getattr(compose(overrides), group), group)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_warm_up_is_given_once():
    with pytest.raises(ConfigError, match=r"train.warmup_steps: .* set train.warmup_ratio=0.06 to null, got 500"):
        compose(["train.warmup_steps=500"])
    assert compose(["train.warmup_steps=500", "train.warmup_ratio=null"]).train.warmup_steps == 500
