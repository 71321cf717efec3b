"""Own data by a yaml: files, the hub by columns, folders of images, instructions; and the yaml that is drafted."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoTokenizer

from vera.commands import task as command
from vera.config import build, choice
from vera.config.components import new_yaml
from vera.errors import ConfigError, DataError
from vera.io import hub
from vera.io.rows import read_csv
from vera.io.tables import by_name
from vera.run import execute, prepare
from vera.tasks import draft
from vera.tasks.split import split as divided

LABELS = ["no", "yes", "maybe"]
ROWS = [(f"a dog runs {i}", f'a cat, "sleeps" {i % 4}', LABELS[i % 3]) for i in range(24)]
COLUMNS = ("first", "second", "verdict")


def write(path, rows=ROWS, columns=COLUMNS):
    ending = path.suffix
    if ending == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    elif ending in (".tsv", ".txt"):
        path.write_text("".join("\t".join(map(str, row)) + "\r\n" for row in [columns, *rows]))
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    elif ending == ".json":
        path.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


def twin(path):
    """The name of a copy beside it."""
    return shutil.copy(path, path.with_name(f"twin-{path.name}")).name


def settings(folder, **changes):
    made = {
        **choice("task", "sick"),
        "name": "mine",
        "files": {"train": "train.csv", "validation": "dev.csv"},
        "data_dir": str(folder),
        "texts": ["first", "second"],
        "label": "verdict",
        "labels": LABELS,
    }
    return {**made, **changes}


def rows_of(folder, **changes):
    return build(settings(folder, **changes), "task").source_rows()[0]


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_rows(ending, tmp_path):
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.{ending}")
    found = rows_of(tmp_path, files={"train": f"train.{ending}", "validation": f"dev.{ending}"})
    assert found["train"] == found["validation"] == [((a, b), LABELS.index(label)) for a, b, label in ROWS]


def test_three_splits_are_chosen_on_one_and_scored_once_on_another(tmp_path, compose):
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.csv", ROWS[:9] if split == "test" else ROWS)
    files = "{train: train.csv, validation: dev.csv, test: test.csv}"
    keys = [f"task.files={files}", "task.texts=[first,second]", "task.label=verdict", f"task.labels={LABELS}"]
    run = compose(
        *("model=minilm", "task=sick", "task.name=mine", "task.synthetic=false", f"task.data_dir={tmp_path}", "method=lora"),
        *keys,
    )
    record = execute(run)
    assert record.scores.test.metrics.keys() == {"accuracy", "f1_macro"}
    assert record.provenance.data_source == "train.csv, dev.csv, test.csv" and str(tmp_path) not in record.to_json()
    data = prepare(run)[3]
    assert [len(part) for part in (data.train, data.evaluation, data.test)] == [24, 24, 9]


def test_train_alone_keeps_a_part_with_every_class(tmp_path):
    write(tmp_path / "all.csv")
    found = rows_of(tmp_path, files={"train": "all.csv"}, held_out=0.25)
    assert [len(found[split]) for split in ("train", "validation")] == [18, 6]
    assert sorted(found["train"] + found["validation"]) == sorted(((a, b), LABELS.index(c)) for a, b, c in ROWS)
    assert [label for _, label in found["validation"]].count(0) == 2
    assert found == rows_of(tmp_path, files={"train": "all.csv"}, held_out=0.25)


def test_a_score_of_any_size_is_read_and_told_apart(tmp_path):
    for split, size in (("train", 1e-6), ("dev", 2e-6)):
        write(tmp_path / f"{split}.jsonl", [(a, b, size * i) for i, (a, b, _) in enumerate(ROWS)])
    task = build(
        settings(
            tmp_path,
            files={"train": "train.jsonl", "validation": "dev.jsonl"},
            labels=[],
            metrics=["pearson", "r2"],
            primary="r2",
        ),
        "task",
    )
    assert task.outputs == 1 and task.source_rows()[0]["train"][3][1] == 3e-6 and task.plain(1e-6) != task.plain(2e-6)


def test_the_hub_is_read_by_columns(tmp_path, monkeypatch):
    asked = []

    def load_rows(data, instead):
        asked.append(data)
        return {split: [(f"row {i}", row) for i, row in enumerate(ROWS)] for split in data.splits}, "f" * 40

    monkeypatch.setattr(hub, "load_rows", load_rows)
    own = {"files": {}, "data_dir": None, "hub": "me/mine", "splits": {"train": "train", "test": "held"}}
    found, source, commit = build(settings(tmp_path, **own), "task").source_rows()
    assert asked[0].columns == COLUMNS and asked[0].splits == ("train", "held")
    assert source == "me/mine" and commit == "f" * 40 and found.keys() == {"train", "validation"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", "first,second,verdict\na,b,yes\nc,d,perhaps\n", r"csv:3, column 'verdict': 'perhaps' is not one of"),
        ("train.csv", "first,verdict\na,yes\n", r"train.csv:1 has no column 'second'; it has 'first', 'verdict'"),
        ("train.csv", "first,second,verdict\na,,yes\n", r"train.csv:2, column 'second': an empty text"),
        ("train.csv", "first,second,verdict\na,b\n", r"train.csv:2 has 2 fields, expected 3"),
        ("train.tsv", "first\tsecond\tverdict\na\t \tyes\n", r"train.tsv:2, column 'second': "),
        ("train.csv", 'first,second,verdict\na,b,no\n"say \\"hi\\"",b,no\n', r"train.csv:3: .*expected after.* written twice"),
        ("train.csv", 'first,second,verdict\n"say,b,no\nhi,b,no\n', r"train.csv:2: unexpected end of data; .* written twice"),
        (
            "train.tsv",
            'first\tsecond\tverdict\n"a" or "b"\tb\tno\n"He ""x"" said"\tb\tno\n',
            r"train.tsv:3, column 'first': \"He \"\"x\"\" said\" is quoted as in CSV",
        ),
        ("train.jsonl", '{"first": "a", "second": "b", "verdict": "no"}\n[1]\n', r"train.jsonl:2 is not an object"),
        ("train.jsonl", '{"first": "a", "second": "b", "verdict": "no"}\n{"first": 1\n', r"train.jsonl:2 is not JSON"),
        ("train.jsonl", '{"first": 1, "second": "b", "verdict": "no"}\n', r"train.jsonl:1, column 'first': 1 is no text"),
        ("train.jsonl", '{"first": "a", "verdict": "no"}\n', r"train.jsonl:1 has no column 'second'"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named_by_file_line_and_column(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        rows_of(tmp_path, files={"train": name}, held_out=0.5)
    assert "\n" not in str(caught.value)


def test_a_bad_row_leaves_no_record(tmp_path, compose):
    (tmp_path / "train.csv").write_text("first,second,verdict\na,b,perhaps\n")
    twin(tmp_path / "train.csv")
    keys = ["task.files={train: train.csv, validation: twin-train.csv}", "task.texts=[first,second]", "task.label=verdict"]
    run = compose("model=minilm", "task=sick", "task.synthetic=false", f"task.data_dir={tmp_path}", "~task.files.test", *keys)
    with pytest.raises(DataError, match="perhaps"):
        execute(run)
    assert not list((tmp_path / "results").glob("runs/*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "give files, or hub with splits"),
        ({"hub": "me/mine", "splits": {"train": "train", "test": "test"}}, "give files, or hub with splits"),
        ({"files": {"train": "train.csv"}}, "train alone needs held_out"),
        ({"held_out": 0.2}, "train alone needs held_out, and nothing else does"),
        ({"files": {"train": "/etc/passwd.csv", "validation": "dev.csv"}}, "must be a file below task.data_dir"),
        ({"files": {"train": "../train.csv", "validation": "dev.csv"}}, "must be a file below task.data_dir"),
        ({"files": {"train": "train.pkl", "validation": "dev.csv"}}, r"train.pkl is none of .csv, .tsv"),
        ({"files": {"train": "train.csv", "test": "train.csv"}}, "train.csv is named for two splits"),
        ({"files": {"train": "train.csv", "test": "./train.csv"}}, "train.csv is named for two splits"),
        ({"files": {}, "hub": "me/mine", "splits": {"train": "train", "test": "train"}}, "train is named for two splits"),
        ({"texts": ["first", "verdict"]}, "verdict is named for two columns"),
        ({"metrics": ["pearson"]}, "pearson is no metric of classes; there are accuracy, f1"),
        ({"metrics": ["accuracy", "f1"]}, "f1 is of two classes"),
        ({"metrics": ["f1_macro"]}, "primary=accuracy is not among its metrics: f1_macro"),
        ({"labels": ["yes"]}, "two or more different ones"),
        ({"labels": [True, "no"]}, "a truth value is no number, got True; where it is a text, quote it"),
        ({"labels": [], "metrics": ["accuracy"]}, "accuracy is no metric of a score"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        build(settings(tmp_path, **changes), "task")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["1e5", "12E03", "1_0", "08", "0x1", "1:30", "no", "~", ".inf", "nan", "-", "a: b", "#", "é", "2020-01-01"]
)
def test_a_drafted_text_is_read_as_that_text(text):
    made = {
        "labels": [text, "plain"],
        "columns": {text: "first"},
        "text": text,
        "count": 3,
        "rate": 0.5,
        "none": None,
        "flag": True,
    }
    assert OmegaConf.to_container(OmegaConf.create(draft.as_yaml(made))) == made


def test_a_yaml_is_drafted_from_a_file_and_works(tmp_path, monkeypatch):
    for name in ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"):
        write(tmp_path / name, [(f"{name}: {a}", b, label) for a, b, label in ROWS])
    made = draft.text_files("mine", tmp_path / "SICK_train.txt", ["first", "second"], "verdict", {})
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    path = new_yaml("task", "mine", draft.as_yaml(made))
    assert path == tmp_path / "conf" / "task" / "mine.yaml"
    read = yaml.safe_load(path.read_text())
    assert read == made and read["labels"] == ["maybe", "no", "yes"] and read["data_dir"] == str(tmp_path)
    assert read["files"] == {"train": "SICK_train.txt", "validation": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
    lines = draft.look(read)
    assert lines[0] == "train: 24 rows; maybe 8, no 8, yes 8" and lines[3].endswith("-> 1 (no)") and len(lines) == 6
    with pytest.raises(ConfigError, match=r"labels: .* has a \$\{, which a yaml of conf/ reads as a reference"):
        draft.as_yaml({**made, "labels": ["no", "${seed}"]})
    with pytest.raises(ConfigError, match="is there already"):
        new_yaml("task", "mine", "")
    with pytest.raises(ConfigError, match=r"NAME.name: string should match pattern"):
        new_yaml("task", "../mine", "")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (["10", "2", "1"], ["1", "2", "10"]),
        ([1.0, 0.0], ["0", "1"]),
        (["0.5", "3"], []),
        ([str(i) for i in range(30)], []),
        ([5, 1, 4, 2, 3, 3], ["1", "2", "3", "4", "5"]),
        (["-1", "1", "1"], ["-1", "1"]),
        ([-2, -1, 0, 1, 2], ["-2", "-1", "0", "1", "2"]),
        (["-1", "0", "0.5"], []),
    ],
)
def test_labels_are_found_and_scores_told_from_classes(values, labels):
    assert draft.labels_of([("x", value) for value in values], "y") == labels


@pytest.mark.parametrize(
    ("values", "message", "classes"),
    [
        ([0, 1, 2, -1], "x:3, column 'y': -1 beside other classes is the hub's mark of a missing label", ["-1", "0", "1", "2"]),
        (["yes", "no", "-1"], "x:2, column 'y': -1 beside other classes", ["-1", "no", "yes"]),
        (
            [*range(77), *range(77)],
            "x:0 and on, column 'y': 77 different whole numbers may be classes or scores",
            [str(i) for i in range(77)],
        ),
        (["neg", "pos", "neg "], "x:2, column 'y': 'neg ' and 'neg' (x:0) would be two classes", ["neg", "neg ", "pos"]),
        (["neg", "pos", "Pos"], "x:2, column 'y': 'Pos' and 'pos' (x:1) would be two classes", ["Pos", "neg", "pos"]),
        (
            ["pos\u00e9", "neg", "pose\u0301"],
            "x:2, column 'y': 'pose\u0301' and 'pos\u00e9' (x:0)",
            ["neg", "pose\u0301", "pos\u00e9"],
        ),
        (["1", "0", "1.0"], "x:2, column 'y': '1.0' and '1' (x:0) would be two classes", ["0", "1", "1.0"]),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_asked_for(values, message, classes):
    rows = [(f"x:{row}", value) for row, value in enumerate(values)]
    with pytest.raises(DataError) as caught:
        draft.labels_of(rows, "y")
    assert str(caught.value).startswith(message) and "--classes" in str(caught.value)
    assert draft.labels_of(rows, "y", "classes") == classes
    if "no" in values or "neg" in values:
        with pytest.raises(DataError, match="is no score"):
            draft.labels_of(rows, "y", "scores")
    else:
        assert draft.labels_of(rows, "y", "scores") == []


@pytest.mark.parametrize("stray", ["1_2", "infinity", "-inf"])
def test_a_number_that_python_alone_takes_for_one_is_no_score(stray, tmp_path):
    rows = [("x:0", "0.5"), ("x:1", "3.5"), ("x:2", stray)]
    with pytest.raises(DataError, match=f"^x:2, column 'y': '{stray}' among 2 different numbers is no score"):
        draft.labels_of(rows, "y")
    assert draft.labels_of([*rows[:2], ("x:2", "1e-2")], "y") == []
    for name, value in (("train.csv", stray), ("train.jsonl", stray), ("huge.jsonl", 10**400), ("yes.jsonl", True)):
        path = write(tmp_path / name, [("a", "b", 1.5), ("c", "d", value)])
        with pytest.raises(DataError, match=f"{name}.*, column 'verdict': .* is not a number"):
            rows_of(tmp_path, files={"train": path.name, "validation": twin(path)}, labels=[], metrics=["r2"], primary="r2")


@pytest.mark.parametrize("values", [["4,5", "3", "4,5"], ["10%", "12,5 %"], ["1 000,5", "-2,0"]])
def test_scores_with_a_decimal_comma_are_no_classes_unless_it_is_said(values):
    rows = [(f"x:{row}", value) for row, value in enumerate(values)]
    with pytest.raises(DataError, match=rf"x:0, column 'y': '{values[0]}' is a number in another spelling; .* --classes"):
        draft.labels_of(rows, "y")
    assert draft.labels_of(rows, "y", "classes") == sorted(set(values))


@pytest.mark.parametrize(
    "values", [["0", "1", "nan"], [0, "None", 1, "<NA>"], ["yes", "NaN", "no"], [*(f"{i}.5" for i in range(30)), "nan", "null"]]
)
def test_what_pandas_writes_of_a_missing_label_is_no_class_unless_it_is_said(values):
    rows = [(f"x:{row}", value) for row, value in enumerate(values)]
    row = next(row for row, value in enumerate(values) if str(value).casefold() in ("nan", "none", "null", "<na>"))
    with pytest.raises(DataError, match=rf"^x:{row}, column 'y': '{values[row]}' stands for a missing label; .* --classes"):
        draft.labels_of(rows, "y")
    assert draft.labels_of(rows, "y", "classes") == sorted(map(str, values))
    assert draft.labels_of([("x", "none"), ("x", "pro")], "y") == ["none", "pro"]  # as a stance


@pytest.mark.parametrize("missing", [None, float("nan"), "", [1, 2], "NA"])
@pytest.mark.parametrize("values", [["yes", "no"], [1, 0], [0.25 * i for i in range(40)]])
def test_a_missing_label_is_no_class_and_makes_scores_no_classes(values, missing, tmp_path):
    if missing == "NA" and values == ["yes", "no"]:
        return  # any word can be a class
    rows = [(f"a {i}", f"b {i}", value) for i, value in enumerate([*values, missing, *values, missing])]
    path = write(tmp_path / "train.json", rows)
    where = rf"train.json, row {len(values)}, column 'verdict': "
    with pytest.raises(DataError, match=where):
        draft.text_files("mine", path, ["first", "second"], "verdict", {})
    given = {"labels": []} if len(values) > 2 else {"labels": [*values, "None", "nan", "[1, 2]", ""]}
    metrics = {"metrics": ["pearson"], "primary": "pearson"} if len(values) > 2 else {}
    with pytest.raises(DataError, match=where):
        rows_of(tmp_path, files={"train": path.name, "validation": twin(path)}, **given, **metrics)


def test_an_empty_cell_is_no_label_and_a_null_no_text(tmp_path):
    for name, text in (("a.csv", "first,verdict\nx,\n"), ("a.tsv", "first\tverdict\nx\t\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name}:2"):
            draft.text_files("mine", tmp_path / name, ["first"], "verdict", {})
    path = write(tmp_path / "train.parquet", [("a", "b", "yes"), ("a", None, "no")])
    with pytest.raises(DataError, match=r"parquet, row 1, column 'second': an empty text"):
        rows_of(tmp_path, files={"train": path.name, "validation": twin(path)})


def test_a_column_that_stands_twice_is_refused_where_it_is_read(tmp_path):
    def read(name):
        return rows_of(tmp_path, files={"train": name, "validation": twin(tmp_path / name)}, texts=["first"])["train"]

    for twice, fitting in (("verdict", False), ("note", True)):
        names, values = ["first", "verdict", twice, "note"], ["a", "yes", "no", "x"]
        for name, between in (("a.csv", ","), ("a.tsv", "\t")):
            (tmp_path / name).write_text(between.join(names) + "\n" + between.join(values) + "\n")
        table = pyarrow.Table.from_arrays([[value] for value in values], names=names)
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        pairs = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in zip(names, values, strict=True))
        (tmp_path / "a.jsonl").write_text("{" + pairs.replace('"a"', '"\\u0061"') + "}\n")
        (tmp_path / "a.json").write_text("[{" + pairs + "}]")
        for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a.json"):
            if fitting:
                assert read(name) == [(("a",), 1)]
            else:
                with pytest.raises(DataError, match=rf"{name}.* has (2 columns 'verdict'|'verdict' twice)"):
                    read(name)
    (tmp_path / "chat.jsonl").write_text('{"question": "a", "answer": "b", "answer": "c"}\n')
    with pytest.raises(DataError, match=r"chat.jsonl:1 has 'answer' twice"):
        draft.instructions("mine", tmp_path / "chat.jsonl", {"instruction": "question", "output": "answer"})


STRAY = {  # a file, and the line of a value that holds other rows since its first quote is not doubled
    'first,verdict\n"tall,yes\n12 wide,no\n8 high",no\n': 2,
    'verdict,first\nno,low\nyes,"tall\nno,12 wide\nno,8 high"\nyes,x\n': 3,
    'first,second,verdict\na,b,no\nc,"tall,no\na,12"" wide, or more,no\nc,8 high",no\n': 3,
    'first,verdict\r\n"tall,yes\r\n12 wide,no\r\n8 high",no\r\n': 2,
    'first,verdict\n"one, two\r\nand three\nfour, five",no\nx,yes\n': None,
    'first,verdict\n"one\ntwo",no\ntwo,yes\n': None,
    'verdict,first\nno,"one\ntwo, three\n\nfour"\nyes,x\n': None,
    'first,second,verdict\n"a,b","c\nd, e, f",no\nx,y,yes\n': None,
}


@pytest.mark.parametrize("text", STRAY)
def test_rows_that_a_quote_swallows_are_warned_of(text, tmp_path, warned):
    (tmp_path / "a.csv").write_text(text, newline="")
    columns = ("first", "verdict")
    assert len(list(read_csv(tmp_path / "a.csv", columns))) < len(text.splitlines()) - 1
    line = STRAY[text]
    assert len(warned()) == (line is not None) and all(f"a.csv:{line}: a quoted value" in said for said in warned())


def test_rows_that_are_scored_and_trained_on_are_counted_and_warned_of(tmp_path, cache, warned):
    write(tmp_path / "train.csv")
    write(tmp_path / "dev.csv", [*ROWS[:5], ("a new one", ROWS[0][1], "no")])
    write(tmp_path / "test.csv", [("another", "one", "yes"), (ROWS[7][0], ROWS[7][1], "no")])  # whatever its label
    files = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
    backbone = build({**choice("model", "roberta_base"), "size": "tiny", "path": None}, "model").load(3, cache)
    data = build(settings(tmp_path, files=files), "task").load(backbone, 0)
    assert data.notes["also_in_train"] == {"validation": 5, "test": 1}
    assert warned() == ["task=mine: 5 of 6 validation and 1 of 2 test rows have the texts of a training row"]
    lines = draft.look(settings(tmp_path, files=files))
    assert "5 of the validation rows have the texts of a training row" in lines
    write(tmp_path / "dev.csv", [(b, a, label) for a, b, label in ROWS])
    data = build(settings(tmp_path, files={**files, "test": "dev.csv", "validation": "more.csv"}), "task")
    write(tmp_path / "more.csv", [("a", "b", "no")])
    assert "also_in_train" not in data.load(backbone, 0).notes


@pytest.mark.parametrize(
    ("metric", "verdict", "refused"),
    [
        *((metric, "yes", True) for metric in ("matthews_correlation", "cohen_kappa", "recall_macro")),
        *(("f1", verdict, verdict == "no") for verdict in ("no", "yes")),
        *((metric, "no", False) for metric in ("accuracy", "balanced_accuracy", "f1_macro", "precision_macro")),
    ],
)
def test_rows_of_one_class_are_refused_where_a_metric_of_them_is_undefined(metric, verdict, refused, tmp_path, cache):
    rows = [(a, b, ("no", "yes")[i % 2]) for i, (a, b, _) in enumerate(ROWS)]
    write(tmp_path / "train.csv", rows[:12])
    write(tmp_path / "dev.csv", rows[12:])
    write(tmp_path / "test.csv", [(f"{a}, too", b, verdict) for a, b, _ in rows[:3]])
    files = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
    backbone = build({**choice("model", "roberta_base"), "size": "tiny", "path": None}, "model").load(2, cache)
    task = build(settings(tmp_path, files=files, labels=["no", "yes"], metrics=[metric], primary=metric), "task")
    if refused:
        said = f"the test split has 3 rows with one and the same label; {metric} is undefined there"
        with pytest.raises(DataError, match=said):
            task.load(backbone, 0)
    else:
        assert len(task.load(backbone, 0).test) == 3


def test_what_is_counted_by_split_is_counted_of_the_splits_that_a_validation_part_makes(tmp_path, cache, warned):
    """Of twenty rows that stand twice, a part of the twins goes to validation; the rows that were validation are now test."""
    rows = [(f"row {i % 20}{' ' + 'x' * 60 if i % 20 < 6 else ''}", "b", "yes" if i % 2 else "no") for i in range(40)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "dev.csv", [*rows[:3], ("a new one", "b", "no"), ("y" * 60, "b", "yes")])
    files = {"files": {"train": "train.csv", "validation": "dev.csv"}, "validation": 0.25, "max_length": 40}
    backbone = build({**choice("model", "roberta_base"), "size": "tiny", "path": None}, "model").load(3, cache)
    task = build(settings(tmp_path, **files), "task")
    data = divided(task, task.load(backbone, 0))
    chosen = data.notes["validation"]["rows"]
    kept = {rows[i][0] for i in range(40) if i not in chosen}
    twins, held = sum(rows[i][0] in kept for i in chosen), sum(row[0] in kept for row in rows[:3])
    assert data.notes["also_in_train"] == {"validation": twins, "test": held} and min(twins, held) > 0
    cut = sum(len(rows[i][0]) > 60 for i in chosen)
    assert data.notes["truncated"] == {"train": 12 - cut, "validation": cut, "test": 4} and 0 < cut < 12
    assert warned()[0] == f"task=mine: {twins} of 10 validation and {held} of 5 test rows have the texts of a training row"


def test_a_held_out_part_has_a_row_of_each_class(tmp_path):
    write(tmp_path / "all.csv", [("a", "b", label) for label in ("yes", "no", "maybe") for _ in range(2)])
    said = r"task.held_out=0.25 of 6 rows: each part needs a row of each of the 3 classes; take another part"
    with pytest.raises(DataError, match=said):
        rows_of(tmp_path, files={"train": "all.csv"}, held_out=0.25)


def test_a_class_of_one_row_cannot_be_held_out(tmp_path):
    write(tmp_path / "all.csv", [row for row in ROWS if row[2] != "yes"] + [("a", "b", "yes")])
    with pytest.raises(DataError, match=r"task.held_out=0.25: class 'yes' has one row, and both parts need one"):
        rows_of(tmp_path, files={"train": "all.csv"}, held_out=0.25)


def test_of_the_files_beside_those_are_taken_that_can_be_a_split(tmp_path, warned):
    def found(train):
        return draft.text_files("mine", tmp_path / train, ["first", "second"], "verdict", {})["files"]

    write(tmp_path / "train.csv")
    (tmp_path / "test.csv").write_text("id,first,second\n1,a,b\n")  # as a competition gives it
    write(tmp_path / "valid_ids.csv", columns=("a", "b", "c"))
    for name in ("testimonials.csv", "devices.csv", "valuables.csv"):
        write(tmp_path / name)
    assert found("train.csv") == {"train": "train.csv"}
    assert warned() == [
        "valid_ids.csv is not taken for the split validation: it has no column 'first'",
        "test.csv is not taken for the split test: it has no column 'verdict'",
    ]
    for name in ("test.csv", "test_hard.csv", "dev_a.csv", "dev_b.csv"):
        write(tmp_path / name)
    (tmp_path / "valid_ids.csv").unlink()
    assert found("train.csv") == {"train": "train.csv", "test": "test.csv"}
    said = "dev_a.csv and dev_b.csv may be of the split validation, and none is taken: name one with --validation"
    assert warned()[2:] == [said]
    numbered = [(a, b, LABELS.index(label)) for a, b, label in ROWS]
    for split, rows in {"train": numbered, "validation": numbered, "test": [(a, b, -1) for a, b, _ in numbered]}.items():
        write(tmp_path / f"{split}.parquet", rows)
    assert found("train.parquet") == {"train": "train.parquet", "validation": "validation.parquet"}
    assert warned()[3:] == ["test.parquet is not taken for the split test: all of column 'verdict' is -1, null or empty"]
    write(tmp_path / "test.csv", [(a, b, "") for a, b, _ in ROWS])
    (tmp_path / "test_hard.csv").unlink()
    assert found("train.csv") == {"train": "train.csv"}
    assert warned()[-1] == "test.csv is not taken for the split test: all of column 'verdict' is -1, null or empty"
    for name in ("TrainData.tsv", "TestData.tsv"):
        write(tmp_path / name)
    assert found("TrainData.tsv") == {"train": "TrainData.tsv", "test": "TestData.tsv"}


def test_a_split_that_is_named_may_lie_beside_the_training_file(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.csv", "hard.csv"):
        write(folder / name)
    monkeypatch.chdir(tmp_path)

    def files(test):
        others = {"test": Path(test)}
        return draft.text_files("mine", Path("data/train.csv"), ["first", "second"], "verdict", others)["files"]

    assert files("hard.csv") == files("data/hard.csv") == {"train": "train.csv", "test": "hard.csv"}
    (tmp_path / "hard.csv").touch()
    with pytest.raises(ConfigError, match="the files of a task lie in one folder"):
        files("hard.csv")


def test_which_class_f1_is_of_is_said(tmp_path):
    path = write(tmp_path / "all.csv", [(a, b, "fraud" if i % 3 else "ok") for i, (a, b, _) in enumerate(ROWS)])
    made = draft.text_files("mine", path, ["first"], "verdict", {})
    assert "\nlabels: [fraud, ok]  # f1 is of the second\n" in draft.as_yaml(made)
    assert "f1 is of 'ok', the second of `labels`: change their order in the yaml for the other" in draft.look(made)
    assert OmegaConf.to_container(OmegaConf.create(draft.as_yaml(made))) == made


def test_what_is_a_part_of_a_split_or_of_no_format_is_not_read(tmp_path):
    for part in range(2):
        write(tmp_path / f"train-0000{part}-of-00002.parquet", ROWS[part::2])
    with pytest.raises(DataError, match=r"train-00000-of-00002.parquet is one of 2 parts of its split: join them"):
        rows_of(tmp_path, files={"train": "train-00000-of-00002.parquet"}, held_out=0.5)
    own = {"files": {}, "hub": "me/mine", "splits": {"train": "train"}, "held_out": 0.5}  # the way out that it names
    assert sum(map(len, rows_of(tmp_path, **own).values())) == len(ROWS)
    write(tmp_path / "all-00000-of-00001.parquet").rename(tmp_path / "all-00000-of-00001.PARQUET")
    assert sum(map(len, rows_of(tmp_path, files={"train": "all-00000-of-00001.PARQUET"}, held_out=0.5).values())) == len(ROWS)
    (tmp_path / "all.csv.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match=r"all.csv.gz is none of .csv"):
        draft.text_files("mine", tmp_path / "all.csv.gz", ["first"], "verdict", {})


def test_a_long_document_and_an_old_mac_s_lines_are_read(tmp_path):
    long = "word " * 40_000
    write(tmp_path / "all.csv", [(long, "b", "no"), *ROWS])
    text = (tmp_path / "all.csv").read_bytes().replace(b"\r\n", b"\r")
    (tmp_path / "all.csv").write_bytes(text)
    made = draft.text_files("mine", tmp_path / "all.csv", ["first", "second"], "verdict", {})
    found = build(made, "task").source_rows()[0]
    assert sorted(found["train"] + found["validation"])[-1][0] == (long, "b")
    assert all(len(line) < 1000 for line in draft.look(made))


def test_the_command_prints_the_yaml_and_three_rows(tmp_path, monkeypatch, capsys):
    write(tmp_path / "all.csv")
    arguments = ["task.py", "mine", str(tmp_path / "all.csv"), "--label", "verdict", "--print"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(ConfigError, match=r"all\.csv has first, second, verdict"):
        command.main()
    monkeypatch.setattr("sys.argv", [*arguments, "--text", "first,second"])
    monkeypatch.setattr(command, "tokenizer", lambda model: None)
    assert command.main() == 0
    out = capsys.readouterr().out
    assert "held_out: 0.2\n" in out and out.count(" -> ") == 3


def test_the_page_shows_the_yaml_that_is_written(tmp_path, monkeypatch, capsys):
    for split in ("train", "trial", "test_annotated"):
        lines = [f"{split} {i}\tb\t{label}" for i, label in enumerate(("NEUTRAL", "ENTAILMENT", "CONTRADICTION"))]
        (tmp_path / f"SICK_{split}.txt").write_text("\n".join(["sentence_A\tsentence_B\tentailment_judgment", *lines]) + "\n")
    asked = ["--text", "sentence_A,sentence_B", "--label", "entailment_judgment", "--print"]
    monkeypatch.setattr("sys.argv", ["task.py", "entails", str(tmp_path / "SICK_train.txt"), *asked])
    monkeypatch.setattr(command, "tokenizer", lambda model: None)
    assert command.main() == 0
    printed = capsys.readouterr().out
    printed = printed[printed.index("_target_") : printed.index("train: 3 rows; ")]
    page = (Path(__file__).parent.parent / "docs" / "own_data.md").read_text()
    (shown,) = re.findall(r"```yaml\n(_target_.*?)```", page, re.DOTALL)
    written, wanted = (dict(re.findall(r"^(\w+): (.*?)(?: +#.*)?$", text, re.M)) for text in (printed, shown))
    assert written == {**wanted, "data_dir": str(tmp_path)}


def test_an_option_that_the_kind_of_data_does_not_take_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "all.csv")
    (tmp_path / "images").mkdir()
    asked = ["--instruction", "a", "--output", "b"]

    def refused(*arguments):
        monkeypatch.setattr("sys.argv", ["task.py", "mine", *map(str, arguments), "--print"])
        with pytest.raises(ConfigError) as error:
            command.main()
        return str(error.value).rpartition("of which nothing takes ")[2]

    assert refused(tmp_path / "all.csv", *asked, "--text", "x", "--scores", "--test", "t.csv") == "--text, --scores, --test"
    assert refused(tmp_path / "all.csv", *asked, "--label", "x", "--validation", "v.csv") == "--label, --validation"
    assert (
        refused(tmp_path / "images", *asked, "--classes", "--model", "minilm") == "--classes, --model, --instruction, --output"
    )


def test_rows_are_shown_as_a_model_s_tokenizer_reads_them(tmp_path, cache):
    write(tmp_path / "all.csv")
    made = draft.text_files("mine", tmp_path / "all.csv", ["first", "second"], "verdict", {})
    chosen = build({**choice("model", "roberta_base"), "size": "tiny", "path": None}, "model").source(cache)
    lines = draft.look(made, AutoTokenizer.from_pretrained(chosen))
    assert lines[-1].startswith("<s> ") and lines[-1].count("</s>") == 3
    assert command.tokenizer("gpt3") is None  # which has no weights
    assert not any("max_length" in line for line in lines)
    write(tmp_path / "train.csv", [*ROWS, ("a dog " * 300, "runs", "no"), ("a", "cat " * 300, "yes")])
    made = draft.text_files("mine", tmp_path / "train.csv", ["first"], "verdict", {"validation": tmp_path / "all.csv"})
    said = draft.look(made, AutoTokenizer.from_pretrained(chosen))[2]
    assert said == "1 of the first 26 train rows have more than max_length=128 tokens: cut"


def test_folders_of_images_are_a_task(tmp_path, script, train):
    for split, count in (("train", 3), ("test", 2)):
        for label, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (9, 9), color).save(tmp_path / split / label / f"{index}.png")
    there = {"VERA_PROJECT": str(tmp_path)}
    made = script("task.py", "colors", tmp_path, environment={**os.environ, **there})
    assert made.returncode == 0 and "\nclasses: 2\n" in made.stdout, made.stderr
    assert "\ntrain: 6 images; blue 3, red 3\ntest: 4 images; blue 2, red 2\n" in made.stdout
    said = re.search(r" (model=.+) \.\.\.$", made.stdout, re.M)[1].replace("RATE", "1e-3").split()
    assert "task=colors" in said
    run = train(*said, "task.synthetic=false", **there)
    assert run.returncode == 0, run.stderr
    (record,) = (tmp_path / "results" / "runs").glob("*.json")
    found = json.loads(record.read_text())["provenance"]
    assert (found["data_source"], found["train_rows"], found["eval_rows"]) == ("local folder", 6, 4)
    (tmp_path / "val" / "blue").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds train, val, test, and images are scored on one split .*task\.validation=0\.1"):
        draft.images("colors", tmp_path)


def test_the_printed_command_of_instructions_says_what_a_run_asks_for(tmp_path, script, train):
    path, there = tmp_path / "mine.jsonl", {"VERA_PROJECT": str(tmp_path)}
    path.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": str(i)}) + "\n" for i in range(20)))
    asked = ("mine", path, "--instruction", "question", "--output", "answer")
    made = script("task.py", *asked, environment={**os.environ, **there})
    said = re.search(r" (model=.+) \.\.\.$", made.stdout, re.M)[1].replace("RANK", "4").split()
    run = train(*said, "task.synthetic=false", **there)
    assert run.returncode == 0, run.stderr


def test_instructions_are_read_by_the_names_of_their_columns(tmp_path, compose):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": str(i)}) + "\n" for i in range(20)))
    made = draft.instructions("mine", path, {"instruction": "question", "output": "answer"})
    task = build({**choice("task", "alpaca"), **{k: v for k, v in made.items() if k != "defaults"}}, "task")
    rows, _, _ = task.source_rows()
    assert rows[3] == ("What is 3?", "", "3") and task.held_out == 2
    with pytest.raises(DataError, match=r"mine.jsonl:1 has no column 'reply'; it has 'question', 'answer'"):
        draft.instructions("mine", path, {"instruction": "question", "output": "reply"})
    some = tmp_path / "some.jsonl"  # the first row has no input
    some.write_text(path.read_text() + json.dumps({"question": "Why?", "answer": "So.", "about": "x"}) + "\n")
    named = {"instruction": "question", "output": "answer", "input": "about"}
    assert draft.instructions("mine", some, named)["facts"] == {"train_rows": 21}
    path = write(tmp_path / "mine.parquet", [(f"What is {i}?", str(i), "") for i in range(20)], ("question", "answer", "more"))
    made = draft.instructions("mine", path, {"instruction": "question", "output": "answer"})
    task = build({**choice("task", "alpaca"), **{k: v for k, v in made.items() if k != "defaults"}}, "task")
    assert task.source_rows()[0] == rows and task.held_out == 2
    for columns in ({"output": "reply"}, {"output": "answer", "input": "context"}):
        with pytest.raises(
            DataError, match=r"mine.parquet has no column '(reply|context)'; it has 'question', 'answer', 'more'"
        ):
            draft.instructions("mine", path, {"instruction": "question", **columns})


def test_a_class_index_without_a_name_stays():
    assert by_name([0, 1, -1, 2, None, "b"], ["no", "yes"]) == ["no", "yes", -1, 2, None, "b"]
    assert by_name([0, -1], None) == [0, -1]
