"""Results go with you: a DataFrame, files of three formats, tables by any keys, and published numbers under any name."""

import json
import shutil

import pandas
import pytest
import yaml

import vera
from experiments.engine import paper, published
from experiments.engine.comparison import compare
from experiments.engine.pivot import pivot
from experiments.engine.registry import artefact
from experiments.engine.rows import Asked
from tests.conftest import ROOT
from tests.test_experiments import by_cell, record
from vera.commands import run as command
from vera.config import cell_id
from vera.errors import ConfigError, RecordError
from vera.records.record import Record
from vera.records.store import Store

DIGITS = ["model=digits_vit", "task=digits"]
LORA = [*DIGITS, "method=lora"]


def with_test(made: Record, value: float) -> Record:
    raw = json.loads(made.to_json())
    raw["scores"]["test"] = {"epoch": 1, "metrics": {"accuracy": value}}
    return Record.model_validate(raw)


@pytest.fixture
def results(tmp_path):
    store = Store(tmp_path / "results")
    for seed, score in enumerate((0.5, 0.7, 0.6)):
        store.write(record(LORA, seed, score, last=0.4))
        store.write(record([*LORA, "method.rank=4"], seed, score - 0.1))
    store.write(with_test(record([*DIGITS, "method=vera", "task.validation=0.2"], 0, 0.9), 0.8))
    return store.root


def test_a_row_a_run_with_the_keys_that_vary(results):
    found = vera.frame(results)
    assert isinstance(found, pandas.DataFrame) and len(found) == 7
    ranks = found[found.method == "lora"].groupby("method.rank").best_accuracy.median()
    assert ranks.to_dict() == {4: pytest.approx(0.5), 8: pytest.approx(0.6)}
    assert found[(found.method == "lora") & (found["method.rank"] == 8)].last_accuracy.tolist() == [0.4] * 3
    (vera_row,) = found[found.method == "vera"].to_dict("records")
    assert (vera_row["test_accuracy"], vera_row["best_accuracy"], vera_row["task.validation"]) == (0.8, 0.9, "0.2")
    assert "train.epochs" not in found and "model.name" not in found and (found.parameters == 3072).all()
    assert found.cell.str.fullmatch("[0-9a-f]{8}").all() and found.collapsed.isna().all()
    assert set(found.precision) == {"fp32"} and list(found.threads) == [2] * 7 and set(found.processes) == {1}


def older(made: Record) -> Record:
    """The record of a run that was made before these keys were: of the same cell."""
    raw = json.loads(made.to_json())
    for group, key in (("train", "decay_biases_and_norms"), ("train", "evaluate"), ("task", "validation")):
        del raw["run"]["config"][group][key], raw["run"]["config"][group]["neutral"][key]
    return Record.model_validate(raw)


def test_a_key_younger_than_a_record_has_the_value_that_means_as_before(tmp_path):
    store = Store(tmp_path)
    for seed, score in enumerate((0.5, 0.7)):
        store.write(record(LORA, seed, score) if seed else older(record(LORA, seed, score)))
        store.write(record([*LORA, "train.evaluate=last", "task.validation=0.2"], seed, score - 0.1))
    found = vera.frame(tmp_path)
    assert found.groupby("task.validation").size().to_dict() == {"0.2": 2, "dev": 2}
    assert sorted(found["train.evaluate"]) == ["epoch", "epoch", "last", "last"] and "train.decay_biases_and_norms" not in found
    shown = pivot(store.records(), ["method", "train.decay_biases_and_norms"], [], where=["train.evaluate=epoch"])
    assert shown.rows == [["lora", "false", "60.0±14.1 (n=2)"]]


def test_versions_and_fingerprints_of_one_component_are_told_apart(tmp_path):
    """Those of two models or tasks differ anyway: their names do."""
    store = Store(tmp_path)
    store.write(record(LORA, 0, 0.5))
    store.write(
        record(["model=roberta_base", "task=rte", "method=adapter_p"], 0, 0.9, model_fingerprint="r", data_fingerprint="s")
    )
    assert not {"method.version", "model_fingerprint", "data_fingerprint"} & {*vera.frame(tmp_path)}
    for seed, notes in enumerate(({}, {"configuration": "c"}, {"configuration": "c"}), start=2):  # older ones say nothing of it
        store.write(record(["model=roberta_base", "task=rte", "method=head"], seed, 0.9, notes=notes))
    assert "configuration" not in vera.frame(tmp_path)
    store.write(record(["model=roberta_base", "task=rte", "method=head"], 5, 0.9, notes={"configuration": "d"}))
    said = vera.frame(tmp_path).set_index("seed").configuration.loc[[2, 3, 4, 5]]
    assert said.isna().tolist() == [True, False, False, False] and said.dropna().tolist() == ["c", "c", "d"]
    raw = json.loads(record(LORA, 1, 0.7, model_fingerprint="n", data_fingerprint="e").to_json())
    raw["run"]["config"]["task"]["version"] += 1
    raw["run"]["cell_id"] = cell_id(raw["run"]["config"], raw["run"]["follows_seed"])
    store.write(Record.model_validate(raw))
    found = vera.frame(tmp_path).set_index("task").loc["digits"].set_index("seed").sort_index()
    assert found["task.version"].diff().iloc[1] == 1 and "model.version" not in found and "method.version" not in found
    assert found.model_fingerprint.tolist() == ["m", "n"] and found.data_fingerprint.tolist() == ["d", "e"]
    with pytest.raises(ConfigError, match=r"2 cells in one place \(task\.version: "):
        pivot([made for made in store.records() if made.run.task == "digits"], ["method"], ["task"])


