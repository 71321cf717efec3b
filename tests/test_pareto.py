"""Score against cost: the front, who is on it, and seconds that say nothing."""

import json

import pytest

from experiments.engine import pareto
from experiments.engine.registry import artefact
from experiments.engine.rows import Asked
from tests.test_experiments import by_cell, record
from vera.commands import run as command
from vera.records.record import Record
from vera.records.store import Store

DIGITS = ["model=digits_vit", "task=digits"]


def made(method, seed, score, parameters, seconds, memory=None) -> Record:
    raw = json.loads(record([*DIGITS, f"method={method}"], seed, score, parameters=parameters).to_json())
    raw["cost"] |= {"seconds": seconds, "peak_memory_bytes": memory}
    return Record.model_validate(raw)


def runs(method, score, parameters, seconds, memory=None, seeds=5):
    return [made(method, seed, score + seed / 1000, parameters, seconds, memory) for seed in range(seeds)]


CALM = [
    *runs("head", 0.50, 0, 1.0, 2**20),
    *runs("vera", 0.80, 3_000, 2.0, 2 * 2**20),
    *runs("bitfit", 0.70, 5_000, 1.5, 3 * 2**20),
    *runs("lora", 0.80, 16_000, 2.0, 2 * 2**20),
    *runs("full", 0.85, 500_000, 3.0, 9 * 2**20),
]


def test_the_front_is_what_nothing_beats():
    points = [(0, 0.5), (3, 0.8), (5, 0.7), (16, 0.8), (500, 0.85), (3, 0.8)]
    assert pareto.front(points) == {0, 1, 4, 5}  # equal points do not beat each other
    assert pareto.front([]) == set()


def test_each_method_with_records_stands_with_its_costs():
    table = pareto.table(Asked(by_cell(*CALM)), "digits_vit", "digits", "x")
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["head", "vera", "bitfit", "lora", "full"]
    assert rows["vera"] == ["3,000", "5", "80.2±0.2", "[80.0, 80.4]", "2", "2.0 [2.0, 2.0]", "trained, memory, seconds"]
    assert (
        rows["bitfit"][-1] == "seconds"
        and rows["lora"][-1] == "memory, seconds"
        and rows["full"][-1] == "trained, memory, seconds"
    )


def test_a_disturbed_machine_has_no_front_of_seconds_and_a_cpu_none_of_memory():
    slow = [*runs("head", 0.5, 0, 1.0), *runs("vera", 0.8, 3_000, 2.0, seeds=4), made("vera", 4, 0.8, 3_000, 20.0)]
    table = pareto.table(Asked(by_cell(*slow)), "digits_vit", "digits", "x")
    assert [row[-1] for row in table.rows] == ["trained", "trained"] and [row[5] for row in table.rows] == ["–", "–"]
    assert any("No front of seconds: vera took over" in note for note in table.notes)


@pytest.mark.parametrize(("slowest", "fronts"), [(2.9, "trained, seconds"), (3.1, "trained")])
def test_a_seed_may_take_half_as_long_again(slowest, fronts):
    found = [*runs("vera", 0.8, 3_000, 2.0, seeds=4), made("vera", 4, 0.8, 3_000, slowest)]
    (row,) = pareto.table(Asked(by_cell(*found)), "digits_vit", "digits", "x").rows
    assert row[-1] == fronts


@pytest.mark.parametrize(("stat", "fronts"), [("median", ["trained", "trained"]), ("mean", ["trained", "–"])])
def test_a_front_is_of_the_statistic_that_is_shown(stat, fronts):
    spread = [made("vera", seed, score, 3_000, 2.0 + 9 * seed) for seed, score in enumerate([0.5, 0.6, 0.7, 0.8, 0.95])]
    cells = by_cell(*spread, *(made("lora", seed, 0.705, 16_000, 2.0) for seed in range(5)))
    table = pareto.table(Asked(cells, stat=stat), "digits_vit", "digits", "x")
    assert [(row[0], row[-1]) for row in table.rows] == list(zip(["vera", "lora"], fronts, strict=True))


def test_every_reason_against_a_front_is_told():
    slow = json.loads(made("vera", 4, 0.8, 3_000, 20.0).to_json())
    slow["cost"]["threads"] = 1
    runs_ = [*runs("head", 0.5, 0, 1.0), *runs("vera", 0.8, 3_000, 2.0, seeds=4), Record.model_validate(slow)]
    notes = " ".join(pareto.table(Asked(by_cell(*runs_)), "digits_vit", "digits", "x").notes)
    assert "No front of seconds: vera took over" in notes and "No front of seconds: the runs differ in threads" in notes


def test_methods_are_compared_over_the_seeds_that_all_have():
    uneven = [*runs("head", 0.5, 0, 1.0, seeds=3), *runs("vera", 0.8, 3_000, 2.0)]
    assert [row[2] for row in pareto.table(Asked(by_cell(*uneven)), "digits_vit", "digits", "x").rows] == ["3", "3"]


def test_a_method_whose_records_are_of_other_settings_is_named():
    other = [
        item.model_copy(update={"run": item.run.model_copy(update={"cell_id": "0" * 64})}) for item in runs("lora", 1, 2, 1)
    ]
    table = pareto.table(Asked(by_cell(*other, *runs("vera", 0.8, 3_000, 2.0))), "digits_vit", "digits", "x")
    assert [row[0] for row in table.rows] == ["vera"]
    assert "Not shown: lora, with records, but none of a recipe's settings." in table.notes
    assert not any("Not shown" in note for note in pareto.table(Asked(by_cell(*CALM)), "digits_vit", "digits", "x").notes)


