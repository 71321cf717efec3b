"""Runs over other data, backbones, versions or machines are compared with nothing, and every table says so."""

import json

import pytest

from experiments.artefacts import digits
from experiments.engine import claims, pareto, tuning
from experiments.engine.aggregate import common, summarise_records, two_sided_p, unlike
from experiments.engine.pivot import pivot
from experiments.engine.published import choice
from experiments.engine.registry import artefact
from experiments.engine.rows import Asked
from tests.test_experiments import by_cell, record
from vera.config import cell_id
from vera.errors import ConfigError
from vera.records.record import Record
from vera.records.sources import CONFIGURED
from vera.records.store import Store

DIGITS = ["model=digits_vit", "task=digits"]
MINILM = ["model=minilm", "task=stsb"]
JOINED = {"pairs": "joined with a line break"}
OTHER = {"data": {"data_fingerprint": "e"}, "backbone": {"model_fingerprint": "n"}}


def runs(overrides, score, seeds=5, cost=None, **provenance):
    made = []
    for seed in range(seeds):
        raw = json.loads(record(overrides, seed, score + seed / 1000, **provenance).to_json())
        made.append(Record.model_validate({**raw, "cost": {**raw["cost"], **(cost or {})}}))
    return made


def test_methods_are_not_compared_over_other_code_of_their_task_and_may_differ_in_their_own():
    first, second = ({"method": mark * 64, "task": mark * 64} for mark in "ab")
    vera, lora = (runs([*DIGITS, f"method={method}"], 0.8, own_code=first) for method in ("vera", "lora"))
    assert len(common(vera, lora)[0]) == 5
    other = [made.model_copy(deep=True) for made in lora]
    for made in other:
        made.provenance.own_code["method"] = "c" * 64
    assert len(common(vera, other)[0]) == 5
    assert summarise_records([*lora[:2], *other[2:]]).mixed == ("code",)
    later = runs([*DIGITS, "method=lora"], 0.8, own_code=second)
    assert common(vera, later) == ([], [])
    assert unlike([*vera, *later]) == [f"code of model and task (task {'a' * 12}: vera; task {'b' * 12}: lora)"]


def older(made: Record, version: int) -> Record:
    """A record of another version of its model."""
    raw = json.loads(made.to_json())
    raw["run"]["config"]["model"]["version"] = version
    raw["run"]["cell_id"] = cell_id(raw["run"]["config"], raw["run"]["follows_seed"])
    return Record.model_validate(raw)


def built(name, *found):
    return {table.name: table for table in artefact(name).build(Asked(by_cell(*found)))}


def said(table) -> list[str]:
    return [note for note in table.notes if note.startswith("Not like with like on ")]


@pytest.mark.parametrize("what", OTHER)
def test_pairs_of_unlike_runs_are_left_out(what):
    vera = runs([*DIGITS, "method=vera"], 0.8)
    lora = [*runs([*DIGITS, "method=lora"], 0.7)[:2], *runs([*DIGITS, "method=lora"], 0.7, **OTHER[what])[2:]]
    assert common(vera, lora) == ([0.8, 0.801], [0.7, 0.701])
    assert unlike([*vera, *lora[:2]]) == []
    ((of, values),) = [found.split(" ", 1) for found in unlike([*vera, *lora])]
    first, second = ("d", "e") if what == "data" else ("m", "n")
    assert of == what and values == f"({first}: lora, vera; {second}: lora)"


@pytest.mark.parametrize("note", CONFIGURED)
def test_a_configuration_is_compared_where_both_records_note_it(note):
    old, one, other = (
        runs([*DIGITS, f"method={method}"], 0.7, **({"notes": {note: value}} if value else {}))
        for method, value in (("lora", None), ("vera", "one"), ("lora", "other"))
    )
    assert unlike([*old, *one]) == [] and len(common(one, old)[0]) == 5
    assert unlike([*one, *other]) == [f"{note} (one: vera; other: lora)"] and common(one, other) == ([], [])
    assert summarise_records([*old[:2], *other[2:]]).mixed == () and summarise_records([*one[:2], *other[2:]]).mixed == (note,)