def test_code_of_a_project_that_has_changed_is_told_apart(tmp_path):
    store = Store(tmp_path)
    for seed, code in enumerate("aab"):
        store.write(record(LORA, seed, 0.5, own_code={"method": code * 64}))
    found = vera.frame(tmp_path)
    assert found.groupby("method_code").size().to_dict() == {f"method {'a' * 12}": 2, f"method {'b' * 12}": 1}
    assert not {"model_code", "task_code"} & {*found}


def test_a_row_an_epoch(results):
    found = vera.frame(results, history=True)
    assert found.columns[:5].tolist() == ["model", "task", "method", "seed", "cell"]
    assert found.epoch.tolist() == [1, 2] * 7
    first, last = (set(found[found.epoch == epoch].accuracy) for epoch in (1, 2))
    fourth = {score - 0.1 for score in (0.5, 0.7, 0.6)}  # of rank 4, whose epochs are alike
    assert first == {0.5, 0.7, 0.6, 0.9} | fourth and last == {0.4, 0.9} | fourth


def test_a_folder_without_records_is_no_empty_frame(tmp_path):
    with pytest.raises(RecordError, match="holds no record"):
        vera.frame(tmp_path)


@pytest.mark.parametrize("form", ["csv", "parquet", "latex"])
def test_the_same_rows_in_each_format(form, results, capsys):
    assert command("frame", ["--results", str(results), "--format", form]) == 0
    path = results / f"frame.{'tex' if form == 'latex' else form}"
    if form == "latex":
        text = path.read_text()
        assert text.startswith(r"\begin{longtable}") and r"digits\_vit" in text and text.count(r"\\") > 7
    else:
        found = getattr(pandas, f"read_{form}")(path)
        assert found.best_accuracy.tolist() == vera.frame(results).best_accuracy.tolist()
    assert "7 rows" in capsys.readouterr().out


def test_chosen_columns_and_one_that_is_not_there(results, tmp_path, capsys):
    out = tmp_path / "mine.csv"
    assert command("frame", ["--results", str(results), "--columns", "method,seed", "--out", str(out)]) == 0
    assert out.read_text().splitlines()[0] == "method,seed"
    twice = ["--format", "parquet", "--columns", "method,seed,method"]
    assert command("frame", ["--results", str(results), *twice, "--out", str(out)]) == 0
    assert pandas.read_parquet(out).columns.tolist() == ["method", "seed"]
    assert command("frame", ["--results", str(results), "--columns", "method,sed"]) == 1
    assert "no column 'sed'; there are model, task" in capsys.readouterr().err


def test_a_table_by_any_keys(results):
    records = Store(results).records()
    made = pivot(records, ["method", "method.rank"], ["task"])
    assert made.columns == ["method", "method.rank", "digits"]
    assert made.rows == [
        ["lora", "4", "50.0±10.0 (n=3)"],
        ["lora", "8", "60.0±10.0 (n=3)"],
        ["vera", "256", "80.0 (n=1)"],  # of its test rows
    ]
    last = pivot(records, ["method.rank"], [], "accuracy", ["method=lora"], stat="last")
    assert last.rows[1] == ["8", "40.0±0.0 (n=3)"]
    told = ["method.train_head=true", "train.deterministic=False", "train.max_steps=null", "method.targets=[query,value]"]
    assert pivot(records, ["method", "method.rank"], ["task"], where=told).rows == made.rows
    with pytest.raises(ConfigError, match=r"accuracy is no metric .*; their last epoch has none: test rows have the best"):
        pivot(records, ["method.rank"], [], "accuracy", ["method=vera"], stat="last")
    near = [
        record(["model=digits_vit", "task=digits", "method=lora", f"train.lr={rate}"], 0, 0.5) for rate in (0.2, 0.20000001)
    ]
    assert [row[0] for row in pivot(near, ["train.lr"], []).rows] == ["0.2", "0.20000001"]
    recipes = pivot(records, ["method"], ["task"], recipes=True)
    assert recipes.rows == [["lora", "60.0±10.0 (n=3)"]]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, r"lora digits: 2 cells in one place \(method\.rank: 4, 8\)"),
        ({"where": ["method.rank=9"]}, r"no records with method\.rank=9; there is method\.rank=4 8 256"),
        ({"where": ["method.rnk=9"]}, r"method\.rnk is no key of these records"),
        ({"where": ["rank"]}, "is not KEY=VALUE"),
        ({"metric": "accurcy"}, "accurcy is no metric of these records; there are accuracy"),
    ],
)
def test_what_would_mix_cells_or_show_nothing_is_refused(more, said, results):
    with pytest.raises(ConfigError, match=said):
        pivot(Store(results).records(), ["method"], ["task"], **more)
    with pytest.raises(ConfigError, match="there are no records in this results folder"):
        pivot([], ["method"], ["task"], **more)


