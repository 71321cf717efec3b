"""Medians that are medians, tables to the character, dashes where nobody has run anything."""

import json
import math
import statistics

import pytest
import yaml

from experiments.artefacts import digits, e2e_mini
from experiments.engine import paper, plots, published, registry
from experiments.engine.aggregate import cell_records, common, permutation_p, summarise, summarise_records
from experiments.engine.comparison import compare, studies
from experiments.engine.render import DASH, INTERVAL, Table, interval, latex, markdown, notes_of, number
from experiments.engine.rows import Asked, Entry, seconds, steps
from tests.conftest import ROOT
from vera.config.memory import composed
from vera.errors import ConfigError, RecordError
from vera.records.record import Record


def record(overrides, seed, score, last=None, metrics=None, parameters=3072, **provenance) -> Record:
    """A made-up record of a real cell, for tables alone."""
    run = composed([*overrides, f"seed={seed}"])
    primary = run.task["primary"]
    best = {primary: score, **(metrics or {})}
    final = {**best, primary: score if last is None else last}
    return Record.model_validate(
        {
            "schema": 1,
            "status": "done",
            "run": {
                "model": run.model["name"],
                "task": run.task["name"],
                "method": run.method["name"],
                "seed": seed,
                "cell_id": run.cell_id,
                "follows_seed": run.follows_seed,
                "config": json.loads(json.dumps(run.scientific)),
            },
            "parameters": {"adapter": parameters, "head": 645, "total": 10**6, "adapter_bytes": 4 * parameters},
            "scores": {
                "primary": primary,
                "best": {"epoch": 1, "metrics": best},
                "last": {"epoch": 2, "metrics": final},
                "best_each": {},
                "history": [
                    {"epoch": 1, "step": 1, "train_loss": 0.2, "metrics": best},
                    {"epoch": 2, "step": 2, "train_loss": 0.1, "metrics": final},
                ],
            },
            "cost": {
                "seconds": 2.0,
                "steps": 2,
                "examples": 8,
                "tokens": 0,
                "peak_memory_bytes": 1,
                "device": "cpu",
                "precision": "fp32",
                "threads": 2,
                "restarts": 0,
            },
            "provenance": {
                "started": "2026-01-01T00:00:00+00:00",
                "finished": "2026-01-01T00:00:02+00:00",
                "git_sha": None,
                "git_dirty": None,
                "versions": {},
                "model_source": "x",
                "model_commit": None,
                "model_fingerprint": "m",
                "data_source": "y",
                "data_commit": None,
                "data_fingerprint": "d",
                "train_rows": 50,
                "eval_rows": 846,
                **provenance,
            },
        }
    )


def by_cell(*records):
    cells = {}
    for item in records:
        cells.setdefault(item.run.cell_id, []).append(item)
    return cells


def test_summary_is_the_textbook_one():
    summary = summarise([0.9, 0.7, 0.8, 0.4])
    assert summary.median == pytest.approx(0.75) == statistics.median([0.4, 0.7, 0.8, 0.9])  # not the upper middle
    assert summary.std == pytest.approx(statistics.stdev([0.4, 0.7, 0.8, 0.9]))
    assert summary.interval[0] >= 0.4 and summary.interval[1] <= 0.9 and summary.n == 4
    assert summarise([0.9, 0.7, 0.8, 0.4]).interval == summary.interval
    single = summarise([0.5])
    assert single.std is None and single.interval is None
    assert summarise([0.5] * 5).interval == (0.5, 0.5)


def test_numbers_say_when_seeds_are_missing():
    assert number(summarise([0.5, 0.6, 0.7, 0.8, 0.9]), 100) == "70.0±15.8"
    assert number(summarise([0.5, 0.6]), 100) == "55.0±7.1 (n=2)"
    assert number(summarise([0.5]), 100) == "50.0 (n=1)"
    assert number(None) == DASH and interval(None) == DASH


