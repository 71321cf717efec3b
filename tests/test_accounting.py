"""Every printed count of the paper against the count on the adapted model, and the few that differ, by name."""

import json
import re

import pytest

from experiments.artefacts import table1
from experiments.engine import accounting, published, sweeps
from experiments.engine.accounting import prints
from experiments.engine.registry import artefact
from experiments.engine.render import markdown
from experiments.engine.rows import Asked
from vera.checks.counts import account
from vera.config import compose
from vera.errors import ConfigError
from vera.nn.count import vera_parameters

# Printed counts that the method's formula does not give. Everything else must match; a new entry needs a reason in its yaml.
DIFFER = {
    ("2", "roberta_base", "full", "125M"),
    ("3", "gpt2_medium", "full", "354.92M"),
    ("3", "gpt2_medium", "adapter_h", "11.09M"),
    ("3", "gpt2_medium", "adalora", "0.38M"),
    ("3", "gpt2_medium", "lora", "0.35M"),
    ("3", "gpt2_large", "lora", "0.77M"),
}


def rows():
    for name in published.names():
        table = published.load(name)
        for row in table.rows:
            if row.method is not None and (row.params or row.bytes):
                yield name, table, row


def test_every_printed_count_matches_or_is_known_to_differ():
    differ = set()
    for _, table, row in rows():
        counted = accounting.counts()[accounting.key(row)]
        for printed, kind in ((row.params, "adapter"), (row.bytes, "adapter_bytes")):
            if printed not in (None, "-") and prints(printed, counted[kind]) is None:
                assert row.remark, f"table {table.table}: {row.label} {printed} differs without a remark"
                differ.add((table.table, row.model, row.method, printed))
    assert differ == DIFFER


def test_the_committed_counts_are_those_of_the_models():
    """One row a model and method is counted again; scripts/account.py counts them all."""
    seen = set()
    for name, table, row in rows():
        if (row.model.partition("_")[0], row.method) in seen or "13b" in row.model:
            continue
        seen.add((row.model.partition("_")[0], row.method))
        assert account(published.run_of(name, row, table.tasks()[0])) == accounting.counts()[accounting.key(row)], row.label


def test_table_1_agrees_cell_by_cell_but_for_the_marked_ones():
    (table,) = table1.build(Asked({}))
    text = " ".join(" ".join(row) for row in table.rows)
    marked = {(line.model, line.rank, cell) for line in table1.published().rows for cell in line.differs}
    assert text.count(table1.MARK) == len(marked) == 7
    for line in table1.published().rows:
        for method in ("lora", "vera"):
            counted = accounting.counts()[table1.key(line.model, method, line.rank)]
            for kind, field in (("params", "adapter"), ("bytes", "adapter_bytes")):
                matched = prints(getattr(getattr(line, method), kind), counted[field]) is not None
                assert matched != ((line.model, line.rank, f"{method} {kind}") in marked), (line, method, kind)


@pytest.mark.parametrize(
    ("model", "layers", "width"), [("roberta_base", 12, 768), ("roberta_large", 24, 1024), ("gpt3", 96, 12288)]
)
@pytest.mark.parametrize("rank", [1, 16, 256])
def test_the_models_agree_with_the_closed_form(model, layers, width, rank):
    shapes = [(width, width)] * (2 * layers)
    counted = accounting.counts()
    assert counted[table1.key(model, "vera", rank)]["adapter"] == vera_parameters(shapes, rank)
    assert counted[table1.key(model, "lora", rank)]["adapter"] == sum(rank * (d_out + d_in) for d_out, d_in in shapes)


def test_prints_rounds_and_cuts_and_tells_them_apart():
    assert prints("36.8K", 36_864) == "cut off" and prints("36.9K", 36_864) == "rounded"
    assert prints("75.5M", 75_497_472) == "rounded" and prints("144KB", 36_864 * 4) == "rounded"
    assert prints("2MB", 589_824 * 4) == "rounded" and prints("49.5K", 49_920) is None
    assert prints("0.043M", 43_008) == "rounded" and prints("0.35M", 393_216) is None
    assert prints("about 3M", 3_000_000) is None
    assert prints("43,008", 43_008) == prints("0.000043B", 43_008) == "rounded" and prints("43,009", 43_008) is None
    assert prints("1,024.5K", 1_024_500) == "rounded" and prints("7B", 6_738_415_616) == "rounded"


def test_a_model_without_an_architecture_cannot_be_counted():
    with pytest.raises(ConfigError, match="digits_vit has no `full` architecture"):
        account(compose(["model=digits_vit", "task=digits", "method=vera"]))


def test_the_committed_file_is_sorted_and_whole():
    text = accounting.COUNTS.read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def own_table(tmp_path, monkeypatch, **printed):
    """A project's table of one row on RoBERTa-large."""
    row = {"label": "VeRA", "model": "roberta_large", "method": "vera", "source": "theirs", **printed}
    column = {"label": "RTE", "task": "rte", "metric": "accuracy"}
    text = {
        "title": "Theirs",
        "stat": "median",
        "models": {"roberta_large": "Large"},
        "columns": {"rte": column},
        "rows": [row],
    }
    (tmp_path / "published").mkdir(exist_ok=True)
    (tmp_path / "published" / "mine.yaml").write_text(json.dumps(text))
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))


def test_counts_of_a_table_without_a_number_are_named_by_its_title(tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch, params="7M", remark="a slip")
    (table,) = artefact("accounting").build(Asked({}))
    assert "| Theirs | Large | VeRA | 7M | 61,440 | differs |" in markdown(table)
    assert "Theirs, Large, VeRA (7M): a slip." in table.notes


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ({"params": "61,440"}, [["61,440", "61,440", "rounded"]]),
        ({"params": "–"}, []),
        ({"params": "-", "bytes": "0.000061B"}, "bytes is '0.000061B'"),
        ({"params": "0.061M", "bytes": "240KB"}, [["0.061M", "61,440", "rounded"], ["240KB", "245,760", "rounded"]]),
        ({"params": "1.3G"}, "params is '1.3G', neither a dash nor a number, alone or with K, M, B"),
        ({"params": "6,1440"}, "params is '6,1440'"),
        ({"params": "0.061 million"}, "params is '0.061 million'"),
        ({"bytes": "240K"}, "bytes is '240K', neither a dash nor a number, alone or with KB, MB, GB"),
    ],
)
def test_a_printed_count_is_read_as_it_is_meant_or_refused(printed, shown, tmp_path, monkeypatch):
    own_table(tmp_path, monkeypatch, **printed)
    if isinstance(shown, str):
        with pytest.raises(ConfigError, match=rf"mine\.yaml\.rows\.0 \(VeRA\): {re.escape(shown)}"):
            published.load("mine")
    else:
        (table,) = artefact("accounting").build(Asked({}))
        assert [row[3:] for row in table.rows if row[0] == "Theirs"] == shown


def test_a_cell_with_other_settings_than_the_counted_ones_is_counted_anew():
    counted = [
        accounting.of_cell(cell.run, cell.overrides)
        for more in ([], ["model.path=/x"], ["method.rank=8"])
        for cell in sweeps.cells(sweeps.read_sweep("glue_large"), ["method=vera", "task=rte", *more])
    ]
    assert [found and found["adapter"] for found in counted] == [61_440, 61_440, None]
