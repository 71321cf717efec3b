"""Configs compose, unknown keys are errors, and a run's identity is what it should be and stays what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import hydra
import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT
from vera.commands.components import text
from vera.config import (
    CONF_DIR,
    Component,
    Operational,
    Source,
    beside,
    build,
    cell_id,
    choice,
    choices,
    components,
    compose,
    composing,
    marks,
    younger,
)
from vera.config.components import bases, own_target, own_values
from vera.config.composing import recipe
from vera.config.marks import TABLE
from vera.config.paths import readable
from vera.errors import ConfigError

FITTING_TASK = {
    "TextClassifier": ["task=rte"],
    "ImageClassifier": ["task=cifar100"],
    "Llama": ["task=alpaca"],
    "Gpt2": ["task=e2e"],
    "Gpt2Mini": ["task=e2e"],
}
GOLDEN = json.loads((Path(__file__).parent / "golden_cells.json").read_text())


@pytest.mark.parametrize("group", ["model", "task", "method", "tracker"])
def test_every_yaml_is_called_what_it_says_and_its_values_are_typed_as_its_class_types_them(group):
    for name in choices(group):
        target = own_target(group, name) or choice(group, name)["_target_"]
        settings = getattr(compose([f"{group}={name}", *FITTING_TASK.get(target.rpartition(".")[2], [])]), group)
        assert settings["_target_"] == target and (group == "tracker" or settings["name"] == name)
        built = build(settings, group).model_dump(include=settings.keys())
        assert {"_target_": target, **built} == settings


def test_every_recipe_belongs_to_a_method_and_a_model_or_to_recipes_that_begin_from_it():
    found = {recipe(method, model) for method in choices("method") for model in choices("model")}
    begun_from = {base for name in found for base in bases(own_values("recipe", name))}
    assert set(choices("recipe")) <= found | begun_from
    shared = {("adalora", "minilm"): "minilm", ("vera", "gpt2_large"): "vera_gpt2", ("lora", "llama2_7b"): "lora_llama"}
    assert all(recipe(*pair) == name for pair, name in shared.items())
    assert recipe("vera", "gpt2_mini") == "vera_gpt2_mini" and recipe("vera", "gpt3") == "vera_gpt3"  # which is no GPT-2


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

    def task(neutral=None, **values):
        here = plain["task"]
        return cell_id({**plain, "task": {**here, **values, "neutral": {**here["neutral"], **(neutral or {})}}})

    neutral = {"decoding": {"search": "old"}}
    assert task(decoding={"beams": 2}) == task(decoding={"beams": 2, "search": "old"}, neutral=neutral)
    assert len({task(), task(decoding={"beams": 2}), task(decoding={"beams": 2, "search": "new"}, neutral=neutral)}) == 3
    assert younger({"decoding": {"beams": 2}}, {**neutral, "format": 1}) == {**neutral, "format": 1}
    assert younger({"decoding": {"search": "new"}, "format": 2}, {**neutral, "format": 1}) == {}
    assert beside({"decoding": {"beams": 2}}, neutral) == {"decoding": {"beams": 2, "search": "old"}}


def test_equal_values_are_one_run_however_they_are_spelt(monkeypatch):
    monkeypatch.setenv("RANK_OF_MINE", "4")
    ranks = ["4", "'4'", "4.0", "${oc.env:RANK_OF_MINE}"]
    runs = [compose([f"method.rank={rank}"]) for rank in ranks]
    assert len({run.cell_id for run in runs}) == 1 and {repr(run.method["rank"]) for run in runs} == {"4"}
    rates = [compose([f"train.lr={rate}", f"method.d_init={rate}"]) for rate in ("1", "1.0", "1e0", "'1'")]
    assert len({run.cell_id for run in rates}) == 1
    nested = [compose(["method=head", f"model.pretrain.epochs={epochs}"]) for epochs in ("7", "'7'", "7.0")]
    assert len({run.cell_id for run in nested}) == 1


@pytest.mark.parametrize(
    "override",
    [
        "method.rank=true",
        "train.epochs=true",
        "train.betas=[true,0.9]",
        "seed=true",
        "model.pretrain.epochs=true",
        "task.classes=[1,true]",
    ],
)
def test_a_truth_value_is_no_number(override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}[.\d]*: a truth value is no number"):
        compose([override])


def test_the_fields_that_are_known_without_torch_are_those_of_the_classes():
    """`python scripts/components.py` writes the file."""
    assert TABLE.read_text() == text(), "run python scripts/components.py"


def test_a_class_may_move_and_a_new_one_hashes_nothing():
    """The spelling of a class is hashed for the classes whose records had it, as it was then, and for no other."""
    for overrides, golden in GOLDEN.items():
        config = compose(overrides.split()).scientific
        follows = ["method.projection_seed"] if "projection_seed" in config["method"] else []
        moved = {
            group: {
                **values,
                **({"_target_": "new.place." + values["_target_"].rpartition(".")[2]} if "_target_" in values else {}),
            }
            for group, values in config.items()
        }
        assert cell_id(moved, follows) == golden
    config = compose().scientific
    fresh = [{**config, "method": {**config["method"], "_target_": name}} for name in ("vera.methods.fresh.Fresh", "x.Moved")]
    assert cell_id(fresh[0]) == cell_id(fresh[1]) != cell_id(config)


def test_a_component_under_the_name_of_another_is_refused():
    with pytest.raises(ConfigError, match=r"method.name=lora is conf/method/lora.yaml's; vera.methods.lora_fa.LoraFA needs"):
        compose(["method=lora_fa", "method.name=lora"])
    assert compose(["method=lora_fa", "method.name=mine"]).run_name.startswith("digits_vit--digits--mine--")
    for overrides in (["method=adapter_h", "method.name=adapter_p"], ["model=vit_base", "task=cifar100", "task.name=food101"]):
        with pytest.raises(
            ConfigError, match=r"\.name=(\w+) is conf/\w+/\1.yaml's: choose \w+=\1, or give \w+ a name of its own"
        ):
            compose(overrides)
    assert compose(["method=adapter_h", "method.name=adapter_h"]).cell_id == compose(["method=adapter_h"]).cell_id


@pytest.mark.parametrize("override", ["method.version=2", "+train.neutral.lr=0.5", "++model.neutral.path=1", "~train.neutral"])
def test_which_records_stay_valid_is_not_said_on_the_command_line(override):
    with pytest.raises(ConfigError, match="version and neutral are for the yaml's author"):
        compose([override])


class Paths(Component):
    """A task that is not in components.json, with a path and a setting of its own."""

    rows: int
    corpus: Annotated[str | None, Source] = None
    threads: Annotated[int, Operational] = 1


def test_a_class_of_ones_own_says_itself_what_is_not_hashed(monkeypatch):
    from vera.config import components

    config = compose().scientific
    monkeypatch.setattr(components, "targets", lambda group: frozenset({"tests.test_config.Paths"}))
    settings = {"_target_": "tests.test_config.Paths", "name": "paths", "version": 1, "rows": "3", "corpus": "/x", "threads": 2}
    assert components.normalised(settings, "task")["rows"] == 3
    left_out = [f"task.{key}" for key in components.group_marks(settings, "task")]
    one, other = ({**config, "task": {**settings, "corpus": path, "threads": n}} for path, n in (("/x", 2), ("/y", 9)))
    assert cell_id(one, (), left_out) == cell_id(other, (), left_out) != cell_id(one) != cell_id(other)


def test_marked_keys_are_keys_of_some_yaml():
    for group in ("model", "task"):
        keys = {key for target in components.targets(group) for key in marks(group, target)} - {"neutral"}
        assert keys and keys <= {key for name in choices(group) for key in own_values(group, name)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+learning_rate=0.5", "learning_rate is not a key of the configuration; top level has: cache_dir"),
        ("++epochs=99", "epochs is not a key of the configuration"),
        ("+unhashed=[method.rank]", "unhashed is not a key of the configuration"),
        ("+follows_seed=[method.rank]", "follows_seed is not a key of the configuration"),
        ("+a.b.c=1", "a.b.c is not a key"),
        ("+train.foo=1", "train.foo is not a key; allowed: batch_size"),
        ("+method.foo=1", "method.foo is not a key; allowed: d_init"),
        ("+model.pretrain.foo=1", "model.pretrain.foo is not a key; allowed: batch_size"),
        ("+task.facts.foo=1", "task.facts.foo is not a key"),
        ("+tracker.foo=1", "tracker.foo is not a key"),
        ("+answers.foo=1", "answers.foo is not a key of the configuration; answers has no such key"),
        (
            "train.lr=1e-3,1e-2",
            "a sweep over several values: train and answer take them with -m, other commands one;",
        ),
    ],
)
def test_what_nothing_reads_is_refused(override, message):
    with pytest.raises(ConfigError) as error:
        compose([override])
    assert message in str(error.value)


def test_a_key_that_another_value_refers_to_is_read():
    assert compose(["+mine=0.25", "train.lr=${mine}"]).train.lr == 0.25
    assert compose(["+answers.lr=0.25", "train.lr=${answers.lr}"]).train.lr == 0.25
    assert compose(["answers=mt_bench", "+answers.decoding.search=hu2022"]) == compose()  # scripts/answer.py's
    assert compose(["model=roberta_base", "task=rte", "table8.lr.rte=0.5"]).train.lr == 0.5
    with pytest.raises(ConfigError, match=r"table8.lrr is not a key"):
        compose(["model=roberta_base", "task=rte", "+table8.lrr=1"])
    mine = [f"+table8.{key}.mine=1" for key in ("lr", "head_lr", "epochs")]
    assert compose(["model=roberta_base", "task=rte", "task.name=mine", *mine]).train.lr == 1


def test_a_value_that_is_the_seed_follows_it_at_any_depth():
    ways = ["${seed}", "${ seed }", "${method.projection_seed}"]
    for way in ways:
        runs = [compose([f"seed={seed}", f"model.pretrain.seed={way}"]) for seed in (0, 7)]
        assert len({run.cell_id for run in runs}) == 1 and [run.model["pretrain"]["seed"] for run in runs] == [0, 7]
        assert runs[0].with_seed(7) == runs[1]
    fixed = compose(["seed=7", "model.pretrain.seed=7"])
    assert fixed.cell_id != runs[1].cell_id
    assert compose(["train.epochs=3"]).cell_id == compose(["train.epochs=3", "task.facts.tokens=${seed}"]).cell_id
    with pytest.raises(ConfigError, match=r"task.name is made from the seed \(mine-0 at seed 0\)"):
        compose(["task.name=mine-${seed}"])


def test_a_malformed_yaml_hurts_its_own_choice_alone(tmp_path, monkeypatch):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "vera", project / "vera", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONF_DIR, project / "conf")
    (project / "conf" / "method" / "broken.yaml").write_text(
        "_target_: vera.methods.vera.Vera\nname: broken\ntargets: [query\n"
    )
    (project / "conf" / "method" / "derived.yaml").write_text("defaults: [vera, _self_]\nname: derived\nrank: 4\n")
    (project / "conf" / "method" / "nowhere.yaml").write_text("_target_: vera.methods.nowhere.No\nname: nowhere\nversion: 1\n")
    (project / "conf" / "recipe" / "head_digits_vit.yaml").write_bytes(b"train: {lr: 1}\n\xff\n")
    script = """if True:
        from vera.config import choice, compose
        from vera.errors import ConfigError
        for method in ("lora", "derived", "broken", "head", "nowhere"):
            try:
                print(compose([f"method={method}"]).method["name"])
            except ConfigError as error:
                print("error:", error)
        print(choice("method", "derived")["_target_"], choice("method", "derived")["projection_seed"])
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["lora", "derived"] and lines[5] == "vera.methods.vera.Vera ${seed}", done.stdout + done.stderr
    assert lines[2].startswith("error: conf/method/broken.yaml, line 4: ")
    assert lines[3] == "error: conf/recipe/head_digits_vit.yaml is not UTF-8"
    assert lines[4].startswith("error: method._target_: vera.methods.nowhere.No cannot be imported: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=veera"], f"method=veera: no such choice; allowed: {', '.join(choices('method'))}"),
        (["chat=vicuna"], "chat is chosen as chat@answers.chat=, one of alpaca, vicuna"),
        (["train.epoch=3"], "train.epoch is not a key of the configuration; train has: batch_size"),
        (
            ["method.ranks=3"],
            "method.ranks is not a key of the configuration; the choices of method have, between them: ",
        ),
        (["sead=3"], "sead is not a key of the configuration; top level has"),
        (["train.lr=fast"], "train.lr: input should be a valid number"),
        (["train.epochs=0"], "train.epochs: input should be greater than or equal to 1, got 0"),
        (["train.schedule=step"], "train.schedule: input should be 'linear', 'cosine' or 'constant', got 'step'"),
        (["seed=-1"], "seed: input should be greater than or equal to 0"),
        (["device=tpu"], "device: "),
        (["results_dir="], "results_dir: string should have at least 1 character, got ''"),
        (["results_dir=null"], "results_dir: input should be a valid string, got None"),
        (["results_dir=7"], "results_dir: input should be a valid string, got 7"),
        (["train.lr=null", "train.head_lr=null"], "train.lr: input should be a valid number, got None (and 1 more)"),
        (["work_dir="], "work_dir: string should have at least 1 character"),
        (["cache_dir="], "cache_dir: string should have at least 1 character"),
        (["models_dir="], "models_dir: string should have at least 1 character"),
        (["data_root=7", "task=rte", "model=roberta_base"], "data_root: input should be a valid string, got 7"),
        (["claim_timeout=inf"], "claim_timeout: input should be a finite number"),
        (["train.checkpoint_seconds=inf"], "train.checkpoint_seconds: input should be a finite number"),
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