def test_a_collapsed_method_is_on_no_front():
    raw = [json.loads(item.to_json()) | {"collapsed": "the loss is nan"} for item in runs("bitfit", 0.9, 1, 1.0)]
    cells = by_cell(*map(Record.model_validate, raw), *runs("vera", 0.8, 3_000, 2.0))
    lost, vera = pareto.table(Asked(cells), "digits_vit", "digits", "x").rows
    assert lost[5:] == ["–", "–", "–"] and vera[6:] == ["2.0 [2.0, 2.0]", "trained, seconds"]


def test_a_table_says_of_which_epoch_it_is():
    notes = {
        stat: pareto.table(Asked(by_cell(*CALM), stat=stat), "digits_vit", "digits", "x").notes[0] for stat in (None, "last")
    }
    assert "accuracy x 100, best epoch," in notes[None] and "accuracy x 100, last epoch," in notes["last"]


def test_a_front_that_the_table_does_not_have_is_not_drawn(tmp_path):
    """A method that collapsed on another backbone is among what is compared."""
    other = []
    for item in runs("bitfit", 0.9, 1_000, 1.0):
        raw = json.loads(item.to_json()) | {"collapsed": "the loss is nan"}
        raw["provenance"]["model_fingerprint"] = "another"
        other.append(Record.model_validate(raw))
    asked = Asked(by_cell(*CALM, *other))
    assert any(note.startswith("No front") for note in pareto.table(asked, "digits_vit", "digits", "x").notes)
    assert pareto.draw(asked, "digits_vit", "digits", tmp_path / "x") == []
    assert pareto.draw(Asked(by_cell(*CALM)), "digits_vit", "digits", tmp_path / "x")


def test_a_run_that_collapsed_and_so_ended_early_is_no_sign_of_other_work():
    *others, last = runs("lora", 0.7, 16_000, 2.0)
    short = json.loads(last.to_json()) | {"collapsed": "the loss is nan"}
    short["cost"]["seconds"] = 0.1
    cells = by_cell(*others, Record.model_validate(short), *runs("vera", 0.8, 3_000, 2.0))
    table = pareto.table(Asked(cells), "digits_vit", "digits", "x")
    assert [row[6] for row in table.rows] == ["2.0 [2.0, 2.0]"] * 2 and not any("other work" in note for note in table.notes)


def test_the_head_alone_has_no_front_of_parameters_to_draw(tmp_path):
    """It trains none of the backbone's: nothing to draw against."""
    asked = Asked(by_cell(*runs("head", 0.50, 0, 1.0)))
    drawn = pareto.draw(asked, "digits_vit", "digits", tmp_path / "front")
    assert {path.suffix for path in drawn} == {".pdf", ".png", ".svg"}  # against seconds
    assert "parameters" not in (tmp_path / "front.svg").read_text()
    (tmp_path / "front.md").write_text("")
    lost = [item.model_copy(update={"collapsed": "diverged"}) for item in runs("head", 0.5, 0, 1.0)]
    assert pareto.draw(Asked(by_cell(*lost)), "digits_vit", "digits", tmp_path / "front") == []
    assert [path.name for path in tmp_path.iterdir()] == ["front.md"]  # no picture of other records stays


def test_the_command_writes_table_and_figure(tmp_path, capsys):
    store = Store(tmp_path)
    for item in CALM:
        store.write(item)
    assert command("pareto", ["model=", "task=", "--results", str(tmp_path)]) == 0
    names = {path.name for path in (tmp_path / "pareto").iterdir()}
    assert names == {f"digits_vit_digits.{ending}" for ending in ("md", "pdf", "png", "svg")}
    assert "vera" in (tmp_path / "pareto" / "digits_vit_digits.svg").read_text()
    store.write(record([*DIGITS, "method=vera", "method.rank=64"], 0, 0.7))
    assert command("pareto", ["method.rank=64", "--results", str(tmp_path)]) == 0  # another file, which says what it shows
    assert "at its recipe with method.rank=64;" in (tmp_path / "pareto" / "digits_vit_digits_method.rank_64.md").read_text()
    store.write(record([*DIGITS, "method=lora", "method.rank=64"], 9, 0.7))
    assert command("pareto", ["method.rank=64", "--results", str(tmp_path)]) == 1
    assert "no seed has a run of every method" in capsys.readouterr().err
    assert command("pareto", ["train.learning_rate=0.1", "--results", str(tmp_path)]) == 1
    assert "learning_rate" in (said := capsys.readouterr().err) and "no method has records" not in said
    assert command("pareto", ["minilm", "--results", str(tmp_path)]) == 1
    assert "'minilm' is not KEY=VALUE" in capsys.readouterr().err
    assert command("pareto", ["model=minilm", "task=rte", "--results", str(tmp_path)]) == 1
    assert "no method has records" in capsys.readouterr().err
    assert command("pareto", ["model=minilm", "task=rtee", "--results", str(tmp_path)]) == 1
    assert "task=rtee: no such choice; allowed: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pareto", "search"])
def test_the_artefacts_take_any_records(name):
    (table,) = artefact(name).build(Asked({}))
    assert all(len(row) == len(table.columns) for row in table.rows)
