"""The plan names the runs that the sweeps would make, knows what is there, and never counts a run twice."""

import json
import os
import shlex
import sys

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.engine import plan, published, registry, sweeps
from tests.conftest import ROOT
from tests.test_experiments import record
from vera.commands import run as command
from vera.config import QUANTILES, choices, compose
from vera.config.memory import Compositions
from vera.errors import ConfigError
from vera.records.store import Store


@pytest.fixture
def folders(tmp_path):
    return plan.Plan(tmp_path / "results", tmp_path / "scratch", tflops=50.0)


def cells(name, *overrides):
    return sweeps.cells(sweeps.read_sweep(name), overrides)


def test_a_sweep_expands_to_the_cells_and_seeds_of_its_axes():
    found = cells("glue_large", "method=vera", "task=rte,cola", "seed=0,1")
    assert [cell.run.task["name"] for cell in found] == ["rte", "cola"] and {cell.seeds for cell in found} == {(0, 1)}
    run = compose(["model=roberta_large", "task=rte", "method=vera"])
    assert found[0].run.cell_id == run.cell_id
    assert found[0].names() == [f"roberta_large--rte--vera--{run.cell_id[:8]}--s{seed}" for seed in (0, 1)]


def test_every_row_of_every_published_table_is_in_some_sweep():
    planned = {cell.run.cell_id for name in choices("sweep") for cell in cells(name)}
    for name in published.names():
        table = published.load(name)
        for row in table.rows:
            for task in table.tasks() if row.method is not None else ():
                assert published.run_of(name, row, task).cell_id in planned, f"{name}: {row.label} of {row.model} on {task}"


def test_every_artefact_that_a_sweep_names_exists():
    known = registry.names()
    for sweep in sweeps.sweeps():
        for artefact in sweep.artefacts:
            assert any(of.startswith(artefact) for of in known), f"{sweep.label} fills {artefact}, which nothing renders"


def test_done_failed_missing_and_rehearsed_are_told_apart(tmp_path, folders):
    overrides = ["model=roberta_large", "task=rte", "method=vera"]
    store = Store(tmp_path / "results")
    store.write(record(overrides, 0, 0.8))
    store.write(record(overrides, 1, 0.8))
    (cell,) = cells("glue_large", "method=vera", "task=rte")
    names = cell.names()
    (tmp_path / "results" / "failed").mkdir()
    (tmp_path / "results" / "failed" / f"{names[2]}.json").write_text(json.dumps({"error": "no room left"}))
    Store(tmp_path / "scratch").write(record([*overrides, *plan.REHEARSAL], 4, 0.5))
    folders = plan.Plan(tmp_path / "results", tmp_path / "scratch", tflops=50.0)
    status = folders.status([cell, cell])  # wanted twice, counted once
    assert (len(status.wanted), len(status.done), len(status.failed), status.missing, status.rehearsed) == (5, 2, 1, 2, 1)
    assert status.hours == pytest.approx(3 * 2.0 / 3600) and status.bases == {
        "recorded on a CPU"
    }  # three runs left at 2 s each
    run = record(overrides, 3, 0.8)
    store.write(run.model_copy(update={"cost": run.cost.model_copy(update={"device": "H100", "seconds": 7.0})}))
    status = plan.Plan(tmp_path / "results", tmp_path / "scratch", tflops=50.0).status([cell])
    assert status.hours == pytest.approx(2 * 7.0 / 3600) and status.bases == {"recorded"}  # a GPU's seconds before a CPU's
    assert plan.failure(tmp_path / "results", names[2]) == "no room left"


def test_a_collapsed_run_does_not_say_how_long_one_takes(tmp_path):
    overrides = ["model=roberta_large", "task=rte", "method=vera"]
    (cell,) = cells("glue_large", "method=vera", "task=rte")
    store, short = Store(tmp_path / "results"), record(overrides, 0, 0.8)
    cost = short.cost.model_copy(update={"seconds": 0.01})
    store.write(short.model_copy(update={"collapsed": "the loss is nan", "cost": cost}))
    assert plan.Plan(tmp_path / "results").hours(cell)[1] == "operations"
    store.write(record(overrides, 1, 0.8))
    assert plan.Plan(tmp_path / "results").hours(cell) == ({"recorded": 2.0 / 3600}, "recorded on a CPU")


def test_hours_without_records_follow_from_operations(folders):
    (cell,) = cells("glue_large", "method=vera", "task=rte")
    hours, basis = folders.hours(cell)
    facts, layers, width, inner = cell.run.task["facts"], 24, 1024, 4096
    forward = facts["tokens"] * (2 * layers * (4 * width**2 + 2 * width * inner) + 4 * layers * facts["tokens"] * width)
    per_hour = 50e12 * 3600
    assert basis == "operations" and hours["training"] == pytest.approx(forward * 2 * 40 * facts["train_rows"] / per_hour)
    assert hours["evaluation"] == pytest.approx(forward * 40 * facts["eval_rows"] / per_hour) and not hours["decoding"]
    (capped,) = cells("glue_large", "method=vera", "task=rte", "train.max_steps=1")
    short = folders.hours(capped)[0]
    assert short["training"] < hours["training"] and short["evaluation"] == pytest.approx(hours["evaluation"] / 40)
    (every_tenth,) = cells("glue_large", "method=vera", "task=rte", "train.evaluate=10")
    assert folders.hours(every_tenth)[0]["evaluation"] == pytest.approx(hours["evaluation"] / 10)


