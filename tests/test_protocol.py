"""Each setting of a recipe has a source, and is what that source prints."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_ind

from experiments.artefacts import table1
from experiments.engine import protocol, published
from experiments.engine.comparison import compare, studies
from experiments.engine.rows import Asked
from tests.conftest import ROOT
from vera.config import CONF_DIR, choices, compose, dotted, resolve
from vera.errors import ConfigError

TASKS = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
NOTES = ROOT.parent / "shared" / "paper"
# Hu et al. 2022, Table 9, rows with a dagger: params, method, batch, epochs and rates in the order of TASKS, key and value.
DAGGERS = [
    ("0.8M", "lora", 4, [10, 20, 20, 10, 20, 10], [4e-4, 3e-4, 2e-4, 2e-4, 4e-4, 2e-4], "rank", 8),
    ("3M", "adapter_p", 32, [20, 20, 20, 10, 20, 20], [3e-5, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4], "size", 64),
    ("0.8M", "adapter_p", 32, [20, 20, 20, 10, 20, 20], [3e-4] * 6, "size", 16),
    ("6M", "adapter_h", 32, [5, 10, 10, 5, 20, 10], [3e-4] * 6, "size", 64),
    ("0.8M", "adapter_h", 32, [5, 10, 10, 5, 20, 10], [3e-4] * 6, "size", 8),
]
# Li and Liang 2021, E2E: method, params, rate, epochs, batch.
LI_LIANG = [("full", "354.92M", 5e-5, 5, 10), ("adapter_l", "0.37M", 8e-5, 10, 5), ("adapter_l", "11.09M", 5e-5, 5, 5)]


def row_of(table, model, method, params):
    (row,) = (r for r in published.load(table).rows if (r.model, r.method, r.params) == (model, method, params))
    return row


@pytest.mark.parametrize(("params", "method", "batch", "epochs", "rates", "key", "value"), DAGGERS)
def test_the_dagger_rows_are_hu_et_al_s_table_9(params, method, batch, epochs, rates, key, value):
    row = row_of("table2", "roberta_large", method, params)
    for task, n, lr in zip(TASKS, epochs, rates, strict=True):
        run = compose(row.overrides(task))
        found = (run.train.batch_size, run.train.epochs, run.train.lr, run.train.head_lr, run.train.warmup_ratio)
        assert found == (batch, n, lr, lr, 0.06) and run.train.schedule == "linear"
        assert run.task["max_length"] == 128 and run.method[key] == value
    if method == "lora":
        assert run.method["alpha"] == 16


@pytest.mark.parametrize(("method", "params", "lr", "epochs", "batch"), LI_LIANG)
def test_the_rows_of_li_and_liang_have_their_settings(method, params, lr, epochs, batch):
    run = compose(row_of("table3", "gpt2_medium", method, params).overrides("e2e"))
    assert (run.train.lr, run.train.epochs, run.train.batch_size) == (lr, epochs, batch)


@pytest.fixture(scope="module")
def notes():
    """notes("hparams") -> what the notes beside the project say; tests that read them are skipped elsewhere."""

    @lru_cache
    def read(name):
        file = NOTES / f"{name}.yaml"
        if not file.is_file():
            pytest.skip(f"no {file}")
        return yaml.safe_load(file.read_text())

    return read


def test_the_values_above_are_those_of_the_notes(notes):
    printed = notes("prior_work_hparams")["published_appendix"]
    names = ("lora_dagger", "adapter_p_3M", "adapter_p_0_8M", "adapter_h_6M", "adapter_h_0_8M")
    for name, (_, _, batch, epochs, rates, _, value) in zip(names, DAGGERS, strict=True):
        row = printed["lora_table9"][f"roberta_large_{name}"]
        lr = row["lr"] if isinstance(row["lr"], list) else [row["lr"]] * 6
        assert (row["batch"], row["epochs"], lr, row.get("bottleneck", row.get("r"))) == (batch, epochs, rates, value)
    names = ("full_medium", "adapter_l_0_37M_medium", "adapter_l_11_09M_medium")
    for name, (_, _, lr, epochs, batch) in zip(names, LI_LIANG, strict=True):
        assert printed["li_liang_e2e"][name] == {"lr": lr, "epochs": epochs, "batch": batch}


@pytest.mark.parametrize("model", ["roberta_base", "roberta_large"])
def test_table_8_is_that_of_the_notes(model, notes):
    glue = notes("hparams")["glue"]
    names = dict(zip(TASKS, ("SST-2", "MRPC", "CoLA", "QNLI", "RTE", "STS-B"), strict=True))
    theirs, ours = glue[model.replace("_", "-")], protocol.sources()["table8"].printed[f"vera_{model}"]
    assert ours == {
        "method.rank": theirs["vera_rank"],
        "task.max_length": theirs["max_seq_len"],
        "train.batch_size": theirs["gpus"] * theirs["batch_size_per_gpu"],
        **{
            f"train.{key}": {task: theirs[there][name] for task, name in names.items()}
            for key, there in (("epochs", "epochs"), ("head_lr", "lr_head"), ("lr", "lr_vera"))
        },
    }


@pytest.mark.parametrize("name", ["2", "3", "4", "5", "6a", "6b", "6c", "7", "12", "13"])
def test_a_table_is_printed_as_in_the_notes(name, notes):
    """Line by line: model, number of parameters, bytes, and every cell with its spread and average."""
    number, part = name.rstrip("abc"), name.lstrip("0123456789")
    rows = notes("published")["tables"][f"table_{number}"]["rows"]
    theirs = [row for row in rows if row.get("part", "") == part]
    for ours, row in zip(published.load(f"table{name}").rows, theirs, strict=True):
        assert [*ours.cells.values(), *filter(None, [ours.average])] == [cell["printed"] for cell in row["cells"].values()]
        assert row.get("model") in (None, ours.model.replace("_", "-")) and row.get("bytes") == ours.bytes
        assert (ours.params or "-") == row["params"].replace("none printed", "-")


def test_table_1_is_printed_as_in_the_notes(notes):
    for ours, row in zip(table1.published().rows, notes("published")["tables"]["table_1"]["rows"], strict=True):
        assert (ours.model.replace("_", "-"), ours.rank) == (row["model"], row["rank"])
        printed = (ours.lora.params, ours.lora.bytes, ours.vera.params, ours.vera.bytes)
        assert printed == tuple(row[key] for key in ("lora_params", "lora_bytes", "vera_params", "vera_bytes"))


@pytest.mark.parametrize("name", choices("recipe"))
def test_every_key_of_a_recipe_has_a_source(name):
    assert protocol.statements(name)


def test_what_a_recipe_leaves_to_another_has_that_one_s_sources():
    assert protocol.statements("lora_vit_large") == protocol.statements("lora_vit_base")
    said = protocol.statements("vera_minilm")
    assert said["train.batch_size"] == ["ours: a budget for two CPU cores"]
    assert said["train.lr"] == ["ours: chosen by make tune, as `tuned` says"]  # not what the shared one says of it, too


@pytest.mark.parametrize("name", published.names())
def test_a_recipe_has_what_its_source_prints(name):
    assert protocol.table(name).rows


def other_sides(name):
    """For each value that another source prints: overrides that take it, its key, the value."""
    rows, tasks = published.rows_of(name)
    return [
        ([*row.overrides(task), protocol._override(setting.key, value)], setting.key, value)
        for row in rows
        if row.method is not None
        for setting in protocol.settings(row, tasks)
        for found in setting.other.values()
        for task, value in found.items()
        if not isinstance(value, dict)
    ]


@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table5"])
def test_the_other_side_is_one_override(name):
    sides = list({tuple(overrides): (overrides, key, value) for overrides, key, value in other_sides(name)}.values())
    seen = set()
    for overrides, key, value in sides:
        if (key, str(value), overrides[2]) not in seen:  # once a method: the rest differs in the task
            seen.add((key, str(value), overrides[2]))
            assert dotted.get(compose(overrides).scientific, key) == value
    assert seen or name in ("table4", "table5")


def test_the_lines_of_a_table_say_value_source_and_the_other_side():
    lines = {(row[0], row[1]): row[2:] for row in protocol.table("table2").rows}
    value, source, other = lines["VeRA 0.061M (roberta_large)", "train.batch_size"]
    assert (value, source) == ("128", "VeRA, Table 8") and "VeRA, section 4.1: 32 (train.batch_size=32)" in other
    value, source, other = lines["LoRA 0.3M (roberta_base)", "method.alpha"]
    assert value == "16" and "scripts" not in other and "Table 9: 8 (method.alpha=8)" in other
    value, source, _ = lines["AdapterP 0.8M (roberta_large)", "train.lr"]
    assert value == "0.0003" and "Table 9" in source
    value, *_ = lines["AdapterP 3M (roberta_large)", "train.lr"]
    assert value == "3e-05 / 0.0003 / 0.0003 / 0.0003 / 0.0003 / 0.0003"
    lines = {(row[0], row[1]): row[2:] for row in protocol.table("table3").rows}
    assert "0.9" in lines["LoRA 0.35M (gpt2_medium)", "task.decoding.length_penalty"][2]


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A copy of conf/recipe to break, and what changes one of its files."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    monkeypatch.setattr(protocol, "own_values", lambda group, name: yaml.safe_load((folder / f"{name}.yaml").read_text()))

    def change(name, *pairs):
        text = (CONF_DIR / "recipe" / f"{name}.yaml").read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        (folder / f"{name}.yaml").write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("task.max_length, ", ""), r"conf/recipe/lora_roberta_large\.yaml: task\.max_length has no source"),
        (
            ("hu_table9:", "hu_table7:"),
            r"lora_roberta_large\.yaml\.sources: 'hu_table7' is not in results/paper/settings",
        ),
        (("hu_scripts: [", "ours: ["), "says not why"),
        (("task.max_length", "task.length"), r"sources\.hu_table9: task\.length is not a key of this recipe"),
    ],
)
def test_a_key_without_a_source_is_one_line(change, message, recipes):
    recipes("lora_roberta_large", change)
    with pytest.raises(ConfigError, match=message) as caught:
        protocol.statements("lora_roberta_large")
    assert "\n" not in str(caught.value)


def test_a_value_that_contradicts_its_source_is_one_line(monkeypatch):
    sources = {name: source.model_copy(deep=True) for name, source in protocol.sources().items()}
    sources["hu_table9"].printed["adapter_h_roberta_large"]["train.epochs"]["rte"] = 40
    monkeypatch.setattr(protocol, "sources", lambda: sources)
    with pytest.raises(ConfigError) as caught:
        protocol.table("table2")
    said = str(caught.value)
    assert said.startswith("conf/recipe/adapter_h_roberta_large.yaml: train.epochs is 20 on rte, but its source hu_table9")
    assert said.endswith("prints 40") and "\n" not in said


@pytest.mark.parametrize("name", protocol.ARTEFACTS)
def test_what_no_source_says_stands_in_the_table_too(name):
    """Decoding of the rows that are not LoRA's, clipping, Adam's constants, lengths: a reader looks for them."""
    lines = protocol.table(name).rows
    wanted = {"train.betas", "train.clip", "train.eps", "train.batch_size", "train.lr" if name != "table5" else "train.head_lr"}
    if name == "table3":
        wanted |= {f"task.decoding.{key}" for key in ("beams", "length_penalty", "no_repeat_ngram", "max_new_tokens", "search")}
    if name == "table4":
        wanted |= {"task.max_length", "task.held_out"}
    for label in {line[0] for line in lines}:
        own = {key: value for row, key, value, *_ in lines if row == label}
        told = own.keys() | {word.partition("=")[0] for word in own["all others"].split(", ")}
        vera = {"method.d_init", "method.init", "method.rank"} if label.startswith("VeRA") else set()
        assert wanted | vera <= told, label


def test_the_page_is_what_recipes_and_sources_give():
    assert (ROOT / "docs" / "protocol.md").read_text() == protocol.page()


# The other sides that results/paper/README.md names.

BASES = [
    *(["model=roberta_large", "task=rte", f"method={m}"] for m in ("vera", "lora", "lora_fa", "adapter_h")),
    ["model=roberta_base", "task=rte", "method=adapter_d"],
    ["model=gpt2_medium", "task=e2e", "method=lora"],
    ["model=gpt2_medium", "task=e2e", "method=adalora"],
    ["model=llama_7b", "task=alpaca", "method=lora", "answers=mt_bench"],
    ["model=llama_7b", "task=alpaca", "method=lora", "answers=vicuna_bench"],
    ["model=vit_base", "task=resisc45", "method=vera"],
]


def spans():
    for line in (ROOT / "results" / "paper" / "README.md").read_text().splitlines():
        cells = line.split("|")
        if len(cells) == 5:
            yield from re.findall(r"`([^`]+)`", cells[3])


@pytest.mark.parametrize("span", sorted(set(spans())))
def test_every_other_side_that_the_readme_names_exists(span):
    if span.startswith(("--", "scripts/")):
        script, _, option = span.rpartition(" ") if span.startswith("scripts/") else ("tables.py", "", span.split()[0])
        assert option in (ROOT / "vera" / "commands" / Path(script).name).read_text()
        return
    tried = []
    for base in BASES:
        for entry, start in (("run", base), ("judge", ["questions=vicuna_bench"])):
            try:
                if all(_exists(entry, start, part) for part in span.split()):
                    return
            except ConfigError as error:
                tried.append(str(error))
    raise AssertionError(f"{span}: {tried[-3:]}")


_resolved = lru_cache(maxsize=64)(lambda entry, *base: resolve(entry, base))


def _exists(entry, base, span):
    """Whether `key=value` composes; of `key=` and `group.*`, whether there is such a key."""
    key, equals, value = span.partition("=")
    found = _resolved(entry, *base)
    if equals and value:
        if "." in key and key.partition(".")[0] not in found:
            return False
        for one in [value] if value.startswith("[") else value.split(","):
            resolve(entry, [*base, f"{key}={one}"])
        return True
    for part in key.removesuffix(".*").split("."):
        if not isinstance(found, dict) or part not in found:
            raise ConfigError(f"no {part}")
        found = found[part]
    return True


# Rows on their own metrics.


def test_bitfit_is_shown_and_compared_on_its_own_metrics(monkeypatch):
    from tests.test_experiments import by_cell, record

    row = row_of("table2", "roberta_base", "bitfit", "0.1M")
    assert row.metrics == {"mrpc": "f1", "stsb": "spearmanr"} and row.study.by == "Ben Zaken et al. 2022"
    made = record(row.overrides("mrpc"), 0, 0.80)
    metrics = {"accuracy": 0.80, "f1": 0.927}
    for scored in (made.scores.best, made.scores.last):
        scored.metrics.update(metrics)
    table, *_ = compare("table2", Asked(by_cell(made)))
    lines = {row[2]: row for row in table.rows if row[:2] == ["Base", "BitFit"]}
    at = table.columns.index("MRPC")
    assert lines["paper"][at] == "92.7 F1" and lines["ours"][at] == "92.7 (n=1) F1"
    assert lines["paper"][table.columns.index("STS-B")] == "90.8 Spearman"
    assert lines["ours"][at].deviation == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seeds", [None, 2, 3, 20])
def test_a_printed_spread_is_over_the_seeds_that_its_row_names(seeds, monkeypatch):
    """Textbook: Welch's test of two samples, of which one is known by mean, standard deviation and size."""
    from tests.test_experiments import by_cell, record

    source = published.load("table2")
    row = row_of("table2", "roberta_base", "vera", "0.043M")
    other = row.model_copy(update={"study": row.study.model_copy(update={"seeds": seeds})})
    rows = [other if r == row else r for r in source.rows]
    monkeypatch.setattr("experiments.engine.comparison.load", lambda name: source.model_copy(update={"rows": rows}))
    values = [0.880, 0.886, 0.883, 0.890, 0.879]
    found = by_cell(*(record(row.overrides("mrpc"), seed, value) for seed, value in enumerate(values)))
    tables = [compare("table2", Asked(found, stat=stat))[0] for stat in (None, "best")]
    at = tables[0].columns.index("MRPC")
    one, best = (next(r for r in table.rows if r[:3] == ["Base", row.label, "ours"])[at] for table in tables)
    printed = np.array([1, -1] * 500)[: seeds or 5] * 1.0
    printed = 89.5 + 0.5 * (printed - printed.mean()) / printed.std(ddof=1)
    assert one.p == pytest.approx(ttest_ind([100 * v for v in values], printed, equal_var=False).pvalue)
    assert best.startswith("89.0") and best.p is None  # the best of several is no mean
    assert (one.deviation, best.deviation) == (pytest.approx(-1.2), pytest.approx(-0.5))  # ours less what is printed