def test_other_images_drawn_by_one_seed_are_unlike():
    def drawn(method, images, seeds=3, rows=(4, 2)):
        return [
            run.model_copy(
                update={
                    "provenance": run.provenance.model_copy(
                        update={"notes": {"few_shot_rows": list(rows), "few_shot_images": f"{images}{run.run.seed}"}}
                    )
                }
            )
            for run in runs([*DIGITS, f"method={method}"], 0.5, seeds)
        ]

    vera, lora, other = drawn("vera", "a"), drawn("lora", "a"), drawn("lora", "b")
    assert unlike([*vera, *lora]) == [] and len(common(vera, lora)[0]) == 3
    assert unlike([*vera, *other]) == ["images of seed 0 (a0: vera; b0: lora)"] and common(vera, other) == ([], [])
    assert len(common(vera, [*other[:1], *lora[1:]])[0]) == 2
    older = runs([*DIGITS, "method=lora"], 0.5, 3)
    assert unlike([*vera, *older]) == [] and len(common(vera, older)[0]) == 3
    assert unlike([*vera, *drawn("lora", "c", rows=(4, 2, 3))]) == []  # more of them, as a setting says


def test_pairs_as_one_text_are_other_data_than_pairs_without_anything_between():
    old, new = runs([*DIGITS, "method=lora"], 0.7), runs([*DIGITS, "method=vera"], 0.7, notes=JOINED)
    assert unlike([*old, *new]) == ["data (d: lora; d, pairs joined: vera)"] and common(new, old) == ([], [])
    assert summarise_records([*old[:2], *new[2:]]).mixed == ("data",)


def test_seeds_of_two_precisions_are_marked():
    one, other = (runs([*DIGITS, "method=vera"], 0.8, cost={"precision": precision}) for precision in ("fp32", "bf16"))
    assert summarise_records(one).mixed == () and summarise_records([*one[:2], *other[2:]]).mixed == ("precision",)


def test_versions_of_the_model_are_told_apart():
    old = [older(made, 7) for made in runs([*DIGITS, "method=lora"], 0.7)]
    new = runs([*DIGITS, "method=vera"], 0.8)
    assert common(new, old) == ([], [])
    (note,) = said(pivot([*old, *new], ["method"], ["task"]))
    assert "digits_vit, digits: version (model 1, task 1: vera; model 7, task 1: lora)" in note


def test_a_table_by_any_keys_says_what_is_unlike_on_each_model_and_task():
    like = [*runs([*MINILM, "method=lora"], 0.8), *runs([*DIGITS, "method=lora"], 0.7, data_fingerprint="another task's")]
    assert said(pivot(like, ["method"], ["task"])) == []
    (note,) = said(pivot([*like, *runs([*MINILM, "method=vera"], 0.8, data_fingerprint="e")], ["method"], ["task"]))
    assert "minilm, stsb: data (d: lora; e: vera)." in note


def test_a_run_that_went_on_elsewhere_is_of_both_machines():
    there = runs(
        [*DIGITS, "method=vera"], 0.8, notes={"resumed": [{"step": 0, "started": "then", "device": "a GPU", "threads": 8}]}
    )
    both = [*there, *runs([*DIGITS, "method=lora"], 0.7)]
    assert unlike(both, ["device", "threads"]) == [
        "device (a GPU and cpu: vera; cpu: lora)",
        "threads (2: lora; 2 and 8: vera)",
    ]
    assert unlike(both) == []


def test_no_front_over_unlike_scores(tmp_path):
    found = [
        *runs([*MINILM, "method=lora"], 0.8),
        *runs([*MINILM, "method=adapter_p"], 0.9, data_fingerprint="e", model_fingerprint="n"),
    ]
    asked = Asked(by_cell(*found))
    table = pareto.table(asked, "minilm", "stsb", "x")
    assert [row[-1] for row in table.rows] == ["–", "–"] and pareto.draw(asked, "minilm", "stsb", tmp_path / "x") == []
    assert "backbone (m: lora; n: adapter_p), data (d: lora; e: adapter_p)" in said(table)[0]