def named(made: Record, **changes: object) -> Record:
    """The record of a run of these values in its config, where there is such a key, and of these names."""
    raw = json.loads(made.to_json())
    for group in ("model", "task", "method"):
        for key, value in changes.items():
            if key in raw["run"]["config"][group] or key == group:
                raw["run"]["config"][group]["name" if key == group else key] = value
        raw["run"][group] = raw["run"]["config"][group]["name"]
    raw["run"]["cell_id"] = cell_id(raw["run"]["config"], raw["run"]["follows_seed"])
    return Record.model_validate(raw)


def test_cells_that_differ_in_their_names_alone_are_told_apart_by_them():
    found = [named(record(LORA, 0, 0.5), task=task) for task in ("one", "two")]
    with pytest.raises(ConfigError, match=r"lora: 2 cells in one place \(task: one, two\); add a key"):
        pivot(found, ["method"], [])
    assert [row[0] for row in pivot(found, ["task"], []).rows] == ["one", "two"]


def test_what_follows_the_seed_tells_no_cells_apart_and_splits_none():
    both = [[*DIGITS, "method=vera", f"method.rank={rank}"] for rank in (4, 8)]
    found = [record(words, seed, 0.5) for words, first in zip(both, (0, 5), strict=True) for seed in range(first, first + 5)]
    with pytest.raises(ConfigError, match=r"vera: 2 cells in one place \(method\.rank: 4, 8\)"):
        pivot(found, ["method"], [])
    fixed = [record([*both[0], "method.projection_seed=0"], seed, 0.6) for seed in range(5)]
    shown = pivot([*found[:5], *fixed], ["method", "method.projection_seed"], [])
    assert shown.rows == [["vera", "0", "60.0±0.0"], ["vera", "${seed}", "50.0±0.0"]]


def test_a_list_that_is_cut_says_so():
    found = [record([*LORA, f"method.rank={rank}"], 0, 0.5) for rank in range(1, 8)]
    with pytest.raises(ConfigError, match=r"7 cells in one place \(method\.rank: 1, 2, 3, 4, 5, 6, …\)"):
        pivot(found, ["method"], [])
    with pytest.raises(ConfigError, match=r"there is method\.rank=1 2 3 4 5 6 …"):
        pivot(found, ["method"], [], where=["method.rank=9"])


def test_a_condition_is_read_as_it_is_written_and_settings_also_as_yaml_has_them():
    found = [named(record(LORA, 0, 0.5), task=task) for task in ("no", "007", "7")]
    for task in ("no", "007", "7"):
        assert [row[0] for row in pivot(found, ["task"], [], where=[f"task={task}"]).rows] == [task]
    dev, tested = record(LORA, 0, 0.5), named(record(LORA, 1, 0.5), validation="no")
    assert [row[0] for row in pivot([dev, tested], ["task.validation"], [], where=["task.validation=no"]).rows] == ["no"]
    assert len(pivot([dev], ["task"], [], where=["train.lr=1e-2", "train.deterministic=no"]).rows) == 1


def test_notes_are_of_the_cells_that_are_shown(results):
    """The run with test rows has no score at its last epoch, one seed, and here another backbone."""
    store = Store(results)
    store.write(with_test(record([*DIGITS, "method=head", "task.validation=0.2"], 1, 0.9, model_fingerprint="n"), 0.8))
    lora = [made for made in store.records() if made.run.cell_id == record(LORA, 0, 0.5).run.cell_id]
    tested = [made for made in store.records() if made.scores.test]
    for stat, count in (("last", 1), ("median", 3)):
        shown = pivot([*lora, *tested], ["method"], ["task"], stat=stat)
        assert len(shown.notes) == count and len(shown.rows) == 3


