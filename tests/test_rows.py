"""Options of scripts/tables.py: each artefact shows what was asked for, or refuses the option by name."""

import re

import pytest

from experiments.artefacts.digits import METHODS
from experiments.engine import pareto, registry
from experiments.engine.render import DASH, INTERVAL
from experiments.engine.rows import Asked
from tests.test_experiments import by_cell, record
from vera.commands import run
from vera.config import conf_file
from vera.errors import ConfigError

SCORES = [0.50, 0.60, 0.70, 0.80, 0.95]  # median 70.0, mean 71.0, best 95.0; each 20 points lower at the last epoch
EXPECTED = {"median": "70.0", "mean": "71.0", "last": "50.0", "best": "95.0"}
DIGITS = ["model=digits_vit", "task=digits"]
CELLS = {  # an artefact that takes --stat, and the runs of one of its rows
    "digits": [*DIGITS, "method=lora"],
    "figure2_ranks": [*DIGITS, "method=lora", "method.rank=8"],
    "figure4_gain": [*DIGITS, "method=lora"],
    "glue_minilm": ["model=minilm", "task=rte", "method=lora"],
    "variants": [*DIGITS, "method=vera"],
    "table2": ["model=roberta_large", "task=rte", "method=lora"],
}


def runs(overrides, last=-0.2):
    return [record(overrides, seed, score, score + last) for seed, score in enumerate(SCORES)]


def shown(name: str, asked: Asked) -> set[str]:
    """Every number with a spread that the artefact's tables hold."""
    texts = [text for table in registry.artefact(name).build(asked) for row in table.rows if "paper" not in row for text in row]
    return {text.partition("±")[0] for text in texts if re.match(r"[\d.]+±", text)}


@pytest.mark.parametrize("name", CELLS)
def test_each_artefact_shows_the_statistic_that_was_asked_for(name):
    found_in = by_cell(*runs(CELLS[name]))
    for stat, value in EXPECTED.items():
        found = shown(name, Asked(found_in, stat=stat))
        assert value in found, (stat, found)
    assert not {"95.0", "71.0"} & shown(name, Asked(found_in, stat="last"))


def test_the_small_gpt2s_metrics_too():
    overrides = ["model=gpt2_mini", "task=e2e", "method=lora"]
    made = [record(overrides, seed, score, score - 0.2, {"BLEU": score}) for seed, score in enumerate(SCORES)]
    found = by_cell(*made)
    assert {stat: shown("e2e_mini", Asked(found, stat=stat)) for stat in (*EXPECTED, None)} == {
        "median": {"70.0"},
        "mean": {"71.0"},
        "best": {"95.0"},
        "last": {"50.0"},
        None: {"50.0"},
    }


def test_the_columns_and_notes_say_which_statistic_it_is():
    found = by_cell(*runs(CELLS["digits"]))
    (last,), (mean,) = (registry.artefact("digits").build(Asked(found, stat=stat)) for stat in ("last", "mean"))
    assert "Best epoch" not in last.columns and last.columns.count("Last epoch") == 1
    assert INTERVAL in mean.columns and "Mean over seeds" in mean.notes[0]


@pytest.mark.parametrize("name", CELLS)
def test_overrides_choose_other_runs(name):
    assert shown(name, Asked(by_cell(*runs(CELLS[name])), ["train.batch_size=3"])) == set()
    asked = Asked(by_cell(*runs([*CELLS[name], "train.batch_size=3"])), ["train.batch_size=3"])
    assert shown(name, asked)
    assert all("Every run with train.batch_size=3." in table.notes for table in registry.artefact(name).build(asked))


def tables(monkeypatch, *arguments):
    return run("tables", [*map(str, arguments)])


@pytest.mark.parametrize("name", ["table1", "accounting", "bench", "figure3", "figure5", "figure6", "claims"])
def test_what_is_not_made_from_runs_refuses_what_it_would_ignore(name, monkeypatch, capsys, tmp_path):
    for option in (["--stat", "mean"], ["--with", "train.batch_size=3"]):
        assert tables(monkeypatch, name, "--results", tmp_path, *option) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {name}") and f"does not depend on {option[0]}" in said.replace("--results", option[0])
    takes = "results" in registry.artefact(next(n for n in registry.names() if n.startswith(name))).takes
    assert tables(monkeypatch, name, "--results", tmp_path, "--out", tmp_path) == (0 if takes else 1)


