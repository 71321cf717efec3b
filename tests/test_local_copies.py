"""Local copies as clusters have them: the hub's own files in a folder or in its cache, and one folder for all of them."""

import io
import json
import logging
import os
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, constants
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from vera.checks.doctor.lines import OK, TODO
from vera.checks.doctor.sources import data_line
from vera.commands import run as command_line
from vera.config import build, choice
from vera.config import compose as compose_run
from vera.config.paths import readable
from vera.errors import DataError
from vera.io import hub, tables
from vera.io.rows import read_csv
from vera.models.image import Pixels
from vera.tasks import draft, image_rows
from vera.tasks.e2e_metrics import read_files
from vera.tasks.image_cache import opened
from vera.tasks.image_rows import from_folder
from vera.tasks.text import fingerprint
from vera.tasks.tsv import read_tsv

COMMIT = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
PAIRS = [("A cat sat.", "An animal sat.", 0), ("It rains.", "It is dry.", 1), ("Zwölf\u2028Boxer\ufeff", "“q”", 0)]


def task(name, *overrides):
    model = {"e2e": "gpt2_medium", "alpaca": "llama_7b"}.get(name, "minilm")
    return build(compose_run([f"model={model}", f"task={name}", *overrides]).task, "task")


def write(path, rows, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}), path)


def glue_snapshot(folder):
    """RTE as the hub keeps it, the training split in two files."""
    columns = ("sentence1", "sentence2", "label")
    write(folder / "rte" / "train-00000-of-00002.parquet", PAIRS[:2], columns)
    write(folder / "rte" / "train-00001-of-00002.parquet", PAIRS[2:], columns)
    write(folder / "rte" / "validation-00000-of-00001.parquet", PAIRS, columns)
    write(folder / "sst2" / "train-00000-of-00001.parquet", [("other", 1)], ("sentence", "label"))
    return folder


def glue_official(folder):
    labels = ("entailment", "not_entailment")
    for name in ("train", "dev"):
        lines = "".join(f"{i}\t{a}\t{b}\t{labels[label]}\n" for i, (a, b, label) in enumerate(PAIRS))
        (folder / "RTE").mkdir(parents=True, exist_ok=True)
        (folder / "RTE" / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + lines, encoding="utf-8")
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def nobody(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "repo_info", nobody)
    monkeypatch.setattr(hub, "_known", {})


def test_glue_in_the_hubs_files_has_the_rows_of_the_official_ones(tmp_path):
    copy, official = glue_snapshot(tmp_path / "glue"), glue_official(tmp_path / "official")
    (rows, source, _), (wanted, _, _) = (task("rte", f"task.data_dir={folder}").source_rows() for folder in (copy, official))
    assert rows == wanted and fingerprint(rows) == fingerprint(wanted)
    assert rows["train"][2] == ((PAIRS[2][0], PAIRS[2][1]), 0)
    assert "official" not in source


@pytest.mark.parametrize(
    ("name", "texts"),
    [("qnli", ("question", "sentence")), ("mrpc", ("sentence1", "sentence2")), ("stsb", ("sentence1", "sentence2"))],
)
def test_the_two_texts_of_a_pair_keep_their_order(name, texts, tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / name / f"{split}-00000-of-00001.parquet", PAIRS, (*texts, "label"))
    rows, _, _ = task(name, f"task.data_dir={tmp_path}").source_rows()
    assert rows["train"] == [((first, second), label) for first, second, label in PAIRS]


def test_glue_in_the_hubs_cache_is_read_without_a_network(tmp_path, monkeypatch, no_network):
    cached = tmp_path / "hub" / "datasets--nyu-mll--glue"
    glue_snapshot(cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    rows, _, commit = task("rte").source_rows()
    assert [len(rows[split]) for split in ("train", "validation")] == [3, 3] and commit == COMMIT


def test_alpaca_in_the_hubs_cache_is_read_without_a_network_by_the_names_of_data_dir(tmp_path, monkeypatch, no_network):
    cached = tmp_path / "hub" / "datasets--yahma--alpaca-cleaned"
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    file = cached / "snapshots" / COMMIT / "alpaca_data_cleaned.json"
    file.write_text(json.dumps([{"instruction": f"Count to {n}.", "input": "", "output": "1"} for n in range(3)]))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    alpaca = task("alpaca")
    rows, _, commit = alpaca.source_rows()
    assert rows[2] == ("Count to 2.", "", "1") and len(rows) == 3 and commit == COMMIT
    assert data_line(alpaca.hub_data(), "no network", {}).status == OK


def test_the_rows_of_another_configuration_are_never_read(tmp_path, monkeypatch, no_network):
    """MRPC has RTE's columns and labels: nothing later would tell them apart."""
    cached = tmp_path / "hub" / "datasets--nyu-mll--glue"
    for folder in (tmp_path / "glue", cached / "snapshots" / COMMIT):
        glue_snapshot(folder)
        (folder / "rte").rename(folder / "mrpc")
    with pytest.raises(DataError, match=r"nor the hub's files of rte \(such as rte/train-00000-of-00001\.parquet; that"):
        task("rte", f"task.data_dir={tmp_path / 'glue'}").source_rows()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "load_dataset", lambda *_: pytest.fail("asked on"))
    with pytest.raises(pytest.fail.Exception, match="asked on"):
        task("rte").source_rows()