def test_a_cell_is_found_by_the_overrides_that_make_it():
    overrides = ["model=roberta_base", "task=rte", "method=vera"]
    cells = by_cell(*(record(overrides, seed, 0.8) for seed in (0, 1)), record([*overrides, "train.batch_size=32"], 0, 0.1))
    assert [item.run.seed for item in cell_records(cells, overrides)] == [0, 1]
    assert len(cell_records(cells, [*overrides, "train.batch_size=32"])) == 1
    assert cell_records(cells, [*overrides, "train.batch_size=16"]) == []


def test_seeds_on_different_backbones_are_marked():
    overrides = ["model=roberta_base", "task=rte", "method=vera"]
    alike = by_cell(record(overrides, 0, 0.8), record(overrides, 1, 0.8))
    unlike = by_cell(record(overrides, 0, 0.8), record(overrides, 1, 0.8, model_fingerprint="other"))
    assert summarise_records(cell_records(alike, overrides)).mixed == ()
    assert summarise_records(cell_records(unlike, overrides)).mixed == ("backbone",)
    assert "†" not in markdown(compare("table2", Asked(alike))[0])
    assert "80.0±0.0† (n=2)" in markdown(compare("table2", Asked(unlike))[0])
    assert "- † seeds that were run on different" in markdown(compare("table2", Asked(unlike))[0])


def test_table_2_shows_ours_below_the_published_row():
    cells = by_cell(
        *(
            record(["model=roberta_large", f"task={task}", "method=vera"], seed, 0.90 + seed / 100, last=0.5, parameters=61440)
            for task in ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
            for seed in range(5)
        ),
        record(["model=roberta_base", "task=rte", "method=lora"], 0, 0.8512, parameters=294912),
    )
    table, details = compare("table2", Asked(cells))
    rows = {(row[0], row[1], row[2]): row for row in table.rows}
    assert rows["Large", "VeRA", "paper"][3:] == [
        "0.061M",
        "96.1±0.1",
        "90.9±0.7",
        "68.0±0.8",
        "94.4±0.2",
        "85.9±0.7",
        "91.7±0.8",
        "87.8",
    ]
    assert rows["Large", "VeRA", "ours"][3:] == ["61,440", *["92.0±1.6"] * 6, "92.0"]
    ours_minus_printed = [round(cell.deviation, 6) for cell in rows["Large", "VeRA", "ours"][4:6]]
    assert ours_minus_printed == [-4.1, 1.1]
    assert rows["Base", "LoRA", "ours"][3:] == ["294,912", DASH, DASH, DASH, DASH, "85.1 (n=1)", DASH, DASH]
    assert rows["Base", "Full fine-tuning", "ours"][3:] == ["124,055,040", *[DASH] * 7]  # counted, not run
    best_last = next(row for row in details.rows if row[:3] == ["Large", "VeRA", "RTE"])
    assert best_last[3:] == ["5", "92.0", "[90.0, 94.0]", "92.0", "1.6", "50.0", "42.0", "85.9±0.7"]


def test_statistics_are_what_they_are_called():
    cells = by_cell(
        *(
            record(["model=roberta_large", f"task={task}", "method=vera"], seed, score, last=score - 0.1)
            for task in ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
            for seed, score in enumerate([0.5, 0.6, 0.7, 0.8, 0.95])
        )
    )

    def shown(stat, column=8):
        (row,) = (r for r in compare("table2", Asked(cells, stat=stat))[0].rows if r[:3] == ["Large", "VeRA", "ours"])
        return row[column]

    for column in (8, -1):  # RTE, and the average of all
        found = [shown(stat, column).partition("±")[0] for stat in ("median", "mean", "last", "best")]
        assert found == ["70.0", "71.0", "60.0", "95.0"]
    assert shown(None) == shown("median")