@pytest.mark.parametrize(
    ("cost", "why"),
    [
        ({"processes": 4}, "memory and seconds: the runs differ in processes (1: lora; 4: vera)"),
        ({"precision": "bf16"}, "memory and seconds: the runs differ in precision (bf16: vera; fp32: lora)"),
        ({"device": "H100"}, "memory and seconds: the runs differ in device (H100: vera; cpu: lora)"),
        ({"threads": 9}, "seconds: the runs differ in threads (2: lora; 9: vera)"),
    ],
)
def test_no_front_of_costs_over_unlike_machines(cost, why):
    found = [*runs([*DIGITS, "method=lora"], 0.7), *runs([*DIGITS, "method=vera"], 0.8, cost=cost)]
    table = pareto.table(Asked(by_cell(*found)), "digits_vit", "digits", "x")
    fronts = ", ".join(row[-1] for row in table.rows)
    assert "trained" in fronts and "seconds" not in fronts and ("memory" in fronts) == ("threads" in cost)
    assert f"No front of {why}." in table.notes


def test_a_difference_over_unlike_precision_is_taken_and_said_to_be_one():
    shared, unique = runs(["method=vera"], 0.8), runs(["method=vera", "method.sharing=unique"], 0.9, cost={"precision": "bf16"})
    table = built("variants", *shared, *unique)["table7_mini"]
    assert table.rows[1][-1] == "+10.0 [+10.0, +10.0]"
    assert said(table)[0].endswith("backbones, data or versions, but differences are over unlike precision.")
    other = built("variants", *shared, *runs(["method=vera", "method.sharing=unique"], 0.9, data_fingerprint="e"))
    assert said(other["table7_mini"])[0].endswith("backbones, data or versions.")


def test_differences_of_an_ablation_are_dashes():
    rows = [*runs(["method=vera"], 0.8), *runs(["method=vera", "method.sharing=unique"], 0.9, data_fingerprint="e")]
    table = built("variants", *rows)["table7_mini"]
    assert table.rows[1][-1] == "–" and "data (d: vera; e: vera)" in said(table)[0]


@pytest.mark.parametrize(("data", "dashes"), [("d", []), ("e", ["–", "–"])])
def test_a_gain_is_over_the_head_alone_on_the_same_data(data, dashes):
    head = runs([*DIGITS, *choice("figure4", "head", "mini")], 0.5, data_fingerprint=data)
    table = built("figure4_gain", *runs(["method=vera"], 0.8), *head)["figure4_mini"]
    (row,) = (row for row in table.rows if row[0] == "VeRA r=256")
    assert [text for text in row[2:4] if text == "–"] == dashes and bool(said(table)) == bool(dashes)


@pytest.mark.parametrize("name", ["table2", "glue_minilm"])
def test_nothing_is_tested_over_unlike_data(name):
    overrides = MINILM if name == "glue_minilm" else ["model=roberta_large", "task=stsb"]
    vera = runs([*overrides, "method=vera"], 0.8)
    like = built(name, *vera, *runs([*overrides, "method=lora"], 0.7))
    other = built(name, *vera, *runs([*overrides, "method=lora"], 0.7, data_fingerprint="e"))
    assert like[f"{name}_tests"].rows and not said(like[name])
    assert not other[f"{name}_tests"].rows if name == "glue_minilm" else f"{name}_tests" not in other
    assert "stsb: data (d: vera; e: lora)" in said(other[name])[0]


@pytest.mark.parametrize("name", ["table2", "glue_minilm"])
def test_a_comparison_with_a_collapsed_run_says_so_in_its_line(name):
    overrides = MINILM if name == "glue_minilm" else ["model=roberta_large", "task=stsb"]
    *lora, last = runs([*overrides, "method=lora"], 0.7)
    lost = last.model_copy(update={"collapsed": "the loss is nan"})
    lines = built(name, *runs([*overrides, "method=vera"], 0.8), *lora, lost)[f"{name}_tests"].rows
    assert [["STS-B" in line, "a run collapsed in 1 of 5 pairs" in line, line[-1]] for line in lines] == [[True, True, "–"]]