def test_the_command_prints_and_writes_it(results, tmp_path, capsys):
    words = ["--results", str(results), "--rows", "method,method.rank", "--columns", "task", "--out", str(tmp_path / "out")]
    assert command("tables", words) == 0 and "60.0±10.0" in capsys.readouterr().out
    assert "| lora | 8 | 60.0±10.0 (n=3) |" in (tmp_path / "out" / "tables" / "pivot.md").read_text()
    with pytest.raises(SystemExit):
        command("tables", ["table2", *words])


def test_the_notebook_runs(monkeypatch):
    """Its cells one after the other, where it lies: a figure is drawn, and a number of a table comes out of the records."""
    cells = json.loads((ROOT / "examples" / "results.ipynb").read_text())["cells"]
    monkeypatch.chdir(ROOT / "examples")
    monkeypatch.setattr("matplotlib.pyplot.subplots", subplots := Recorded())
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"examples/results.ipynb {cell['id']}", "exec"), names)
    assert len(subplots.made[0].axes[0].lines) == 2 and float(names["median"]) > 50


class Recorded:
    """pyplot.subplots without a screen."""

    def __init__(self):
        self.made = []

    def __call__(self, **more):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(**more)
        FigureCanvasAgg(figure)
        self.made.append(figure)
        return figure, figure.add_subplot()


def test_numbers_published_elsewhere_have_a_file_of_any_name(tmp_path, monkeypatch):
    folder = tmp_path / "paper"
    shutil.copytree(published.FOLDER, folder)
    mine = {
        "title": "Digits, as in a paper of mine",
        "stat": "median",
        "models": {"digits_vit": "ViT"},
        "columns": {"digits": {"label": "Digits", "task": "digits", "metric": "accuracy", "scale": 100}},
        "rows": [{"label": "LoRA", "model": "digits_vit", "method": "lora", "source": "mine", "cells": {"digits": "61.0"}}],
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    monkeypatch.setattr(published, "FOLDER", folder)
    assert published.names()[0] == "table2" and published.names()[-1] == "mine"
    rows, tasks = published.rows_of("mine")  # what a sweep over artefacts: [mine] runs
    assert (rows[0].overrides("digits"), tasks) == (LORA, ["digits"])
    cells = by_cell(*(record(LORA, seed, 0.6) for seed in range(5)))
    table = compare("mine", Asked(cells))[0]
    assert table.title == "Digits, as in a paper of mine"
    assert [(row[2], row[-1]) for row in table.rows] == [("published", "61.0"), ("ours", "60.0±0.0")]
    everything = {name: artefact(name).build(Asked(cells)) for name in ("digits", "mine")}
    everything["digits"][0].name = "mine"
    with pytest.raises(ConfigError, match="2 tables are called mine"):
        paper.write(everything, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    last = folder / "mine.yaml"
    for name in ("digits", "glue_minilm_tests", "claims_evidence", "table6_mini", "figure2_mini", "table3_cells"):
        last = last.rename(folder / f"{name}.yaml")
        with pytest.raises(ConfigError, match=rf"{name}\.yaml: there is a {name} already"):
            published.names()


def test_a_doubled_key_of_a_published_table_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("title: Mine\nstat: median\ncolumns: {}\nrows: [{cells: {acc: 10.0, acc: 80.0}}]\n")
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"mine\.yaml: 'acc' is there twice"):
        published.load("mine")


@pytest.mark.parametrize(
    ("key", "value"), [("cost", "bananas"), ("cost", "device"), ("scale", 0), ("scale", -100), ("digits", -1), ("digits", 0.5)]
)
def test_a_column_that_no_number_can_fill_is_refused(key, value, tmp_path, monkeypatch):
    column = {"label": "Digits", "task": "digits", **({} if key == "cost" else {"metric": "accuracy"}), key: value}
    table = {"title": "Mine", "stat": "median", "models": {"digits_vit": "ViT"}, "columns": {"digits": column}, "rows": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*columns\.digits\.{key}"):
        published.load("mine")


def test_rows_over_unlike_seeds_are_told():
    vera, lora = (
        [record(["model=roberta_large", "task=rte", f"method={method}"], seed, 0.6) for seed in range(5)]
        for method in ("vera", "lora")
    )
    for ours, told in ((vera, False), (vera[:3], True)):
        notes = compare("table2", Asked(by_cell(*ours, *lora)))[0].notes
        assert any(note.startswith("Cells are over unlike seeds") for note in notes) == told
    raw = [json.loads(made.to_json()) for made in vera[:3]]
    tested = [Record.model_validate(made | {"scores": made["scores"] | {"test": made["scores"]["best"]}}) for made in raw]
    (notes,) = (table.notes for table in compare("table2", Asked(by_cell(*tested, *lora), stat="last"))[:1])
    assert not any("unlike seeds" in note for note in notes)  # of VeRA a dash is shown