def test_a_row_in_a_metric_that_its_task_does_not_compute_is_one_line(tmp_path):
    text = (published.FOLDER / "table2.yaml").read_text()
    (tmp_path / "table2.yaml").write_text(text.replace("mrpc: f1,", "mrpc: bleu,"))
    expected = (
        r"^results/paper/table2\.yaml\.rows\.1\.metrics\.mrpc \(BitFit\): 'bleu' is no metric of mrpc; there are accuracy, f1$"
    )
    with pytest.raises(ConfigError, match=expected):
        published.load("table2", tmp_path)


def test_every_metric_of_a_glue_column_is_computed_by_its_task():
    from vera.tasks.metrics import METRICS

    for name in ("table2", "table6a", "table6b", "table6c", "table7"):
        for column in published.load(name).columns.values():
            assert {column.metric, *column.also} <= set(METRICS[column.task])


def test_who_ran_which_row_and_what_cannot_be_compared():
    said = {(r[0], r[1], r[2]): r[3:] for r in studies("table3")[0].rows}
    by, seeds, over, epoch, ours = said["Large", "AdapterL", "0.88M"]
    assert (by, seeds, over, epoch) == ("Hu et al. 2022", "3", "mean", "best") and "not compared" in ours
    assert said["Medium", "AdapterL", "0.37M"][0] == "Li and Liang 2021"
    assert "not compared" not in said["Medium", "VeRA", "0.098M"][-1]
    said = {(r[0], r[1], r[2]): r[3:] for r in studies("table2")[0].rows}
    assert said["Large", "LoRA", "0.8M"] == ["Hu et al. 2022", "5", "median", "best", "median, best epoch"]