def test_vera_against_lora_is_paired_by_seed():
    def runs(method, scores):
        return [record(["model=roberta_large", "task=rte", f"method={method}"], seed, s) for seed, s in scores.items()]

    vera = runs("vera", {0: 0.80, 1: 0.82, 2: 0.84, 3: 0.86, 4: 0.88})
    lora = runs("lora", {0: 0.79, 1: 0.80, 2: 0.81, 3: 0.82, 4: 0.83, 7: 0.1})
    sides = common(vera, lora)
    assert [len(side) for side in sides] == [5, 5]  # lora's seed 7 has no partner
    assert permutation_p(*sides) == pytest.approx(2 / 32)  # one sign everywhere: two of the 32 sign patterns are as extreme
    assert permutation_p(sides[0], sides[0]) == 1.0 and permutation_p([0.1], [0.2]) is None
    tests = compare("table2", Asked(by_cell(*vera, *lora)))[2]
    assert tests.rows == [["Large", "RTE", "5", "+3.0 [+1.0, +5.0]", "0.0625"]]
    fallen = [r.model_copy(update={"scores": r.scores.model_copy(update={"last": lora[0].scores.best})}) for r in vera]
    (last,) = compare("table2", Asked(by_cell(*fallen, *lora), stat="last"))[2].rows
    assert last[3].startswith("-2.0 [")  # 79 against 79, 80, 81, 82, 83


def test_vera_against_each_lora_row_of_a_table_with_several(tmp_path, monkeypatch):
    rows = [("VeRA", "vera", 4), ("LoRA r=8", "lora", 8), ("LoRA r=1", "lora", 1)]
    text = {
        "table": "mine",
        "title": "Three rows",
        "stat": "median",
        "models": {"digits_vit": "ViT"},
        "columns": {"digits": {"label": "Digits", "task": "digits", "metric": "accuracy", "scale": 100}},
        "rows": [
            {"label": label, "model": "digits_vit", "method": method, "variant": {"method.rank": rank}, "source": "ours"}
            for label, method, rank in rows
        ],
    }
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "mine.yaml").write_text(json.dumps(text))
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    made = [
        record([*("model=digits_vit", "task=digits"), f"method={method}", f"method.rank={rank}"], seed, 0.5 + rank / 100)
        for _, method, rank in rows
        for seed in range(5)
    ]
    found = compare("mine", Asked(by_cell(*made)))[2].rows
    assert [(row[0], row[3]) for row in found] == [
        ("ViT, VeRA - LoRA r=8", "-4.0 [-4.0, -4.0]"),
        ("ViT, VeRA - LoRA r=1", "+3.0 [+3.0, +3.0]"),
    ]


def own_table(tmp_path, monkeypatch, **changes):
    """A project's table `mine` of two methods, without a number, as docs/results.md has it."""
    text = {
        "title": "Two methods",
        "stat": "last",
        "models": {"digits_vit": "ViT"},
        "columns": {
            "digits": {"label": "Digits", "task": "digits", "metric": "accuracy", "scale": 100},
            "seconds": {"label": "Seconds", "task": "digits", "cost": "seconds"},
        },
        "rows": [
            {"label": method, "model": "digits_vit", "method": method, "source": "theirs", **changes.get(method, {})}
            for method in ("vera", "lora")
        ],
    }
    (tmp_path / "published").mkdir(exist_ok=True)
    (tmp_path / "published" / "mine.yaml").write_text(json.dumps(text))
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))


def test_a_row_of_another_statistic_than_the_table_s_is_said(tmp_path, monkeypatch):
    of_the_best = {"study": {"by": "them", "seeds": 3, "over": "mean", "epoch": "best"}}
    own_table(tmp_path, monkeypatch, lora=of_the_best)
    made = [
        record(["model=digits_vit", "task=digits", f"method={method}"], seed, 0.7 + seed / 100, last)
        for method, last in (("vera", 0.6), ("lora", 0.5))
        for seed in range(5)
    ]
    table, _, tests = compare("mine", Asked(by_cell(*made)))
    assert [row[4].partition("±")[0] for row in table.rows] == ["60.0", "72.0"]
    assert any("median over seeds of each run's last epoch" in note for note in table.notes)
    assert any("(mine_studies)" in note for note in table.notes) and "at the last epoch" in tests.notes[0]
    (best, *_, of_best) = compare("mine", Asked(by_cell(*made), stat="mean"))
    assert not any("mine_studies" in note for note in best.notes) and "at the best epoch" in of_best.notes[0]
    assert [of.rows[0][3] for of in (tests, of_best)] == ["+10.0 [+10.0, +10.0]", "+0.0 [+0.0, +0.0]"]