def test_padding_is_to_the_longest_of_a_batch_unless_batches_are_sorted(folders):
    (cell,) = cells("glue_base", "method=vera", "task=rte")
    hours, _ = folders.hours(cell)
    assert hours["padding"] > 0
    (small,) = cells("glue_base", "method=vera", "task=rte", "train.micro_batch_size=8")
    assert 0 < folders.hours(small)[0]["padding"] < hours["padding"]
    (sorted_,) = cells("glue_base", "method=vera", "task=rte", "train.micro_batch_tokens=4096")
    assert 0 < folders.hours(sorted_)[0]["padding"] < hours["padding"] / 1.5
    assert {**folders.hours(sorted_)[0], "padding": hours["padding"]} == hours


def test_the_longest_of_some_lengths_is_what_draws_show():
    assert plan.longest_of(QUANTILES, 1) == pytest.approx(50)  # lengths spread evenly from 0 to 100
    assert plan.longest_of(QUANTILES, 9) == pytest.approx(90)
    lengths = [q**2 / 100 for q in QUANTILES]
    draws = np.interp(np.random.default_rng(0).random((200_000, 16)) * 100, QUANTILES, lengths).max(axis=1)
    assert plan.longest_of(lengths, 16) == pytest.approx(draws.mean(), rel=0.005)


def test_table_5_pays_for_one_evaluation_a_run_and_head_only_for_one_pass(folders):
    whole = folders.status(cells("images"))
    assert whole.hours <= 3 and whole.parts["evaluation"] < 1.5
    (head,) = cells("images", "method=head", "model=vit_base", "task=cifar100")
    (vera,) = cells("images", "method=vera", "model=vit_base", "task=cifar100")
    parts, others = folders.hours(head)[0], folders.hours(vera)[0]
    assert parts["evaluation"] == others["evaluation"] and others["training"] == pytest.approx(20 * parts["training"])


def test_what_pages_say_of_the_whole_plan(folders):
    every = [cell for sweep in sweeps.sweeps() for cell in sweeps.cells(sweep)]
    whole = folders.status(every)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"None of the {len(whole.wanted)} runs of the paper's own models has been made: {whole.hours:.0f} GPU-hours" in readme
    )
    assert not plan.Plan(ROOT / "results").status(every).done
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    assert f"still counts {whole.hours:.1f} GPU-hours" in text and f"{whole.parts['padding']:.1f} of them are padding" in text


def test_a_cell_of_unknown_cost_hides_nothing_of_the_others(folders):
    known = cells("glue_large", "method=vera", "task=rte")
    unknown = cells("glue_large", "method=vera", "task=sick", "train.epochs=1", "train.lr=1e-3", "train.head_lr=1e-3")
    one, other = folders.status([*known, *unknown]), folders.status([*unknown, *known])
    assert one.parts == other.parts == folders.status(known).parts and one.bases == other.bases == {"operations", "unknown"}
    assert one.hours is other.hours is None


def test_the_output_layer_of_a_language_model_is_a_product_too():
    chosen = ["model=gpt2_medium", "task=e2e", "method=vera", "train.epochs=1"]
    run, more = compose(chosen), compose(chosen)
    more.model["full"]["vocab_size"] += 1000
    facts = run.task["facts"]
    found = plan.estimate(more)["training"] - plan.estimate(run)["training"]
    assert found == pytest.approx(2 * facts["train_rows"] * facts["tokens"] * 2 * 1000 * 1024)
    classifier = compose(["model=roberta_base", "task=rte", "method=vera"])
    other = compose(["model=roberta_base", "task=rte", "method=vera"])
    other.model["full"]["vocab_size"] += 1000
    assert plan.estimate(classifier) == plan.estimate(other)


@pytest.mark.parametrize("model", ["roberta_base", "roberta_large", "deberta_like"])
def test_a_step_costs_what_a_method_trains(model, monkeypatch):
    """Forward; backward through the activations for what sits in the backbone; once more for all of its weights."""
    base = [f"model={'roberta_base' if model == 'deberta_like' else model}", "task=rte", "train.epochs=1"]
    cost = {}
    for method in ("head", "bitfit", "vera", "full"):
        run = compose([*base, f"method={method}", "train.lr=1e-3", "train.head_lr=1e-3"])
        run.model["name"] = model  # of which nothing has been counted
        cost[method] = plan.estimate(run)["training"]
    assert [round(value / cost["head"], 6) for value in cost.values()] == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("chosen", "key", "train", "scored"),
    [
        (["model=llama_7b", "task=alpaca"], "task.rows=1000", 1000 / 51000, 1),
        (["model=llama_7b", "task=alpaca"], "task.held_out=10", 1, 10 / 500),
        (["model=vit_base", "task=cifar100"], "task.train_per_class=5", 0.5, 1),
        (["model=vit_base", "task=resisc45"], "task.train_per_class=5", 0.5, 31275 / 31050),
        (["model=digits_vit", "task=digits"], "task.train_per_class=20", 2, 796 / 846),
    ],
)
def test_rows_are_those_that_a_run_takes(chosen, key, train, scored):
    whole, some = (plan.estimate(compose([*chosen, "method=vera", *more])) for more in ([], [key]))
    assert some["training"] == pytest.approx(train * whole["training"])
    assert some["evaluation"] == pytest.approx(scored * whole["evaluation"])