def test_with_no_name_they_are_left_out_by_name(monkeypatch, capsys, tmp_path):
    assert tables(monkeypatch, "--stat", "mean", "--results", tmp_path, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert all(name in said.splitlines()[0] for name in ("table1", "bench", "claims", "figure6_expressivity"))
    made = {path.stem for path in (tmp_path / "out" / "tables").glob("*.md")}
    assert {"digits", "table2", "figure2"} <= made and not made & {"table1", "claims", "figure6", "bench", "counts"}
    assert not (tmp_path / "out" / "figures").exists() and "none is drawn" in said


def test_rows_of_a_miniature_show_the_seeds_that_all_of_them_have():
    many = [record([*DIGITS, "method=vera"], seed, 0.5 if seed < 5 else 0.9) for seed in range(12)]
    five = runs([*DIGITS, "method=lora"])
    table = registry.artefact("digits").build(Asked(by_cell(*many, *five)))[0]
    shown_of = {row[0]: row for row in table.rows}
    n = table.columns.index("n")
    assert (shown_of["VeRA r=256"][n], shown_of["LoRA r=8"][n], shown_of["Full"][n]) == ("5", "5", "–")
    assert shown_of["VeRA r=256"][n + 1].startswith("50.0±0.0")


def test_a_judge_is_refused_where_none_scores(capsys):
    assert run("tables", ["table2", "--judge", "mine"]) == 1
    assert "table2 does not depend on --judge: it shows no judge's scores; leave it out" in capsys.readouterr().err
    assert run("tables", ["figure6", "--judge", "mine"]) == 1
    with pytest.raises(SystemExit):
        run("tables", ["--rows", "method", "--judge", "mine"])
    assert "--judge are not for such a table" in capsys.readouterr().err
    assert "judge" in registry.artefact("table4").takes and "judge" in registry.artefact("table13").takes


@pytest.mark.parametrize("name", ["digits", "figure2_ranks", "variants", "pareto"])
def test_rows_without_a_seed_in_common_are_not_left_empty_without_a_word(name):
    other = {"variants": ["method.sharing=unique"], "pareto": []}.get(name, [])
    method = "vera" if other else "lora"
    early = [record([*DIGITS, "method=vera"], seed, 0.5) for seed in (0, 1)]
    late = [record([*DIGITS, f"method={method}", *other], seed, 0.5) for seed in (2, 3)]
    table = registry.artefact(name).build(Asked(by_cell(*early, *late)))[-1]
    (said,) = (note for note in table.notes if "no seed has one in every row" in note)
    assert ": 0, 1" in said and ": 2, 3" in said and "none is shown" in said
    shared = registry.artefact(name).build(
        Asked(by_cell(*early, *late, late[0].model_copy(update={"run": late[0].run.model_copy(update={"seed": 0})})))
    )
    assert not any("no seed has one" in note for table in shared for note in table.notes)


def test_the_digits_say_on_which_seeds_each_method_s_rates_were_chosen():
    (table,) = registry.artefact("digits").build(Asked({}))
    (said,) = (note for note in table.notes if note.startswith("Learning rates"))
    two = re.search(r"100-103 \((.*): 100 and 101\)", said)[1].replace(" and ", ", ").split(", ")
    for method, label in METHODS.items():
        lead = conf_file("recipe", f"{method}_digits_vit").read_text(encoding="utf-8").splitlines()[0]
        seeds = re.search(r"on the seeds (100-103|100 and 101), median best accuracy of the evaluation set", lead)[1]
        assert (seeds == "100 and 101") == (label.partition(" r=")[0] in two), method


def test_a_row_about_another_value_than_with_gives_shows_no_runs_of_it():
    """They would stand under the row's own label: rank 64 as rank 1."""
    asked = Asked(by_cell(*runs(["model=digits_vit", "task=digits", "method=vera", "method.rank=64"])), ["method.rank=64"])
    cell = ["model=digits_vit", "task=digits", "method=vera"]
    assert len(asked.records(cell)) == len(asked.records([*cell, "method.rank=64.0"])) == 5 and not asked.said
    assert not asked.records([*cell, "method.rank=1"]) and not asked.records(["model=vit_base", *cell[1:], "method.rank=8"])
    assert asked.said[0] == "A row of method.rank=1 has no runs with method.rank=64."


@pytest.mark.parametrize("word", ["seed=3", "device=cpu"])
def test_a_key_that_is_no_part_of_a_cell_chooses_no_runs(word):
    """All would be shown, as "every run with seed=3"."""
    cell = ["model=digits_vit", "task=digits", "method=vera"]
    asked = Asked(by_cell(*runs(cell)), [word])
    said = f"{word.partition('=')[0]}= is no part of a cell, and chooses none of its records"
    for look in (lambda: asked.records(cell), lambda: pareto.table(asked, "digits_vit", "digits", "x")):
        with pytest.raises(ConfigError, match=said):
            look()


def test_a_table_names_those_of_the_keys_given_that_choose_its_runs():
    cell = ["model=digits_vit", "task=digits", "method=vera"]
    fast = ["train.save=true", "++train.eval_batch_size=7", "model.path=/here", "train.batch_size=8"]
    made = runs([*cell, "train.batch_size=8"])
    table = next(made for made in registry.artefact("digits").build(Asked(by_cell(*made), fast)) if made.name == "digits")
    assert "Every run with train.batch_size=8." in table.notes
    assert (
        "at its recipe with train.batch_size=8;"
        in pareto.table(Asked(by_cell(*made), fast), "digits_vit", "digits", "x").notes[0]
    )
    alone = Asked(by_cell(*runs(cell)), fast[:3])
    assert len(alone.records(cell)) == 5 and alone.named == ""


@pytest.mark.parametrize("word", ["method.sharing=unique", "++method.sharing=unique"])
def test_a_row_that_is_about_a_default_has_no_runs_of_another_value(word):
    made = runs(["model=digits_vit", "task=digits", "method=vera", "method.sharing=unique"])
    asked = Asked(by_cell(*made), [word])
    for _ in range(2):  # each artefact says it that asks for the row
        table = next(made for made in registry.artefact("variants").build(asked) if made.name == "table7_mini")
        assert [row[1:4:2] for row in table.rows] == [["Shared", DASH], ["Unique", "5"]]
        assert f"A row of method.sharing=shared has no runs with {word}." in table.notes