@pytest.mark.parametrize("name", ["table2", "glue_minilm"])
def test_a_comparison_without_a_run_has_no_line(name):
    overrides = MINILM if name == "glue_minilm" else ["model=roberta_large", "task=stsb"]
    made = built(name, *runs([*overrides, "method=lora"], 0.7))
    assert not any("VeRA" in row[1] for row in (made[f"{name}_tests"].rows if f"{name}_tests" in made else []))


def test_a_gain_stands_beside_the_accuracy_of_the_same_seeds():
    head = runs([*DIGITS, *choice("figure4", "head", "mini")], 0.5)
    vera = runs(["method=vera"], 0.8)
    other = [
        run.model_copy(update={"provenance": run.provenance.model_copy(update={"data_fingerprint": "e"})}) for run in vera[3:]
    ]
    table = built("figure4_gain", *vera[:3], *other, *head)["figure4_mini"]
    (row,) = (row for row in table.rows if row[0] == "VeRA r=256")
    assert row[2] == "3" and all("(n=3)" in text for text in row[5:7])


def test_the_table_on_real_text_says_on_which_devices_it_was_computed():
    vera, lora = (runs([*MINILM, f"method={method}"], 0.8) for method in ("vera", "lora"))
    moved = [run.model_copy(update={"cost": run.cost.model_copy(update={"device": "H100"})}) for run in lora]
    here, there = (built("glue_minilm", *vera, *other)["glue_minilm"].notes for other in (lora, moved))
    assert not any("Computed" in note for note in here)
    assert "Computed: STS-B on H100 (LoRA r=8), on cpu (VeRA r=256). Rounding differs between devices." in there
    mixed = built("glue_minilm", *vera, *moved[:2], *lora[2:])["glue_minilm_cells"]
    found = {row[1]: row[-2:] for row in mixed.rows}
    assert found == {"VeRA r=256": ["2", "cpu"], "LoRA r=8": ["–", "H100; cpu"]}  # seconds of two devices have no median


def test_few_and_many_epochs_of_cola_are_compared_method_by_method_and_with_lora_for_as_long():
    cola = ["model=minilm", "task=cola"]
    usual = [*runs([*cola, "method=lora"], 0.5), *runs([*cola, "method=vera"], 0.4)]
    assert "glue_minilm_long" not in built("glue_minilm", *usual)
    vera = runs([*cola, "method=vera", "train.epochs=4"], 0.1)
    made = built("glue_minilm", *usual, *vera)
    assert "Epochs: MRPC 4; CoLA 12 (Head only, Full fine-tuning: 4); RTE 6; STS-B 4." in made["glue_minilm"].notes
    rows = {tuple(row[:2]): row for row in made["glue_minilm_long"].rows}
    few, many = rows["VeRA r=256", "4"], rows["VeRA r=256", "12"]
    assert few[-2:] == ["–", "–"]  # LoRA has not been trained for as long
    assert [cell.split()[0] for cell in many[-2:]] == ["+30.0", "-10.0"]
    rows = built("glue_minilm", *usual, *vera, *runs([*cola, "method=lora", "train.epochs=4"], 0.3))["glue_minilm_long"].rows
    assert [row[-1].split()[0] for row in rows if row[0] == "VeRA r=256"] == ["-20.0", "-10.0"]
    made = built("glue_minilm", *usual, *runs([*cola, "method=vera", "train.epochs=4"], 0.1, data_fingerprint="e"))
    assert {name: bool(said(table)) for name, table in made.items()} == {name: name == "glue_minilm_long" for name in made}


