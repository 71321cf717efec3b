"""Own data by a yaml: files, the hub by columns, folders of images, instructions; and the yaml that is drafted."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from transformers import AutoTokenizer

from vera.commands import task as command
from vera.config import build, choice
from vera.config.components import new_yaml
from vera.errors import ConfigError, DataError
from vera.io import hub
from vera.io.rows import read_csv
from vera.run import execute, prepare
from vera.tasks import draft

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
        ("train.csv", "first,second,verdict\na,,yes\n", r"train.csv:2: second is empty"),
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
        rows_of(tmp_path, files={"train": name, "validation": name})
    assert "\n" not in str(caught.value)


def test_a_bad_row_leaves_no_record(tmp_path, compose):
    (tmp_path / "train.csv").write_text("first,second,verdict\na,b,perhaps\n")
    keys = ["task.files={train: train.csv, validation: train.csv}", "task.texts=[first,second]", "task.label=verdict"]
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
        ({"metrics": ["pearson"]}, "pearson is no metric of classes; there are accuracy, f1"),
        ({"metrics": ["accuracy", "f1"]}, "f1 is of two classes"),
        ({"metrics": ["f1_macro"]}, "metrics must hold the primary one, accuracy"),
        ({"labels": ["yes"]}, "two or more different ones"),
        ({"labels": [True, "no"]}, "a truth value is no number, got True; where it is a text, quote it"),
        ({"labels": [], "metrics": ["accuracy"]}, "accuracy is no metric of a score"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        build(settings(tmp_path, **changes), "task")
    assert "\n" not in str(caught.value)


def test_a_yaml_is_drafted_from_a_file_and_works(tmp_path, monkeypatch):
    for name in ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"):
        write(tmp_path / name)
    made = draft.text_files("mine", tmp_path / "SICK_train.txt", ["first", "second"], "verdict", {})
    monkeypatch.setenv("VERA_PROJECT", str(tmp_path))
    path = new_yaml("task", "mine", draft.as_yaml(made))
    assert path == tmp_path / "conf" / "task" / "mine.yaml"
    read = yaml.safe_load(path.read_text())
    assert read == made and read["labels"] == ["maybe", "no", "yes"] and read["data_dir"] == str(tmp_path)
    assert read["files"] == {"train": "SICK_train.txt", "validation": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
    lines = draft.look(read)
    assert lines[0] == "train: 24 rows; maybe 8, no 8, yes 8" and lines[3].endswith("-> 1 (no)") and len(lines) == 6
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
        (["1", "0", "1.0"], "x:2, column 'y': '1.0' and '1' (x:0) would be two classes", ["0", "1", "1.0"]),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_asked_for(values, message, classes):
    rows = [(f"x:{row}", value) for row, value in enumerate(values)]
    with pytest.raises(DataError) as caught:
        draft.labels_of(rows, "y")
    assert str(caught.value).startswith(message) and "--classes" in str(caught.value)
    assert draft.labels_of(rows, "y", "classes") == classes
    if "no" in values or "pos" in values:
        with pytest.raises(DataError, match="is no score"):
            draft.labels_of(rows, "y", "scores")
    else:
        assert draft.labels_of(rows, "y", "scores") == []


@pytest.mark.parametrize("missing", [None, float("nan"), "", [1, 2], "NA"])
@pytest.mark.parametrize("values", [["yes", "no"], [1, 0], [0.25 * i for i in range(40)]])
def test_a_missing_label_is_no_class_and_makes_scores_no_classes(values, missing, tmp_path):
    if missing == "NA" and len(values) == 2:
        return  # any word can be a class
    rows = [(f"a {i}", f"b {i}", value) for i, value in enumerate([*values, missing, *values, missing])]
    path = write(tmp_path / "train.json", rows)
    where = rf"train.json, row {len(values)}, column 'verdict': "
    with pytest.raises(DataError, match=where):
        draft.text_files("mine", path, ["first", "second"], "verdict", {})
    given = {"labels": []} if len(values) > 2 else {"labels": [*values, "None", "nan", "[1, 2]", ""]}
    metrics = {"metrics": ["pearson"], "primary": "pearson"} if len(values) > 2 else {}
    with pytest.raises(DataError, match=where):
        rows_of(tmp_path, files={"train": path.name, "validation": path.name}, **given, **metrics)


def test_an_empty_cell_is_no_label_and_a_null_no_text(tmp_path):
    for name, text in (("a.csv", "first,verdict\nx,\n"), ("a.tsv", "first\tverdict\nx\t\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name}:2"):
            draft.text_files("mine", tmp_path / name, ["first"], "verdict", {})
    path = write(tmp_path / "train.parquet", [("a", "b", "yes"), ("a", None, "no")])
    with pytest.raises(DataError, match=r"parquet, row 1, column 'second': an empty text"):
        rows_of(tmp_path, files={"train": path.name, "validation": path.name})


def test_a_column_that_stands_twice_is_refused_where_it_is_read(tmp_path):
    def read(name):
        return rows_of(tmp_path, files={"train": name, "validation": name}, texts=["first"])["train"]

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


def test_folders_of_images_are_a_task(tmp_path, compose):
    for split, count in (("train", 3), ("test", 2)):
        for label, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (9, 9), color).save(tmp_path / split / label / f"{index}.png")
    made = draft.images("colors", tmp_path)
    assert made["classes"] == 2
    keys = [
        f"task.{key}={json.dumps(made[key])}"
        for key in ("repository", "train_splits", "eval_splits", "classes", "train_per_class")
    ]
    run = compose(
        "model=digits_vit", "task=cifar100", "task.name=colors", "task.synthetic=false", f"task.data_dir={tmp_path}", *keys
    )
    data = prepare(run)[3]
    assert len(data.train) == 6 and len(data.evaluation) == 4 and {label for _, label in data.train} == {0, 1}


def test_instructions_are_read_by_the_names_of_their_columns(tmp_path, compose):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": str(i)}) + "\n" for i in range(20)))
    made = draft.instructions("mine", path, {"instruction": "question", "output": "answer"})
    task = build({**choice("task", "alpaca"), **{k: v for k, v in made.items() if k != "defaults"}}, "task")
    rows, _, _ = task.source_rows()
    assert rows[3] == ("What is 3?", "", "3") and task.held_out == 2
    with pytest.raises(DataError, match=r"mine.jsonl:1 has no column 'reply'; it has question, answer"):
        draft.instructions("mine", path, {"instruction": "question", "output": "reply"})
