"""Every committed sweep composes into runs and rehearses, so that it cannot rot."""

import re
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.engine import plan, published, sweeps
from tests.conftest import own_methods
from vera.config import CONF_DIR, choices, compose
from vera.config.memory import composed
from vera.errors import ConfigError
from vera.run import execute

SWEEPS = {sweep.label: sweep for sweep in [*sweeps.sweeps(), *sweeps.own_sweeps()]}


def cells(name: str, *overrides: str) -> list[sweeps.Cell]:
    return sweeps.cells(sweeps.read_sweep(name), overrides)


def chosen(name: str, *overrides: str) -> list[tuple[str, ...]]:
    """The overrides of each cell, without the sweep's name."""
    return [cell.overrides[1:] for cell in cells(name, *overrides)]


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_a_sweep_has_a_card_and_seeds(sweep):
    text = (CONF_DIR / "sweep" / f"{sweep}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ") and "#   needs" in text and "#   expected" in text
    loaded = yaml.safe_load(text)
    assert "seed" in loaded["hydra"]["sweeper"]["params"]
    assert loaded.get("artefacts") or {"model", "task", "method"} <= loaded["hydra"]["sweeper"]["params"].keys()


@pytest.mark.parametrize("label", SWEEPS)
def test_the_cells_of_a_sweep_compose_to_different_runs(label):
    found = sweeps.cells(SWEEPS[label])
    assert len({cell.run.cell_id for cell in found}) == len(found)


def test_a_sweep_runs_the_rows_of_its_table():
    sizes = [("method=adapter_h",), ("method=adapter_h", "method.size=8")]
    assert chosen("glue_large", "method=adapter_h", "task=rte") == [("model=roberta_large", "task=rte", *s) for s in sizes]
    both = chosen("glue_large", "method=lora,vera", "task=cola,rte")
    assert both == [("model=roberta_large", f"task={t}", f"method={m}") for t in ("cola", "rte") for m in ("lora", "vera")]
    assert chosen("glue_large", "model=roberta_base", "method=vera", "task=rte") == [
        ("model=roberta_base", "task=rte", "method=vera")
    ]


def test_every_axis_of_a_sweep_over_rows_can_be_set():
    assert chosen("glue_large", "method=head", "task=rte") == [("model=roberta_large", "task=rte", "method=head")]  # in no row
    assert chosen("e2e", "model=gpt2_mini", "method=lora") == [("model=gpt2_mini", "task=e2e", "method=lora")]
    sizes = chosen("glue_large", "method=adapter_h", "task=rte", "method.size=4,8")  # both rows, at these sizes
    assert [cell[3:] for cell in sizes] == [("method.size=4",), ("method.size=8",)]
    (cell,) = cells("glue_large", "method=vera", "task=rte", "seed=7,8", "train.lr=1e-3")
    assert cell.seeds == (7, 8) and cell.run.train.lr == 1e-3