@pytest.mark.parametrize(
    ("backbone", "data", "tokenizer", "shown"),
    [("m", "d", "t", True), ("n", "d", "t", False), ("m", "e", "t", False), ("m", "d", "u", False)],
)
def test_the_linear_probe_is_no_yardstick_for_runs_of_other_rows_or_another_backbone(
    backbone, data, tokenizer, shown, tmp_path
):
    made = {"backbone": backbone, "preprocessing": tokenizer}
    tasks = {
        "stsb": {"metrics": {"pearson": 0.5}, "data": data, **made},
        "rte": {"metrics": {"accuracy": 0.6}, "data": "r", **made, "preprocessing": "another"},
    }
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "probe_minilm.json").write_text(json.dumps({"tasks": tasks}))
    notes = {"preprocessing": "t"}
    cells = by_cell(*(run for m in ("vera", "lora") for run in runs([*MINILM, f"method={m}"], 0.8, notes=notes)))
    scores, _, tests = artefact("glue_minilm").build(Asked(cells, results=tmp_path))
    assert [scores.rows[0][-1], tests.rows[0][-1]] == (["50.0", "yes"] if shown else ["–", "–"])
    assert ("60.0" in scores.rows[0]) == (backbone == "m")  # RTE has no runs, but the table's have a backbone
    assert any(note.startswith("No linear probe for ") and "STS-B" in note for note in scores.notes) != shown


def test_equal_scores_are_no_evidence_of_a_difference():
    made = {m: runs([*MINILM, f"method={m}"], 0.5) for m in ("vera", "lora")}
    (row,) = built("glue_minilm", *made["vera"], *made["lora"])["glue_minilm_tests"].rows
    assert row[3:6] == ["+0.0 [+0.0, +0.0]", "1.0000", "1.0000"]
    assert two_sided_p([0.5, 0.5]) == 0.0 and two_sided_p([0.5]) is None
    assert two_sided_p([1.0, 2.0, 4.0]) == two_sided_p([-1.0, -2.0, -4.0]) == pytest.approx(0.1181, abs=1e-4)


def test_seeds_that_two_methods_alone_have_are_in_the_test_of_this_pair():
    vera, lora = (runs([*MINILM, f"method={m}"], score, seeds=7) for m, score in (("vera", 0.8), ("lora", 0.81)))
    full = runs([*MINILM, "method=full"], 0.9)
    rows = {row[1]: row for row in built("glue_minilm", *vera, *lora, *full)["glue_minilm_tests"].rows}
    pair = "VeRA r=256 - LoRA r=8"
    assert {name: row[2] for name, row in rows.items() if pair in name} == {pair: "5", f"{pair}, all pairs": "7"}
    assert len(rows) == 4  # the others have no more than all
    vera[6] = Record.model_validate(json.loads(vera[6].to_json()) | {"collapsed": "the loss is nan"})
    lost = {row[1]: row[3] for row in built("glue_minilm", *vera, *lora, *full)["glue_minilm_tests"].rows}
    assert lost[f"{pair}, all pairs"] == "a run collapsed in 1 of 7 pairs"
    only = built("glue_minilm", *runs([*MINILM, "method=vera"], 0.8), *lora)["glue_minilm_tests"]
    assert [row[2] for row in only.rows] == ["5"] and not any("All pairs" in note for note in only.notes)


def test_a_claim_takes_no_unlike_pair_and_says_so():
    vera = runs([*DIGITS, "method=vera"], 0.8)
    alike, other = (built("claims", *vera, *runs([*DIGITS, "method=lora"], 0.8, data_fingerprint=data)) for data in ("d", "e"))

    place = [claim.id for claim in claims.stated()].index("same_images")
    assert [found["claims"].rows[place][4] for found in (alike, other)] == ["supported in miniature only", "not run"]
    assert not said(alike["claims"]) and all("data (d: vera; e: lora)" in said(table)[0] for table in other.values())


def test_the_digits_verdict_compares_like_with_like():
    found = {"vera": runs(["method=vera"], 0.8), "lora": runs(["method=lora"], 0.8, model_fingerprint="n")}
    assert digits.verdict(found) == "VeRA and LoRA are not compared: their runs differ in backbone (m: vera; n: lora)."