def test_a_mean_of_last_epochs_is_nobody_s_median_of_them(tmp_path, monkeypatch):
    study = {"by": "them", "over": "mean", "epoch": "last"}
    own_table(tmp_path, monkeypatch, lora={"study": study, "cells": {"digits": "80.0", "seconds": DASH}})
    made = [record(["model=digits_vit", "task=digits", "method=lora"], seed, 0.7 + seed / 100) for seed in range(5)]
    table = compare("mine", Asked(by_cell(*made)))[0]
    ours = next(row for row in table.rows if row[1] == "lora" and row[2] == "ours")
    assert ours[4].deviation is None and not any("mine_studies" in note for note in table.notes)
    assert "not like with like, not compared" in studies("mine")[0].rows[-1][-1]


def test_a_count_is_of_the_settings_that_are_shown():
    def counts(*given):
        rows = compare("table2", Asked({}, list(given)))[0].rows
        return {row[1]: row[3] for row in rows if row[0] == "Large" and row[2] == "ours"}

    usual = counts()
    assert usual["LoRA"] == "786,432" and counts("train.lr=1e-2") == usual == counts("model.path=elsewhere") == counts(
        "scale=paper"
    )
    assert {*counts("scale=rehearsal").values()} == {DASH}
    for given, shown in (([], "61,440"), (["method.rank=64"], DASH)):
        assert {row[3] for row in compare("table7", Asked({}, given))[0].rows if row[2] == "ours"} == {shown}


def test_a_scale_that_runs_others_in_place_of_a_table_s_rows_is_refused():
    with pytest.raises(ConfigError, match=r"scale=mini .* in the tables of the miniatures \(of table6b: table6_mini\)"):
        compare("table6b", Asked({}, ["scale=mini"]))
    assert compare("table6b", Asked({}, ["scale=rehearsal"]))


def test_nothing_stays_of_records_that_are_gone(tmp_path):
    """Pictures and parts of tables that the present records do not give."""
    kept = {"figure4", "figure6", "pareto"}  # printed bars, no records, and a command of its own
    stale = [tmp_path / "figures" / path.name for path in (ROOT / "results" / "figures").iterdir() if path.stem not in kept]
    stale += [tmp_path / "tables" / f"{name}.md" for name in ("table2_cells", "table2_tests", "glue_minilm_long", "judged")]
    others = [tmp_path / "tables" / "table2_mine.md", tmp_path / "figures" / "mine.png"]
    for path in [*stale, *others]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("of other records")
    asked = Asked({}, results=tmp_path / "none")
    paper.write(paper.tables(asked, ["table2", "glue_minilm", "table4"]), tmp_path / "tables")
    paper.draw(asked, tmp_path / "figures")
    assert len(stale) > 10 and not [path for path in stale if path.exists()] and all(path.exists() for path in others)


def test_a_table_that_is_called_as_another_s_part_stays(tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch)
    (tmp_path / "published" / "mine_long.yaml").write_text((tmp_path / "published" / "mine.yaml").read_text())
    for name in ("mine_long", "mine"):
        paper.write(paper.tables(Asked({}), [name]), tmp_path / "tables")
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == {"mine", "mine_long"}


def test_the_best_of_a_cost_is_not_the_dearest_run(tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch)
    made = []
    for seed, took in enumerate([30.0, 10.0, 20.0, 40.0, 90.0]):
        one = record(["model=digits_vit", "task=digits", "method=vera"], seed, 0.7 + seed / 100)
        made.append(one.model_copy(update={"cost": one.cost.model_copy(update={"seconds": took})}))
    for stat, score in (("best", "74.0"), ("median", "72.0")):
        table = compare("mine", Asked(by_cell(*made), stat=stat))[0]
        assert [text.partition("±")[0] for text in table.rows[0][4:]] == [score, "30.0"]
        assert any("median over seeds" in note and "A cost" in note for note in table.notes) == (stat == "best")