SPLITS = {  # files below a folder; those of the split test of the configuration rte, or what is said of them
    "a configuration's folder": (["rte/test-00000-of-00001", "mrpc/test-00000-of-00001"], ["rte/test-00000-of-00001"]),
    "a configuration's folders": (["rte/test/0000", "rte/test/0001", "rte/train/0000"], ["rte/test/0000", "rte/test/0001"]),
    "no configurations": (["test", "train"], ["test"]),
    "data": (["data/test-0", "data/test-1", "data/train-0"], ["data/test-0", "data/test-1"]),
    "folders of splits": (["test/a", "test/b", "train/a"], ["test/a", "test/b"]),
    "another configuration's": (["mrpc/test-00000-of-00001", "mrpc/test/0000"], []),
    "beside another configuration's": (["test", "mrpc/test-00000-of-00001"], ["test"]),
    "two folders": (["test", "data/test-00000-of-00001"], r": data/test-00000-of-00001\.parquet and test\.parquet; give the"),
    "two configurations of one": (["rte/a/test", "rte/b/test"], r"more than once: rte/a/test\.parquet and rte/b/test\.parquet"),
    "shards in two folders": (["rte/a/test-00000-of-00002", "rte/b/test-00001-of-00002"], "more than once: rte/a/test-00000"),
    "the whole beside its shards": (["test", "test-00000-of-00002", "test-00001-of-00002"], "more than once"),
    "two downloads": (["test-00000-of-00001", "test-00000-of-00002", "test-00001-of-00002"], "more than once"),
    "shards of two names": (["test/a-00000-of-00002", "test/b-00001-of-00002"], r"lacks a-00001-of-00002\.parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_a_split_is_read_from_one_place(case, tmp_path):
    names, wanted = SPLITS[case]
    root = tmp_path / "R-TE"  # letters decide, as STS-B is stsb
    for name in names:
        (root / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.parquet").touch()
    if isinstance(wanted, list):
        assert tables.split_files(root, "test", "rte") == [root / f"{name}.parquet" for name in wanted]
    else:
        with pytest.raises(DataError, match=wanted):
            tables.split_files(root, "test", "rte")


def test_what_save_to_disk_writes_is_told_from_rows(tmp_path):
    """What describes a data set is JSON in a split's folder, and is no row; its rows are Arrow."""
    rows = datasets.Dataset.from_list([{"instruction": "Add.", "input": "1 and 2", "output": "3"}] * 3)
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(str(tmp_path / "both"))
    rows.save_to_disk(str(tmp_path / "train"))
    own = {**choice("task", "sick"), "name": "mine", "files": {}, "hub": "me/mine", "hub_subset": None, "held_out": 0.5}
    own |= {"splits": {"train": "train"}, "texts": ["instruction"], "label": "output", "labels": ["3", "4"]}
    readers = [
        (task("alpaca", f"task.data_dir={tmp_path / 'both'}"), "train"),
        (task("alpaca", f"task.data_dir={tmp_path / 'train'}"), None),
        (task("rte", f"task.data_dir={tmp_path / 'both'}"), "train"),
        (task("e2e", f"task.data_dir={tmp_path / 'both'}", "task.format=challenge"), "train"),
        (build({**own, "data_dir": str(tmp_path / "both")}, "task"), "train"),
    ]
    for reader, folder in readers:
        file = "data-00000-of-00001.arrow" if folder is None else f"{folder}/data-00000-of-00001.arrow"
        with pytest.raises(DataError, match=f"; {file}, as save_to_disk writes it, is not read: .* with Dataset.to_parquet"):
            reader.source_rows()
    with pytest.raises(DataError, match=r"holds neither parquet files.*; train/data-00000-of-00001\.arrow, as save_to_disk"):
        from_folder(tmp_path / "both", ["train", "test"], "image", "label", 2, tmp_path)
    rows.to_parquet(str(tmp_path / "both" / "train" / "rows.parquet"))
    assert len(readers[0][0].source_rows()[0]) == 3
    (tmp_path / "states" / "train").mkdir(parents=True)
    (tmp_path / "states" / "train" / "state.json").write_text(json.dumps({"output": "Ohio"}))
    assert tables.split_files(tmp_path / "states", "train")  # where nothing says that it is theirs


def test_the_files_of_a_misspelt_configuration_are_not_anothers(tmp_path, monkeypatch, no_network):
    """Where it has no folder, only a folder of its own name is its own."""
    folder = tmp_path / "test"  # its own name says nothing of splits either
    write(folder / "data" / "train-00000-of-00001.parquet", [("a", "b", "yes"), ("c", "d", "no")], ("one", "two", "said"))
    write(folder / "other.parquet", [("a",)], ("one",))
    assert tables.split_files(folder, "test") == tables.split_files(folder, "train", "labled") == []
    for subset in (None, "default"):
        assert tables.split_files(folder, "train", subset) == [folder / "data" / "train-00000-of-00001.parquet"]
    own = {**choice("task", "sick"), "name": "mine", "files": {}, "hub": "me/mine", "hub_subset": "labled", "held_out": 0.5}
    own |= {"splits": {"train": "train"}, "texts": ["one", "two"], "label": "said", "labels": ["no", "yes"]}
    with pytest.raises(DataError, match=r"split train in a folder labled \(\.parquet, \.jsonl, \.json; CSV is read by files:"):
        build({**own, "data_dir": str(folder)}, "task").source_rows()
    monkeypatch.setattr(hub, "snapshot", lambda *_: folder)
    with pytest.raises(DataError, match=r"data set me/mine \(labled\) cannot be loaded"):
        build({**own, "data_dir": None}, "task").source_rows()


NAMES = {  # as the hub has them
    "sst2": ["negative", "positive"],
    "cola": ["unacceptable", "acceptable"],
    "mrpc": ["not_equivalent", "equivalent"],
    "rte": ["entailment", "not_entailment"],
}


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_read_by_the_names_that_a_file_gives_its_indices(name, tmp_path):
    """As the datasets library writes them: two files of one split may count in different orders."""
    names, texts = NAMES[name], ["sentence"] if name in ("sst2", "cola") else ["sentence1", "sentence2"]

    def save(path, names, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = {**dict.fromkeys(texts, datasets.Value("string")), "label": datasets.ClassLabel(names=names)}
        columns = {**{text: ["x"] * len(labels) for text in texts}, "label": labels}
        datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(path)

    folder = tmp_path / name
    save(folder / "train-00000-of-00002.parquet", names, [0, 1, 1])
    save(folder / "train-00001-of-00002.parquet", names[::-1], [0, 1, 1])
    save(folder / "validation.parquet", names[::-1], [1, 0])
    rows, _, _ = task(name, f"task.data_dir={folder}").source_rows()
    assert [label for _, label in rows["train"]] == [0, 1, 1, 1, 0, 0] and [label for _, label in rows["validation"]] == [0, 1]
    shutil.copy(folder / "train-00000-of-00002.parquet", folder / "all.parquet")
    made = draft.text_files("mine", folder / "all.parquet", texts, "label", {"validation": folder / "validation.parquet"})
    assert made["labels"] == names
    found, _, _ = build(made, "task").source_rows()
    assert [label for _, label in found["train"]] == [0, 1, 1] and [label for _, label in found["validation"]] == [0, 1]
    save(folder / "validation.parquet", names, [1, -1])
    with pytest.raises(DataError, match=r"validation\.parquet, row 1: unknown label -1"):
        task(name, f"task.data_dir={folder}").source_rows()
    with pytest.raises(DataError, match=r"validation\.parquet, row 1, column 'label': '-1' is not one of"):
        build(made, "task").source_rows()
    with pytest.raises(DataError, match=rf"'{names[0]}' is not one of task\.labels: 0, 1; indices that have names there are"):
        build({**made, "labels": [0, 1]}, "task").source_rows()
    save(folder / "validation.parquet", ["a", "b"], [1, 0])
    with pytest.raises(DataError, match=r"validation\.parquet, row 0: unknown label 'b'; allowed: "):
        task(name, f"task.data_dir={folder}").source_rows()


def test_classes_of_the_hub_are_read_by_their_names_in_every_split(monkeypatch):
    def split(*names):
        kinds = datasets.Features({"text": datasets.Value("string"), "said": datasets.ClassLabel(names=[*names])})
        return datasets.Dataset.from_dict({"text": ["a", "b", "c"], "said": [0, 1, -1]}, features=kinds)

    loaded = datasets.DatasetDict(train=split("no", "yes"), test=split("yes", "no"))
    monkeypatch.setattr(hub, "commit", lambda *_: (COMMIT, True))
    monkeypatch.setattr(hub, "load_dataset", lambda *_: (loaded, COMMIT))
    rows, _ = hub.load_rows(hub.HubData("me/mine", "main", None, ("train", "test"), ("text", "said")), "")
    found = {name: [row for _, row in rows[name]] for name in rows}
    assert found == {"train": [("a", "no"), ("b", "yes"), ("c", -1)], "test": [("a", "yes"), ("b", "no"), ("c", -1)]}


def test_two_configurations_are_not_joined(tmp_path):
    for name in ("plain/train.parquet", "raw/train.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"holds the split train more than once: .*; give the folder of one with task\.data_dir="
    ):
        tables.split_files(tmp_path, "train")
    assert tables.split_files(tmp_path / "raw", "train") == [tmp_path / "raw" / "train.jsonl"]


def test_a_download_that_was_cut_off_is_refused(tmp_path):
    folder = glue_snapshot(tmp_path)
    (folder / "rte" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks train-00001-of-00002\.parquet"):
        task("rte", f"task.data_dir={folder}").source_rows()


def test_a_label_or_text_of_another_kind_is_named_by_file_and_row(tmp_path):
    folder = glue_snapshot(tmp_path)
    path = folder / "rte" / "validation-00000-of-00001.parquet"
    for row, said in ((("a", "b", -1), "unknown label -1"), (("a", None, 0), "must be texts")):
        write(path, [PAIRS[0], row], ("sentence1", "sentence2", "label"))
        with pytest.raises(DataError, match=rf"validation-00000-of-00001\.parquet, row 1: .*{said}"):
            task("rte", f"task.data_dir={folder}").source_rows()
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        task("rte", f"task.data_dir={folder}").source_rows()


def test_e2e_in_the_hubs_files_has_the_rows_of_the_challenges(tmp_path):
    rows = [("name[The Mill], eatType[pub]", "The Mill is a pub."), ("name[Zizzi]", 'Zizzi, "cheap".')]
    official, copy = tmp_path / "official", tmp_path / "e2e_nlg"
    official.mkdir()
    for split, name in (("train", "trainset"), ("validation", "devset"), ("test", "testset_w_refs")):
        quoted = "".join('"{}","{}"\n'.format(*(text.replace('"', '""') for text in row)) for row in rows)
        (official / f"{name}.csv").write_text("mr,ref\n" + quoted)
        write(copy / "default" / split / "0000.parquet", rows, ("meaning_representation", "human_reference"))
    form = "task.format=challenge"
    found = [task("e2e", form, f"task.data_dir={folder}").source_rows()[0] for folder in (official, copy)]
    assert found[0] == found[1] == dict.fromkeys(("train", "validation", "test"), rows)


def test_alpaca_as_json_as_json_lines_and_as_parquet(tmp_path):
    rows = [
        {"instruction": "Say a\u2028b.", "input": "", "output": "a"},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    write(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", [tuple(row.values()) for row in rows], list(rows[0]))
    for name in ("list.json", "lines.jsonl", "hub"):
        found, _, _ = task("alpaca", f"task.data_dir={tmp_path / name}").source_rows()
        assert found == [tuple(row.values()) for row in rows], name
    (tmp_path / "lines.jsonl").write_text('{"instruction": "a", "output": "b"}\nnot json\n')
    with pytest.raises(DataError, match=r"lines\.jsonl:2 is not JSON"):
        task("alpaca", f"task.data_dir={tmp_path / 'lines.jsonl'}").source_rows()
    (tmp_path / "lines.jsonl").write_text('{"instruction": "a", "output": "b"}\n[1]\n')
    with pytest.raises(DataError, match=r"lines\.jsonl:2 is not an object"):
        task("alpaca", f"task.data_dir={tmp_path / 'lines.jsonl'}").source_rows()


def test_a_silent_network_is_asked_once(monkeypatch, caplog):
    class ReadTimeout(Exception):
        pass

    asked = []

    def silent(*_, **__):
        asked.append(1)
        raise ReadTimeout

    monkeypatch.setattr(HfApi, "repo_info", silent)
    monkeypatch.setattr(hub, "_mute", False)
    with caplog.at_level(logging.WARNING):
        assert hub.commit("a/b", "main", "model") == (None, False)
        first = len(asked)
        assert hub.commit("c/d", "main", "dataset") == (None, False)
    assert len(asked) == first and "does not answer" in caplog.text


def test_one_folder_serves_every_model_and_data_set_by_the_last_part_of_its_id():
    for choices, path, data in (
        (["model=roberta_large", "task=rte"], "/m/roberta-large", "/d/glue"),
        (["model=gpt2_medium", "task=e2e"], "/m/gpt2-medium", "/d/e2e_nlg"),
        (["model=vit_base", "task=flowers102"], "/m/vit-base-patch16-224-in21k", "/d/oxford_flowers102"),
        (["model=llama2_7b", "task=alpaca"], "/m/Llama-2-7b-hf", "/d/alpaca-cleaned"),
    ):
        run, bare = compose_run([*choices, "models_dir=/m", "data_root=/d"]), compose_run(choices)
        assert (run.model["path"], run.task["data_dir"]) == (path, data)
        assert (bare.model["path"], bare.task["data_dir"]) == (None, None)
        assert run.cell_id == bare.cell_id
    assert compose_run(["model=roberta_base", "task=rte", "model.path=/other", "models_dir=/m"]).model["path"] == "/other"


def test_work_lies_on_the_disk_of_an_absolute_results_dir():
    assert compose_run(["results_dir=/big/results"]).work_dir == "/big/results/work"
    assert compose_run(["results_dir=results/demo"]).work_dir == "work/results/demo"


@pytest.mark.parametrize(
    "path", ["~/models/x", "/d/glue (2018)", "/d/it's", "/d/a=b", "/d/[x] {y}", "/d/Zwölf", "/d/back\\", "/plain/path-1.0"]
)
def test_paths_arrive_as_they_are_written(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (argument,) = readable([f"task.data_dir={path}"])
    override = OverridesParser.create().parse_override(argument)
    assert override.value() == path.replace("~", "/home/me") and not override.is_sweep_override()


def test_a_comma_is_a_sweep_of_paths_unless_the_file_is_there(tmp_path):
    parse = OverridesParser.create().parse_override
    assert parse(readable(["results_dir=/a b,/c"])[0]).is_sweep_override()
    (tmp_path / "a,b").mkdir()
    assert parse(readable([f"results_dir={tmp_path}/a,b"])[0]).value() == f"{tmp_path}/a,b"
    for untouched in ("results_dir=choice(a,b)", "results_dir='/a b'", "results_dir=${oc.env:X}", "method.rank=1,2", "-m"):
        assert readable([untouched]) == [untouched]


def test_the_data_is_looked_at_before_the_backbone(tmp_path, monkeypatch):
    from vera import run as module
    from vera.models.base import Model

    def never(*_):
        raise AssertionError("the backbone was loaded first")

    monkeypatch.setattr(Model, "load", never)
    with pytest.raises(DataError, match="nowhere"):
        module.prepare(compose_run(["model=roberta_base", "task=rte", "task.data_dir=/nowhere"]))


def test_marks_inside_a_row_and_blank_lines_at_the_end_are_legal(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes("\ufeffa\tb\r\nx\ufeffy\t1\r\n\r\n\n".encode())
    assert [row for _, row in read_tsv(path, ("a", "b"), header=True)] == [["x\ufeffy", "1"]]
    path.write_text("a\tb\nx\t1\n\ny\t2\n")
    with pytest.raises(DataError, match=r"train\.tsv:3 has 1 fields"):
        list(read_tsv(path, ("a", "b"), header=True))
    table = tmp_path / "t.csv"
    table.write_text("a,b\nx,1\n\n\n")
    assert [row for _, row in read_csv(table, ("a", "b"))] == [["x", "1"]]
    table.write_text("a,b\nx,1\n\ny,2\n")
    with pytest.raises(DataError, match=r"t\.csv:3 is blank"):
        list(read_csv(table, ("a", "b")))


def test_stsb_with_one_score_says_so(tmp_path, compose):
    for scores, said in (([3.0, 3.0], "2 rows with one and the same score"), ([3.0], "one row")):
        folder = tmp_path / said.replace(" ", "_")
        folder.mkdir()
        for name in ("train", "dev"):
            rows = "".join(f"{i}\tone {i}\ttwo\t{score}\n" for i, score in enumerate(scores))
            (folder / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tscore\n" + rows)
        settings = compose("model=roberta_base", "task=stsb", "task.synthetic=false", f"task.data_dir={folder}")
        backbone = build(settings.model, "model").load(1, settings.cache_dir)
        with pytest.raises(DataError, match=rf"the validation split has {said}"):
            build(settings.task, "task").load(backbone, 0)


def test_cola_with_one_class_says_so(tmp_path, compose):
    (tmp_path / "train.tsv").write_text("".join(f"a\t{i % 2}\t\tsentence {i}\n" for i in range(4)))
    (tmp_path / "dev.tsv").write_text("".join(f"a\t1\t\tother {i}\n" for i in range(4)))
    settings = compose("model=roberta_base", "task=cola", "task.synthetic=false", f"task.data_dir={tmp_path}")
    backbone = build(settings.model, "model").load(2, settings.cache_dir)
    with pytest.raises(DataError, match="the validation split has 4 rows with one and the same label; matthews_correlation is"):
        build(settings.task, "task").load(backbone, 0)


def test_held_out_rows_with_one_score_are_refused_as_a_split_s(tmp_path, compose):
    def load(scores, fraction):
        folder = tmp_path / str(fraction)
        folder.mkdir()
        for name, of in (("train", scores), ("dev", [1.0, 2.0])):
            rows = "".join(f"{i}\tone {i}\ttwo\t{score}\n" for i, score in enumerate(of))
            (folder / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tscore\n" + rows)
        keys = ["task.synthetic=false", f"task.data_dir={folder}", f"task.validation={fraction}"]
        settings = compose("model=roberta_base", "task=stsb", *keys)
        return build(settings.task, "task").load(build(settings.model, "model").load(1, settings.cache_dir), 0)

    assert len(load([i / 4 for i in range(12)], 0.25).train) == 12  # of which a run keeps three apart
    with pytest.raises(DataError, match=r"task.validation=0.05 of 12 training rows has one row; pearson is undefined there"):
        load([i / 4 for i in range(12)], 0.05)
    with pytest.raises(DataError, match=r"task.validation=0.2 of 12 training rows has 3 rows with one and the same score"):
        load([2.5] * 12, 0.2)


def picture(**keys):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 6), (200, 10, 10)).save(buffer, "JPEG", **keys)
    return buffer.getvalue()


def test_a_broken_exif_block_is_passed_over():
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    image, readable_block = opened(picture(exif=exif))
    assert image.size == (6, 4) and readable_block  # turned by a quarter
    broken = exif.tobytes()[:-6]
    image, readable_block = opened(picture(exif=broken))
    assert image.size == (4, 6) and not readable_block


def test_grey_of_32_bits_is_refused_and_16_bits_are_scaled():
    pixels = object.__new__(Pixels)
    pixels.mode = "L"
    assert pixels._converted(Image.new("I;16", (1, 1), 0x8000)).getpixel((0, 0)) == 128
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"mode {mode}"):
            pixels._converted(Image.new(mode, (1, 1), 3))


def test_links_to_nothing_are_named(tmp_path):
    """As git-annex leaves them where the images have not been fetched: a set without them would be another one."""
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(picture())
    (tmp_path / "train" / "cat" / "2.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"1 of the files in .*cat are links to nothing, such as .*2\.jpg"):
        from_folder(tmp_path, ["train"], "image", "label", 1, tmp_path / "cache")


def test_stray_files_are_passed_over_and_counted(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.jpg").write_bytes(picture())
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "dog" / "._1.jpg").write_bytes(b"x")
    (tmp_path / "train" / "__MACOSX").mkdir()
    (rows,) = from_folder(tmp_path, ["train"], "image", "label", 2, tmp_path / "cache").values()
    assert (len(rows), list(rows.names), rows.stray) == (2, ["cat", "dog"], 2)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat/1.jpg", "dog/1.jpg", "dog/more/2.jpg"], r"dog/more/2\.jpg lies in a folder inside the class folder .*dog; move"),
        (["cat/1.jpg", "dog/more/2.jpg"], "inside the class folder"),
        (["cat/1.jpg", "dog/Thumbs.db"], "has no images of 'dog': put some in"),
        (["cat/1.jpg", "dog/1.jpg", "2.JPG"], r"2\.JPG lies beside the class folders"),
    ],
)
def test_no_image_of_a_class_folder_is_left_out_in_silence(names, said, tmp_path):
    for name in (*(f"train/{name}" for name in names), "test/cat/1.jpg", "test/dog/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for read in (
        lambda: from_folder(tmp_path, ["train", "test"], "image", "label", 2, tmp_path / "cache"),
        lambda: draft.images("pets", tmp_path),
    ):
        with pytest.raises(DataError, match=said):
            read()


def test_an_image_behind_a_link_inside_a_class_folder_is_not_left_out_either(tmp_path):
    (tmp_path / "elsewhere" / "part").mkdir(parents=True)
    (tmp_path / "elsewhere" / "part" / "2.jpg").touch()
    for name in ("train/cat", "train/dog", "train/cat/more"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "train" / "cat" / "more" / "1.jpg").unlink()
    (tmp_path / "train" / "cat" / "more" / "linked").symlink_to(tmp_path / "elsewhere" / "part")
    with pytest.raises(DataError, match=r"cat/more/linked/2\.jpg lies in a folder inside the class folder"):
        from_folder(tmp_path, ["train"], "image", "label", 2, tmp_path / "cache")


def test_files_in_a_linked_folder_are_a_split_s_too(tmp_path):
    write(tmp_path / "store" / "train-00000-of-00001.parquet", [("a", "b")], ("one", "two"))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "data").symlink_to(tmp_path / "store")
    assert tables.split_files(tmp_path / "copy", "train") == [tmp_path / "copy" / "data" / "train-00000-of-00001.parquet"]
    (tmp_path / "copy" / "data").unlink()
    gone = tmp_path / "copy" / "train-00000-of-00001.parquet"
    gone.symlink_to(tmp_path / "nowhere")
    assert tables.split_files(tmp_path / "copy", "train") == [gone]  # whose reading fails, where passing over it would not
    with pytest.raises(DataError, match="train-00000-of-00001"):
        from_folder(tmp_path / "copy", ["train"], "image", "label", 2, tmp_path / "cache")


def test_a_link_upwards_leads_to_no_other_folder_s_rows(tmp_path):
    for name in ("mine/train.jsonl", "other/train.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "mine" / "up").symlink_to(tmp_path)
    assert tables.split_files(tmp_path / "mine", "train") == [tmp_path / "mine" / "train.jsonl"]


@pytest.mark.parametrize(
    ("tested", "said"), [(["cat", "Dog"], "'dog' and 'Dog' are two spellings"), (["cat"], "'dog' differs")]
)
def test_splits_whose_class_folders_differ_are_no_task(tested, said, tmp_path):
    for name in ("train/cat", "train/dog", *(f"test/{name}" for name in tested)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    with pytest.raises(DataError, match=rf"train and test do not name the same classes: {said}; give"):
        draft.images("pets", tmp_path)


def test_two_spellings_of_a_class_that_look_alike_are_told_apart():
    """As a Mac writes a folder's name, and as others do."""
    with pytest.raises(DataError, match=r"classes: 'caf\\xe9' and 'cafe\\u0301' are two spellings"):
        image_rows.check_names("train", ["bar", "caf\u00e9"], "test", ["bar", "cafe\u0301"])


@pytest.mark.parametrize("more", [[], ["--text", "text", "--label", "label"]])
def test_a_folder_that_the_datasets_library_has_saved_is_no_folder_of_images(more, tmp_path, monkeypatch, capsys):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    assert command_line("task", ["mine", str(tmp_path / "saved"), *more, "--print"])
    assert "train/data-00000-of-00001.arrow, as save_to_disk writes it, is not read: write parquet" in capsys.readouterr().err


def test_a_stray_arrow_file_beside_images_is_nothing(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "features.arrow").touch()
    assert draft.images("pets", tmp_path)["classes"] == 2


def test_a_cache_of_the_hub_that_cannot_be_read_is_told_and_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.model_snapshot("me/model", "main") is None and hub.snapshot("me/data") is None
    for folder in ("models--me--model", "datasets--me--data"):
        (tmp_path / folder / "refs").mkdir(parents=True)
        (tmp_path / folder / "refs" / "main").write_bytes(b"\xff")
        (tmp_path / folder / "snapshots").mkdir()
    for look in (lambda: hub.model_snapshot("me/model", "main"), lambda: hub.snapshot("me/data")):
        with pytest.raises(DataError, match=r"the hub's cache of me/\w+ cannot be read: "):
            look()
    line = data_line(hub.HubData("me/data", "main", None, ("train",), ("text",)), "no network", {})
    assert line.status == TODO and "cannot be read" in line.found


def test_folders_of_images_beside_a_parquet_file_are_no_task(tmp_path):
    """Which a run would read instead."""
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "about.parquet").touch()
    with pytest.raises(DataError, match=r"about\.parquet is a parquet file, and a run would look for its images in such"):
        draft.images("pets", tmp_path)


@pytest.mark.parametrize("name", [b"train/dog/\xe9.jpg", b"train/d\xe9/1.jpg", b"train/\xe9/train.parquet"])
def test_a_name_that_is_not_utf_8_is_refused(name, tmp_path):
    """As archives made on Windows leave them."""
    odd = tmp_path / os.fsdecode(name)
    for path in (tmp_path / "train" / "cat" / "1.jpg", odd):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    classes = len(list((tmp_path / "train").iterdir()))
    with pytest.raises(DataError, match=r"^'/.*\\udce9.*' is not UTF-8; rename it$"):
        from_folder(tmp_path, ["train"], "image", "label", classes, tmp_path / "cache")


@pytest.mark.parametrize("name", [b"d\xe9/train.csv", b"train.\xe9.csv", b"\xe9.parquet"])
def test_a_file_whose_name_no_yaml_can_hold_is_no_task(name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(DataError, match=r"\\udce9.*' is not UTF-8; rename it$"):
        draft.text_files("mine", path, ["text"], "label", {})
    rows = path.with_suffix(".jsonl")
    rows.write_text('{"q": "a", "a": "b"}\n')
    with pytest.raises(DataError, match=r"\\udce9.*' is not UTF-8; rename it$"):
        draft.instructions("mine", rows, {"instruction": "q", "output": "a"})


def test_e2e_tables_with_repeated_or_unknown_meanings(tmp_path):
    outputs, references = tmp_path / "out.csv", tmp_path / "ref.csv"
    references.write_text("mr,ref\na[1],x\na[1],y\nb[2],z\n")
    outputs.write_text("mr,output\nb[2],B\na[1],A\na[1],A\n")
    assert read_files(outputs, references) == (["A", "B"], [["x", "y"], ["z"]])
    outputs.write_text("mr,output\nb[2],B\na[1],A\na[1],other\n")
    with pytest.raises(DataError, match=r"out\.csv:4: another output for 'a\[1\]' than at .*out\.csv:3"):
        read_files(outputs, references)
    outputs.write_text("mr,output\nb[2],B\na[1],A\nc[3],C\n")
    with pytest.raises(DataError, match=r"ref\.csv has nothing for 'c\[3\]'"):
        read_files(outputs, references)
    outputs.write_text("mr,output\nb[2],\na[1],A\n")
    assert read_files(outputs, references, allow_empty=True)[0] == ["A", ""]
    with pytest.raises(DataError, match=r"out\.csv:2 is an empty output"):
        read_files(outputs, references)


@pytest.mark.parametrize("columns", ["mr,ref,output", "mr,output,ref"])
def test_outputs_beside_their_references_are_told_apart(columns, tmp_path):
    """One such table may be given for both sides, and neither is scored against itself."""
    path = tmp_path / "both.csv"
    values = {"mr": "a[1]", "ref": "what a person wrote", "output": "what the system wrote"}
    path.write_text(f"{columns}\n{','.join(values[name] for name in columns.split(','))}\n")
    assert read_files(path, path) == ([values["output"]], [[values["ref"]]])


@pytest.mark.parametrize(
    ("outputs", "references", "said"),
    [
        ("mr,output,sys", "mr,ref", r"out\.csv:1: 'output' and 'sys' may hold the outputs; rename all but the one"),
        ("mr,output", "mr,ref,target", r"ref\.csv:1: 'ref' and 'target' may hold the references"),
        ("mr,source,output", "mr,ref", r"out\.csv:1: 'mr' and 'source' may hold the meaning representations"),
        ("mr,ref", "mr,ref", r"out\.csv:1 has no column for outputs; it has 'mr', 'ref'"),
        ("mr,output", "mr,output", r"ref\.csv:1 has no column for references; it has 'mr', 'output'"),
    ],
)
def test_a_table_whose_texts_could_be_others_is_refused(outputs, references, said, tmp_path):
    for name, columns in (("out", outputs), ("ref", references)):
        (tmp_path / f"{name}.csv").write_text(columns + "\n" + ",".join("x" for _ in columns.split(",")) + "\n")
    with pytest.raises(DataError, match=said):
        read_files(tmp_path / "out.csv", tmp_path / "ref.csv")


def test_objects_are_told_by_their_first_character(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n\n{"a": "\u2028"}\n', encoding="utf-8")
    assert [row for _, row in tables.read_objects(path)] == [{"a": 1}, {"a": "\u2028"}]
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        tables.read_objects(path)