def test_a_recipes_keys_for_another_task_are_left_out():
    run = compose(["model=gpt2_medium", "task=alpaca"])
    assert not {"format", "decoding"} & run.task.keys()
    assert compose(["model=gpt2_medium", "task=e2e"]).task["format"] == "hu2022"
    with pytest.raises(ConfigError, match=r"task\.format is not a key"):
        compose(["model=gpt2_medium", "task=alpaca", "task.format=challenge"])
    with pytest.raises(ConfigError, match="gpt2_medium"):
        compose(["model=gpt2_medium", "task=rte"])
    assert "label_smoothing" in compose(["model=gpt2_medium", "task=alpaca", "~recipe@_global_"]).task


def test_an_unknown_key_deep_inside_names_the_keys_of_its_place():
    from vera.config import Strict, checked

    class Study(Strict):
        by: str

    class Row(Strict):
        study: Study | None = None

    class Published(Strict):
        rows: list[Row]

    with pytest.raises(ConfigError, match=r"rows\.0\.study\.bye is not a key; allowed: by$"):
        checked(Published, {"rows": [{"study": {"by": "a", "bye": 1}}]})
    with pytest.raises(ConfigError, match=r"rows\.1\.studies is not a key; allowed: study$"):
        checked(Published, {"rows": [{}, {"studies": None}]})


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=roberta_large", "task=rte", "method=vera", "seed=3", "train.lr=1e-3", "train.lr=2e-3"],
        ["method.targets=[query]", "train.betas=[0.8,0.9]", "model.path='a b'", "method.d_init=null", "scale=rehearsal"],
        ["sweep=ablations", "scale=mini", "+mine=0.25", "train.lr=${mine}"],
        ["model=gpt2_mini", "task=e2e", "task.decoding={beams: 3}", "model.pretrain.epochs=7", "answers=mt_bench"],
        ["~train.neutral", "++train.lr=1", "method='vera'", "hydra.job.chdir=true"],
        ["results_dir=${oc.env:HOME}/x", "work_dir=${beside:x,work}"],
    ],
)
def test_values_set_on_a_copy_are_what_hydra_composes(overrides):
    for _ in range(2):  # composed, and from what is kept
        made, wanted = composing._compose(overrides), hydra.compose("run", overrides=overrides)
        assert OmegaConf.to_container(made, resolve=False) == OmegaConf.to_container(wanted, resolve=False)
        assert OmegaConf.is_struct(made) == OmegaConf.is_struct(wanted)