@pytest.mark.parametrize("device", ["cpu", "H100"])
def test_costs_over_unlike_machines_are_said(device, tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch)
    made = [record(["model=digits_vit", "task=digits", f"method={method}"], 0, 0.7) for method in ("vera", "lora")]
    made[0] = made[0].model_copy(update={"cost": made[0].cost.model_copy(update={"device": device})})
    table = compare("mine", Asked(by_cell(*made)))[0]
    note = "Time and memory are not like with like: device (H100: vera; cpu: lora)."
    assert (note in table.notes) == (device != "cpu")


def test_a_printed_cell_may_be_a_dash_and_nothing_else_but_a_number(tmp_path, monkeypatch):
    made = [
        record(["model=digits_vit", "task=digits", f"method={m}"], seed, 0.7) for m in ("vera", "lora") for seed in range(5)
    ]
    own_table(tmp_path, monkeypatch, lora={"cells": {"digits": "80.1±0.5", "seconds": "–"}})
    assert compare("mine", Asked(by_cell(*made)))[0].rows[1][4:] == ["80.1±0.5", "–"]
    own_table(tmp_path, monkeypatch, lora={"cells": {"digits": "80.1*", "seconds": "-"}})
    with pytest.raises(ConfigError, match=r"rows\.1 .*: digits is '80\.1\*', neither a number \(with its ±\) nor a dash"):
        compare("mine", Asked(by_cell(*made)))


def test_a_study_has_a_run(tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch, lora={"study": {"by": "them", "seeds": 0}})
    with pytest.raises(ConfigError, match=r"rows\.1\.study\.seeds"):
        published.load("mine")


def test_a_cost_is_of_the_run_where_no_score_is_there_and_test_rows_are_told(tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch)
    made = []
    for seed in range(5):
        one = record(["model=digits_vit", "task=digits", "method=vera", "task.validation=0.1"], seed, 0.7)
        raw = json.loads(one.to_json())
        raw["scores"]["test"] = {"epoch": 1, "metrics": {"accuracy": 0.6}}
        made.append(Record.model_validate(raw))
    for stat, score in (("last", DASH), ("median", "60.0±0.0")):
        asked = Asked(by_cell(*made), ["task.validation=0.1"], stat)
        table = registry.artefact("mine").build(asked)[0]
        assert table.rows[0][4:] == [score, "2.0±0.0"]
        assert sum(note.startswith("Scores are of the test rows") for note in table.notes) == 1
    plain = Asked(by_cell(record(["model=digits_vit", "task=digits", "method=vera"], 0, 0.7)))
    assert not any("test rows" in note for note in registry.artefact("mine").build(plain)[0].notes)


def test_a_dash_is_also_a_run_without_the_score():
    unjudged = [record(["model=llama_7b", "task=alpaca", "method=lora"], seed, -1.0) for seed in range(5)]
    table = compare("table4", Asked(by_cell(*unjudged)))[0]
    assert [row[4] for row in table.rows if row[:3] == ["Llama 7B", "LoRA", "ours"]] == [DASH]
    assert any("a dash is a cell that nobody has run, or whose runs have no such score" in note for note in table.notes)


def test_a_record_without_the_metric_is_named():
    wrong = record(["model=roberta_large", "task=stsb", "method=vera"], 0, 0.9)
    metrics = {"pearson": 0.9}
    assert wrong.score("pearson") == metrics["pearson"]
    with pytest.raises(
        RecordError, match=r"roberta_large--stsb--vera--\w{8}--s0.json: scores.best.metrics has no 'f1'; it has"
    ):
        wrong.score("f1")


def published_with(tmp_path, **changes):
    loaded = yaml.safe_load((published.FOLDER / "table2.yaml").read_text())
    loaded["rows"] = [{**loaded["rows"][0], **changes}]
    (tmp_path / "table2.yaml").write_text(yaml.safe_dump(loaded))
    return published.load("table2", tmp_path)