def test_a_row_that_is_added_needs_nothing_else(tmp_path, monkeypatch):
    for path in published.FOLDER.glob("table*.yaml"):
        text = path.read_text()
        (tmp_path / path.name).write_text(text)
    row = {"label": "VeRA", "model": "roberta_large", "method": "vera", "variant": {"method.init": "kaiming_normal"}}
    table = yaml.safe_load((tmp_path / "table2.yaml").read_text())
    table["rows"].append({**row, "source": "nobody", "cells": dict.fromkeys(table["columns"], "-")})
    (tmp_path / "table2.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    before = chosen("glue_large")
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    new = [cell for cell in chosen("glue_large") if cell not in before]
    assert new == [("model=roberta_large", f"task={t}", "method=vera", "method.init=kaiming_normal") for t in table["columns"]]


VARIANT = """\
train.max_steps: null
train.deterministic: true
train.lr: 1e-3
train.head_lr: 1.0e-3
model.checkpoint: "null"
model.revision: "10"
model.path: it's a {place}, [here]
method.targets: [query, "true", null]
method.settings: {rank: 4, init: "yes"}
"""


def test_a_row_s_settings_reach_hydra_as_its_yaml_has_them(tmp_path, monkeypatch):
    variant = yaml.safe_load(VARIANT)
    row = {"label": "VeRA", "model": "roberta_large", "method": "vera", "variant": variant, "source": "nobody"}
    table = yaml.safe_load((published.FOLDER / "table2.yaml").read_text())
    (tmp_path / "table2.yaml").write_text(yaml.safe_dump({**table, "rows": [row]}, sort_keys=False))
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    asked = OverridesParser.create().parse_overrides(["artefacts=table2", "task=rte"])
    for words in (published.load("table2").rows[0].overrides("rte"), *sweeps.jobs(asked, [])):
        read = [OverridesParser.create().parse_override(word) for word in words[3:]]
        assert {one.key_or_group: one.value() for one in read} == {**variant, "train.lr": 0.001}


def test_a_miniature_is_the_same_rows_at_another_scale():
    mini = ("scale=mini", "artefacts=table6b")
    where = ("model=digits_vit", "task=digits", "method=vera")
    inits = [(f"method.init={init}",) for init in ("kaiming_uniform", "kaiming_normal", "uniform_0_0.1")]
    assert chosen("ablations", *mini) == [(*where, *init, "scale=mini") for init in inits]
    assert chosen("ablations", *mini, "task=mrpc") == chosen("ablations", *mini)  # both of its tasks are the digits here
    assert len(chosen("ablations", "artefacts=[table6b,figure3]", "scale=mini")) == 4
    with pytest.raises(ConfigError, match=r"conf/scale/mini\.yaml\.stands_for: nothing stands for gpt2_medium of table3"):
        cells("e2e", "scale=mini")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["artefacts=table99"], "results/paper has no rows for 'table99'; there are figure2"),
        (["scale=paper,mini"], "a sweep over rows has one scale"),
        (["method=lorra"], "method=lorra: no such choice"),
        (["sweep=demo,e2e"], "sweep=demo,e2e: one sweep at a time"),
        (["sweep=demo", "scale=rehearsal"], "sweep=demo and scale=rehearsal both say where records go: give results_dir="),
        (["task=rte,"], "sweep ablations: "),
    ],
)
def test_a_wrong_choice_is_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        cells("ablations", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", own_methods())
@pytest.mark.parametrize("size", ["base", "large"])
def test_every_method_has_settings_for_every_cell_of_table_2(method, size):
    own = (CONF_DIR / "recipe" / f"{method}_roberta_{size}.yaml").is_file()  # else nothing of them depends on the task
    for task in ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"] if own else ["rte"]:
        composed([f"model=roberta_{size}", f"task={task}", f"method={method}"])


def test_recipes_hold_the_values_of_table_8():
    run = compose(["model=roberta_large", "task=mrpc", "method=vera"])
    assert (run.train.epochs, run.train.lr, run.train.head_lr, run.train.batch_size) == (40, 3e-2, 3e-3, 128)
    assert run.method["rank"] == 256 and run.task["max_length"] == 128 and run.train.warmup_ratio == 0.06
    run = compose(["model=roberta_base", "task=rte", "method=vera"])
    assert (run.train.epochs, run.train.lr, run.train.head_lr, run.train.batch_size) == (160, 4e-3, 1e-2, 64)
    assert run.method["rank"] == 1024 and run.task["max_length"] == 512


def test_an_ablation_shares_its_default_with_the_main_experiment():
    main = compose(["model=roberta_large", "task=rte", "method=vera"]).cell_id
    for artefact in ("table6a", "table6b", "table6c", "table7", "figure2", "figure3"):
        assert main in {cell.run.cell_id for cell in cells("ablations", f"artefacts={artefact}")}, artefact


def test_figure_4_s_baseline_has_vera_s_hyperparameters():
    vera = compose(["model=roberta_large", "task=rte", "method=vera"])
    (cell,) = cells("ablations", "artefacts=figure4", "method=head")
    for key in ("epochs", "batch_size", "head_lr", "schedule", "warmup_ratio"):
        assert getattr(cell.run.train, key) == getattr(vera.train, key), key
    (cell,) = cells("ablations", "artefacts=figure4", "method=head", "scale=mini")
    assert cell.run.train.head_lr == compose(["method=vera"]).train.head_lr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps")  # one for all: a cell that several sweeps share is rehearsed once


def covering(sweep: sweeps.Sweep) -> list[tuple[str, ...]]:
    """Overrides of so few cells that every value of every axis is in one of them; of a number, every key that has one; and one
    method of AnyPeft for all, which tests/test_any_peft.py tries."""
    own = {f"method={name}" for name in own_methods()}
    left = {}
    for cell in sweeps.cells(sweep):
        parts = {re.sub(r"=\d[\d.e+-]*$", "=", part) for part in cell.overrides}
        left[cell.overrides] = {p if p in own or not p.startswith("method=") else "method of AnyPeft" for p in parts}
    chosen = []
    while any(left.values()):
        chosen.append(max(left, key=lambda overrides: len(left[overrides])))
        seen = left[chosen[-1]].copy()
        left = {overrides: parts - seen for overrides, parts in left.items()}
    return chosen


@pytest.mark.parametrize("label", SWEEPS)
def test_rehearsal_of_every_sweep(label, folder, cache, monkeypatch):
    monkeypatch.setattr("vera.tasks.e2e.unavailable", lambda: "Java starts slowly; tests/test_e2e.py has these metrics")
    monkeypatch.setattr("vera.tasks.e2e_metrics.unavailable", lambda: "as above")
    where = [f"cache_dir={cache}", f"results_dir={folder / 'results'}", f"work_dir={folder / 'work'}"]
    for overrides in covering(SWEEPS[label]):
        run = compose([*plan.rehearsal(overrides), "device=cpu", "progress=false", *where])
        assert execute(run).provenance.model_source == "tiny random"


def test_a_sweep_over_a_method_s_key_runs_from_the_command_line(train, tmp_path):
    here = ["sweep=ablations", "artefacts=table6a", "model=digits_vit", "task=digits", "seed=0"]
    done = train(*here)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 3


@pytest.fixture
def own_sweep(tmp_path, monkeypatch):
    """own_sweep(text) writes conf/sweep/own.yaml of a project."""
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    return lambda text: (folder / "own.yaml").write_text(f"# @package _global_\n{text}")


def test_the_seed_of_a_sweep_may_be_its_yaml_s(own_sweep):
    own_sweep("seed: 5\nhydra: {mode: MULTIRUN, sweeper: {params: {method: 'head,vera'}}}\n")
    assert [cell.seeds for cell in cells("own")] == [(5,), (5,)]
    (cell, _) = cells("own")
    assert cell.names() == [compose([*cell.overrides[1:], "seed=5"]).run_name]
    assert [cell.seeds for cell in cells("own", "seed=1,2")] == [(1, 2), (1, 2)]
    assert [cell.seeds for cell in cells("own", "seed=1,2,1")] == [(1, 2), (1, 2)]  # a plan counts a run once
    assert sweeps.narrowing(["seed=1,2,1"])[1] == [1, 2]


@pytest.mark.parametrize(("text", "said"), [("hydra:\n\tmode: MULTIRUN\n", "line 3: "), ("- hydra\n", "not a mapping")])
def test_a_malformed_sweep_is_one_line_that_names_it(text, said, own_sweep):
    own_sweep(text)
    with pytest.raises(ConfigError, match=rf"^\S*conf/sweep/own.yaml\W.*{said}[^\n]*$"):
        sweeps.sweeps()


def test_a_rehearsal_is_of_the_rows_of_the_paper_s_scale():
    rows = chosen("ablations", "artefacts=figure4")
    assert chosen("ablations", "artefacts=figure4", "scale=rehearsal") == [(*row, "scale=rehearsal") for row in rows]


def test_runs_of_two_folders_are_looked_for_in_neither_alone(tmp_path):
    one, other = (sweeps.read_sweep("demo").model_copy(update={"name": name, "results_dir": name}) for name in ("one", "other"))
    found = sweeps.cells(sweeps.read_sweep("demo"))
    assert sweeps.looked_in(None, [(one, found), (one, found)]) == Path("one")
    assert sweeps.looked_in(None, [(one, found), (other, found)]) == Path("results")
    assert sweeps.looked_in(tmp_path, [(one, found)]) == tmp_path