def test_unknown_names_and_bad_sweeps_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="nothing that has runs is called 'table99'; there are"):
        sweeps.sweeps("table99")
    with pytest.raises(ConfigError, match="nothing that has runs is called 'table1'; there are"):  # not Table 12's
        sweeps.sweeps("table1")
    assert {name for part in sweeps.sweeps("table6") for name in part.artefacts} >= {"table6a", "table6b", "table6c"}
    with pytest.raises(ConfigError, match="seeds are whole numbers"):
        cells("glue_large", "seed=one")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "odd.yaml").write_text(
        yaml.safe_dump({"artefacts": "table2", "hydra": {"sweeper": {"params": {"a": 1}}}})
    )
    monkeypatch.setattr(sweeps, "conf_file", lambda group, name: tmp_path / group / f"{name}.yaml")
    with pytest.raises(ConfigError, match=r"conf/sweep/odd\.yaml\.artefacts"):
        sweeps.read_sweep("odd")


def test_remembered_compositions_are_the_composed_ones(tmp_path):
    overrides = ["model=roberta_base", "task=rte", "method=vera", "seed=3"]
    first = Compositions(tmp_path)
    made = first.get(overrides)
    first.save()
    second = Compositions(tmp_path)
    assert second.known and second.get(overrides) == made == compose(overrides)
    assert second.get(overrides).cell_id == compose(overrides).cell_id
    second.path.write_text("{ broken")
    assert Compositions(tmp_path).get(overrides) == made
    second.path.write_text(json.dumps({" ".join(overrides): {"model": 1}}))
    assert Compositions(tmp_path).get(overrides) == made


def test_many_compositions_at_once_are_the_same_as_one_by_one(tmp_path):
    wanted = [
        ["model=roberta_base", f"task={t}", "method=lora", f"method.rank={r}"] for t in ("rte", "cola") for r in range(1, 9)
    ]
    at_once = Compositions(tmp_path)
    at_once.add([*wanted, wanted[0]])
    if sys.platform == "linux" and os.cpu_count() > 1:
        assert at_once.known.keys() == {" ".join(overrides) for overrides in wanted}
    assert all(at_once.get(overrides) == compose(overrides) for overrides in wanted[::5])
    at_once.save()
    assert Compositions(tmp_path).known == at_once.known


def test_a_sweep_that_adds_nothing_to_its_runs_composes_like_a_table_s_row():
    for name in ("glue_large", "demo", "ablations"):
        assert sweeps.read_sweep(name).plain
        for cell in cells(name)[:2]:
            assert compose(cell.overrides).cell_id == cell.run.cell_id


def test_the_command_prints_the_plan_and_the_commands(tmp_path, capsys):
    def run(*arguments, code=0):
        assert command("plan", [*arguments]) == code
        return capsys.readouterr()

    here = ("--results", str(tmp_path))
    assert "glue_large" in run("table2", *here).out
    assert "python scripts/train.py sweep=glue_large" in run("table2", "--commands", *here).out
    (line,) = run("demo", "--commands", "--with", "model.path=/data/my model", *here).out.splitlines()
    override = OverridesParser.create().parse_override(shlex.split(line)[-1])  # as the shell and Hydra read it
    assert (override.key_or_group, override.value()) == ("model.path", "/data/my model")
    assert f"results_dir={tmp_path}" in line.split()
    assert "results_dir" not in run("demo", "--commands", "--results", "results/demo").out  # its own
    (line,) = run("demo", "--commands", "--results", "results/demo2").out.splitlines()
    assert "results_dir=results/demo2" in line.split()
    line = run("glue_large", "scale=rehearsal", "method=vera", "task=rte", "--commands").out
    assert "scale=rehearsal" in line.split() and "results_dir" not in line  # the scale's own, results/scratch
    with pytest.raises(SystemExit):
        run("demo", "results_dir=mine", *here)
    assert "where they are looked for is --results" in capsys.readouterr().err
    for name, words in (("tables", ("demo",)), ("pareto", ())):
        with pytest.raises(SystemExit):
            command(name, [*words, "results_dir=mine", *here])
        assert "where they are looked for is --results" in capsys.readouterr().err
    wrong = run("nothing", *here, code=1).err
    assert wrong.startswith("error: nothing that has runs is called 'nothing'") and wrong.count("\n") == 1