def test_a_row_that_no_config_can_produce_is_named(tmp_path):
    table = published_with(tmp_path, method="prefix")
    with pytest.raises(
        ConfigError, match=r"results/paper/table2\.yaml: row 'Full fine-tuning' of roberta_base: method=prefix: no such"
    ):
        published.run_of("table2", table.rows[0], "rte")
    table = published_with(tmp_path, variant={"method.rank": 8})
    with pytest.raises(
        ConfigError, match=r"results/paper/table2\.yaml: row 'Full fine-tuning' of roberta_base: method\.rank is not a"
    ):
        published.run_of("table2", table.rows[0], "rte")
    with pytest.raises(ConfigError, match=r"results/paper/table2\.yaml.rows\.0\.model .*'gpt5' is not among"):
        published_with(tmp_path, model="gpt5")
    with pytest.raises(ConfigError, match=r"results/paper/table2\.yaml.rows\.0\.cells .*has rte; columns are "):
        published_with(tmp_path, cells={"rte": "1.0"})
    with pytest.raises(ConfigError, match=r"results/paper/table2\.yaml.rows\.0\.colour is not a key"):
        published_with(tmp_path, colour="blue")


@pytest.mark.parametrize("name", published.names())
def test_every_published_row_names_runs_that_a_config_makes(name):
    table = published.load(name)
    for row in table.rows:
        for task in table.tasks() if row.method is not None else ():
            run = published.run_of(name, row, task)
            assert (run.model["name"], run.task["name"], run.method["name"]) == (row.model, task, row.method)


def test_every_table_builds_from_nothing():
    tables = [(name, table) for name in registry.names() for table in registry.artefact(name).build(Asked({}))]
    assert len({table.name for _, table in tables}) == len(tables) > 15
    for name, table in tables:
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows), name


def test_published_averages_are_the_means_of_their_rows():
    """Every printed average of Table 2 follows from its cells, so the transcription holds together."""
    for row in published.load("table2").rows:
        values = [float(cell.partition("±")[0]) for cell in row.cells.values()]
        assert abs(statistics.fmean(values) - float(row.average)) <= 0.0501, row.label


GOLDEN_MARKDOWN = """\
# A & B

| Method | 50% |
|---|---|
| x_1 \\| y | 1.0±0.1 |
| z | – |

- a note
"""
GOLDEN_LATEX = r"""% A & B
% a note
\begin{tabular}{ll}
\toprule
Method & 50\% \\
\midrule
x\_1 \textbar{} y & 1.0$\pm$0.1 \\
\midrule
z & -- \\
\bottomrule
\end{tabular}
"""


def test_markdown_and_latex_to_the_character():
    table = Table("t", "A & B", ["Method", "50%"], [["x_1 | y", "1.0±0.1"], ["z", DASH]], ["a note"], [1])
    assert markdown(table) == GOLDEN_MARKDOWN
    assert latex(table) == GOLDEN_LATEX


def test_latex_has_the_glyphs_and_reads_no_cell_as_an_argument():
    signs = latex(Table("t", "T", ["a", "b"], [["-1.8 [-3.0, +0.5]", "-"], ["MiniLM-L6, digits 5-9, 1e-05", "≤ −3"]]))
    assert r"$-$1.8 [$-$3.0, +0.5] & - \\" in signs and r"MiniLM-L6, digits 5-9, 1e-05 & $\leq$ $-$3 \\" in signs
    made = latex(Table("t", "T", ["[a]", "b"], [["[0.1, 0.2]", "<1"], ["*", '"x" > [y]']]))
    assert made.splitlines()[2:8] == [
        r"\toprule",
        r"{[}a] & b \\",
        r"\midrule",
        r"{[}0.1, 0.2] & \textless{}1 \\",
        r"{*} & \texttt{\char34}x\texttt{\char34} \textgreater{} [y] \\",
        r"\bottomrule",
    ]


def records_of_digits(shift=0.0):
    return digits.records(Asked(cells_of_digits(shift)))


def cells_of_digits(shift=0.0):
    counts = {"head": 0, "full": 533120, "bitfit": 3712, "adapter_p": 16960, "lora": 16384, "lora_fa": 8192, "vera": 3072}
    scores = {"head": 0.5, "full": 0.8, "bitfit": 0.6, "adapter_p": 0.6, "lora": 0.75, "lora_fa": 0.7, "vera": 0.74}
    return by_cell(
        *(
            record([f"method={m}"], seed, scores[m] + seed / 1000 + shift, parameters=counts[m])
            for m in counts
            for seed in range(5)
        )
    )