def test_a_search_chooses_nothing_over_unlike_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def tried(folder, data):
        words = [*DIGITS, "method=vera", "task.validation=0.2"]
        asked = tuning.read([*words, "train.lr=1e-3,1e-2", f"results_dir={folder}"], (100, 101))

        def compute(pending):
            for run in pending:
                made = record([*words, f"train.lr={run.train.lr}"], run.seed, 0.8, data_fingerprint=data(run))
                Store(run.results_dir).write(made)

        return tuning.carry_out(asked, compute), asked

    within, asked = tried("within", lambda run: f"of {run.seed}")
    assert [found.summary.mixed for found in within] == [("data",)] * 2
    assert "†" in tuning.table(within, asked).rows[0][2]
    across, asked = tried("across", lambda run: "d" if run.train.lr > 5e-3 else "e")
    assert "not like with like, in data (d: vera; e: vera); nothing is chosen" in tuning.remarks(across, asked)[-1]
    with pytest.raises(ConfigError, match="no setting is chosen: The trials are not like with like"):
        tuning.recipe_of(across, asked, tmp_path)
    alike, asked = tried("alike", lambda run: "d")
    assert not any("like with like" in line for line in tuning.remarks(alike, asked))
    for index, found in enumerate(alike):
        for made in found.records:
            made.provenance.own_code["method"] = "ab"[index] * 64  # a project's class, changed between two trials
    assert "not like with like, in code (method" in tuning.remarks(alike, asked)[-1]


def test_longer_training_says_of_which_epoch_its_differences_are_and_where_the_runs_were_computed():
    cola = ["model=minilm", "task=cola", "method=bitfit"]
    few = [record([*cola, "train.epochs=4"], seed, 0.2 + seed / 100, last=0.1 + seed / 50) for seed in range(5)]
    many = runs([*cola, "train.epochs=12"], 0.3, cost={"device": "NVIDIA H100"})
    for stat, epoch in ((None, "best"), ("last", "last")):
        found = artefact("glue_minilm").build(Asked(by_cell(*few, *many), stat=stat))
        (table,) = (table for table in found if table.name == "glue_minilm_long")
        notes = " ".join(table.notes)
        assert f"differences of the {epoch} epoch" in notes and "Computed: BitFit on NVIDIA H100 (12), on cpu (4)." in notes
        (row,) = (row for row in table.rows if row[:2] == ["BitFit", "12"])
        assert row[table.columns.index("To 4 epochs")][:3] == ("+8." if epoch == "best" else "+16")


def test_test_rows_have_no_last_epoch_and_a_table_of_that_a_dash_in_each_column():
    tested = []
    for item in runs([*MINILM, "method=vera", "task.validation=0.1"], 0.8):
        raw = json.loads(item.to_json())
        raw["scores"]["test"] = {"epoch": 1, "metrics": raw["scores"]["best"]["metrics"]}
        tested.append(Record.model_validate(raw))
    found = artefact("glue_minilm").build(Asked(by_cell(*tested), ["task.validation=0.1"], "last"))
    (cells,) = (table for table in found if table.name == "glue_minilm_cells")
    assert [row[3:5] for row in cells.rows] == [["–", "–"]]


def test_a_method_with_more_seeds_than_the_others_is_shown_over_theirs():
    vera, lora = (runs([*MINILM, f"method={method}"], 0.8, seeds) for method, seeds in (("vera", 9), ("lora", 5)))
    few = runs([*MINILM, "method=ia3"], 0.7, 2)
    found = artefact("glue_minilm").build(Asked(by_cell(*vera, *lora, *few)))
    shown = {row[0]: row[-1] for row in found[0].rows}
    assert shown["VeRA r=256"] == shown["LoRA r=8"] == "80.2±0.2" and shown["IA3"].endswith("(n=2)")
    assert "Over the seeds that all methods with 5 or more have; there are others of STS-B." in found[0].notes


def test_notes_on_epochs_and_rates_are_of_what_was_asked_for():
    def notes(name, *given):
        return " ".join(note for table in artefact(name).build(Asked({}, given)) for note in table.notes)

    assert "CoLA 12" in notes("glue_minilm") and "MRPC 3" not in notes("glue_minilm")
    assert "Epochs: MRPC 3; CoLA 3; RTE 3; STS-B 3." in notes("glue_minilm", "train.epochs=3", "method=vera")
    for name in ("glue_minilm", "digits", "digits_large", "e2e_mini", "variants", "figure2_ranks"):
        assert "earning rates" in notes(name) and "earning rates" not in notes(name, "train.lr=0.1")