@pytest.mark.parametrize(
    "overrides", [["train.lr=1,2"], ["method=lora,vera"], ["train.nosuch=1"], ["seed=["], ["model.path.x=1"]]
)
def test_what_hydra_refuses_is_refused_in_its_words(overrides):
    composing._compose([])  # initialises Hydra
    said = []
    for compose_ in (composing._compose, lambda given: hydra.compose("run", overrides=given)):
        with pytest.raises(Exception) as error:
            compose_(overrides)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


@pytest.mark.parametrize("given", [[], ["model.size=tiny"], ["scale=paper"]], ids=str)
def test_epochs_on_a_recipe_that_counts_in_steps_are_refused(given):
    run = ["model=gpt2_mini", "task=e2e", "method=lora", *given]
    with pytest.raises(ConfigError, match=r"the recipe ends after 400 steps; give train.max_steps=null with it"):
        compose([*run, "train.epochs=5"])
    assert compose([*run, "train.epochs=5", "train.max_steps=null"]).train.max_steps is None
    assert compose([*run, "train.epochs=5", "train.max_steps=9"]).train.epochs == 5
    assert compose([*run, "train.epochs=5", "scale=rehearsal"]).train.max_steps == 2
    assert compose(["model=minilm", "task=cola", "method=lora", "train.epochs=5"]).train.epochs == 5


def test_a_folder_called_like_a_number_is_a_folder():
    for name in ("2024", "1e5", "-3.5", "nan", "true"):
        run = compose(readable([f"results_dir={name}", f"work_dir={name}", f"data_root={name}"]))
        assert (run.results_dir, run.work_dir) == (name, name)
    assert readable(["data_root=null", "results_dir=2024a", "task.data_dir=7,8"]) == [
        "data_root=null",
        "results_dir=2024a",
        "task.data_dir='7','8'",
    ]


def test_a_yaml_that_was_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    path = tmp_path / "conf" / "model" / "of_mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("checkpoint: null\n_target_: vera.models.gpt2.Gpt2\n")
    assert recipe("lora", "of_mine") == "lora_of_mine"  # nothing to train
    path.write_text("checkpoint: me/mine\n_target_: vera.models.gpt2.Gpt2\n")
    os.utime(path, ns=(1, 1))
    assert recipe("lora", "of_mine") == "lora_gpt2"
    path.write_text("checkpoint: [\n")
    os.utime(path, ns=(2, 2))
    assert recipe("lora", "of_mine") == "lora_of_mine"
    with pytest.raises(ConfigError, match=r"conf/model/of_mine.yaml, line 2: "):
        components.read_yaml(path)