def test_digits_verdict_is_honest():
    mine = records_of_digits()
    assert "1.0 points below LoRA's with 5.3 times fewer trainable parameters: as the paper" in digits.verdict(mine)
    worse = {**mine, "vera": records_of_digits(-0.1)["vera"]}
    assert "11.0 points below" in digits.verdict(worse) and "NOT as" in digits.verdict(worse)
    assert "missing" in digits.verdict({**mine, "lora": []})


def test_digits_comparison_is_seed_by_seed_and_says_whether_it_agrees():
    mine, theirs = records_of_digits(), records_of_digits()
    assert all("identical, seed by seed" in line for line in digits.compare(mine, theirs))
    assert all("agrees" in line for line in digits.compare(mine, records_of_digits(0.005)))
    assert all("DIFFERS" in line for line in digits.compare(mine, records_of_digits(0.05)))
    assert "nothing to compare" in digits.compare(mine, {**theirs, "head": []})[0]
    broken = {**mine, "head": [mine["head"][0].model_copy(update={"collapsed": "the loss is nan"}), *mine["head"][1:]]}
    assert digits.compare(broken, theirs)[0].endswith(": a seed has collapsed here, so there is no mean to compare")
    low = by_cell(*(record(["method=vera"], seed, score) for seed, score in enumerate([0.76, 0.72, 0.72, 0.72, 0.72])))
    high = by_cell(*(record(["method=vera"], seed, score) for seed, score in enumerate([0.79, 0.75, 0.75, 0.725, 0.725])))
    line = next(line for line in digits.compare(digits.records(Asked(low)), digits.records(Asked(high))) if "VeRA" in line)
    assert "-2.0" in line and "DIFFERS" in line


def test_digits_comparison_on_another_backbone_agrees_with_nothing():
    mine = digits.records(Asked(by_cell(record(["method=vera"], 0, 0.741, model_fingerprint="feed"))))
    first, *lines = digits.compare(mine, records_of_digits())
    assert "another backbone (feed here, " in first
    assert not any("agrees" in line or "DIFFERS" in line for line in lines)


def test_a_picture_s_name_may_hold_a_dot(tmp_path):
    """Those of train.lr=0.01 and train.lr=0.03 were one file."""
    written = plots.save(plots.figure(2, 2)[0], tmp_path / "x.train.lr_0.03")
    assert [path.name for path in written] == [f"x.train.lr_0.03.{kind}" for kind in ("pdf", "png", "svg")]
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_the_picture_is_the_same_bytes_every_time(tmp_path):
    cells = cells_of_digits()
    first = [path.read_bytes() for path in digits.draw(Asked(cells), tmp_path / "a")]
    second = [path.read_bytes() for path in digits.draw(Asked(cells), tmp_path / "b")]
    assert len(first) == 3 and first == second
    assert digits.draw(Asked({}), tmp_path / "c") == []


def test_the_small_gpt2s_table_has_a_dash_where_java_was_missing():
    with_java = {"BLEU": 0.5, "NIST": 6.0, "NIST_py": 5.5, "METEOR": 0.41, "ROUGE_L": 0.6, "CIDEr": 1.25}
    without = {name: with_java[name] for name in ("BLEU", "NIST", "NIST_py")}
    cells = by_cell(
        *(
            record(["model=gpt2_mini", "task=e2e", f"method={method}"], 0, 0.4, 0.5, metrics)
            for method, metrics in (("lora", with_java), ("vera", without))
        )
    )
    (table,) = e2e_mini.build(Asked(cells))
    full, adapter_l, lora, vera = table.rows
    assert full[1:] == adapter_l[1:] == [DASH] * 8
    assert lora[2:8] == [f"{value} (n=1)" for value in ("50.0", "6.00", "5.50", "41.0", "60.0", "1.25")]
    assert vera[2:8] == [*lora[2:5], DASH, DASH, DASH]


def test_a_collapsed_seed_is_the_worst_rank_and_is_counted(tmp_path):
    fine = [record(["model=roberta_base", "task=stsb", "method=vera"], seed, 0.9 + seed / 100) for seed in range(3)]
    lost = [
        record(["model=roberta_base", "task=stsb", "method=vera"], seed, 0.5).model_copy(update={"collapsed": "undefined"})
        for seed in (3, 4)
    ]
    two = summarise_records([*fine, *lost])
    assert two.median == 0.9 and two.std is None and two.collapsed == 2
    assert number(two, 100) == "90.0 (2 of 5 collapsed)" and interval(two, 100) == "[collapsed, 92.0]"
    assert number(summarise_records([*fine[:2], *lost, *lost[:1]]), 100) == "collapsed (3 of 5 collapsed)"
    assert common([*fine, *lost], fine) == ([0.9, 0.91, 0.92], [0.9, 0.91, 0.92])
    assert common([*fine, *lost], [*fine, *lost]) == ([], [])
    tables = compare("table2", Asked(by_cell(*fine, *lost)))
    row = next(row for row in tables[0].rows if row[:3] == ["Base", "VeRA", "ours"])
    assert "90.0 (2 of 5 collapsed)" in row and any("count as the worst" in note for note in notes_of(tables[0]))


def test_a_collapsed_run_counts_for_no_cost():
    def made(overrides, seed, took, done, gigabytes, collapsed=None):
        one = record(overrides, seed, 0.8)
        cost = {"seconds": took, "steps": done, "peak_memory_bytes": gigabytes * 10**9}
        return one.model_copy(update={"cost": one.cost.model_copy(update=cost), "collapsed": collapsed})

    llama = ["model=llama_7b", "task=alpaca"]
    vera, lora = [*llama, "method=vera", "method.rank=64"], [*llama, "method=lora"]
    ran = [made(vera, seed, 600.0, 100, 20) for seed in range(2)] + [made(vera, 2, 6.0, 1, 5, "the loss is nan")]
    table = compare("table12", Asked(by_cell(*ran, made(lora, 0, 6.0, 1, 5, "the loss is nan"))))[0]
    ours = {row[1]: row[4:6] for row in table.rows if row[2] == "ours"}
    assert ours == {"VeRA": ["10±0 (n=2)", "20.00±0.00 (n=2)"], "LoRA": [DASH, DASH]}
    assert "A run that collapsed counts for no cost." in table.notes
    assert "A run that collapsed counts for no cost." not in compare("table12", Asked(by_cell(*ran[:2])))[0].notes
    some, none = Entry(["VeRA"], ran), Entry(["VeRA"], ran[2:])
    assert (seconds(some), steps(some)) == ("600 (n=2)", "100") and (seconds(none), steps(none)) == (DASH, DASH)
    assert seconds(Entry(["VeRA"], [*ran, made(vera, 3, 6000.0, 100, 20)])) == "600 (n=3)"  # of 600, 600 and 6,000


@pytest.mark.parametrize(
    ("n", "left_out", "coverage"),
    [(2, 0, 0.5), (5, 0, 0.9375), (6, 0, 0.96875), (8, 0, 0.9922), (9, 1, 0.9609), (20, 5, 0.9586)],
)
def test_the_interval_of_a_median_covers_it_as_often_as_said(n, left_out, coverage):
    """By counting: the median lies above a value or below it with one half, seed by seed."""
    values = [float(value) for value in range(n)]
    assert summarise(values).interval == (values[left_out], values[n - 1 - left_out])
    inside = sum(math.comb(n, above) for above in range(left_out + 1, n - left_out)) / 2**n
    assert inside == pytest.approx(coverage, abs=1e-4)
    if n > 5:
        assert inside >= 0.95 > sum(math.comb(n, above) for above in range(left_out + 2, n - left_out - 1)) / 2**n


def test_a_note_explains_what_a_table_shows():
    def notes(cell):
        return notes_of(Table("x", "X", ["Method", INTERVAL], [["a", DASH], ["b", cell]]))

    assert all(part in notes("[0.1, 0.2]")[0] for part in ("two to five seeds", "50%, 75%, 87.5% and 93.75%"))
    assert notes(DASH) == [] and [INTERVAL in note for note in notes("[0.1, 0.2]")] == [True]
