"""Records are complete, finite, atomic, and refused when they are not what they say."""

import json
import math
import os
import stat
from pathlib import Path

import pytest

from experiments.engine import status
from vera.checks.verify import read_record
from vera.errors import RecordError
from vera.records.record import Record, parse, text_hash
from vera.records.store import Store, output_path
from vera.run import execute


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One real record, made once."""
    from vera.config import compose

    folder = tmp_path_factory.mktemp("record")
    run = compose(
        [
            "scale=rehearsal",
            "device=cpu",
            "progress=false",
            f"cache_dir={folder}",
            f"results_dir={folder / 'results'}",
            f"work_dir={folder / 'work'}",
        ]
    )
    return execute(run), Store(run.results_dir), run


def test_what_a_record_holds(finished):
    record, store, run = finished
    raw = json.loads(store.path(record.name).read_text())
    assert set(raw) == {"schema", "status", "run", "parameters", "scores", "cost", "provenance"}
    assert raw["status"] == "done" and raw["run"]["seed"] == 0 and raw["run"]["cell_id"] == run.cell_id
    assert set(raw["parameters"]) == {"adapter", "head", "total", "adapter_bytes"}
    assert set(raw["scores"]) >= {"primary", "best", "last", "history"}
    assert raw["scores"]["best"].keys() == {"epoch", "metrics"}
    assert raw["run"]["config"]["method"]["projection_seed"] == 0
    assert raw["provenance"]["versions"]["torch"] and raw["cost"]["steps"] == 2
    assert str(store.root) not in store.path(record.name).read_text()  # no path of the machine
    assert raw["provenance"]["notes"]["few_shot_rows"]


def test_round_trip(finished):
    record, store, _ = finished
    assert parse(record.to_json(), "x") == record
    assert store.find(record.name) == record
    assert store.records() == [record] and store.by_cell() == {record.run.cell_id: [record]}


def test_a_finished_run_is_not_repeated(finished):
    record, store, run = finished
    before = store.path(record.name).stat().st_mtime_ns
    assert execute(run) == record
    assert store.path(record.name).stat().st_mtime_ns == before


def broken(record, change):
    raw = json.loads(record.to_json())
    change(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["scores"]["best"]["metrics"].update(accuracy=float("nan")), "scores.best.metrics.accuracy"),
        (lambda r: r["scores"]["last"]["metrics"].clear(), "last lacks the primary metric 'accuracy'"),
        (lambda r: r["scores"].pop("history"), "scores.history"),
        (lambda r: r["scores"]["best"]["metrics"].update(accuracy=0.99), "best has other metrics than epoch 1 in history"),
        (lambda r: r["scores"]["last"].update(epoch=7), "last has other metrics than epoch 7 in history"),
        (lambda r: r.update(schema=2), "schema is 2, this version reads 1"),
        (lambda r: r.update(status="failed"), "status"),
        (lambda r: r["run"].update(seed=-1), "run.seed"),
        (lambda r: r["run"]["config"]["train"].update(lr=9.0), "run.config hashes to"),
        (lambda r: r["run"].update(method="lora"), "run.method is lora, but run.config.method.name is"),
        (lambda r: r["run"].update(seed=8), "run.seed is 8, but run.config.method.projection_seed, which follows it, is 0"),
        (lambda r: r.update(comment="hi"), "comment"),
        (lambda r: r["parameters"].update(adapter="many"), "parameters.adapter"),
    ],
)
def test_a_record_that_is_not_one_is_refused_by_file_and_key(change, message, finished):
    with pytest.raises(RecordError) as error:
        parse(broken(finished[0], change), "results/runs/x.json")
    assert message in str(error.value) and "results/runs/x.json" in str(error.value)


def test_truncated_and_misnamed_files_are_refused(finished, tmp_path):
    record, _, _ = finished
    store = Store(tmp_path)
    path = store.write(record)
    path.rename(path.with_name("other.json"))
    with pytest.raises(RecordError, match="should be called"):
        store.records()
    path.with_name("other.json").unlink()
    path.write_text(record.to_json()[:500])
    with pytest.raises(RecordError, match=path.name):
        store.records()


def test_nothing_is_left_when_writing_fails(finished, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(RecordError, match="No space left on device"):
        Store(tmp_path).write(finished[0])
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"results_dir=.*file is not writable"):
        Store(tmp_path / "file").check_writable("run")
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir()
        closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(RecordError, match="not writable"):
            Store(closed).check_writable("run")


def test_success_clears_an_earlier_failure(finished, tmp_path):
    record, _, _ = finished
    store = Store(tmp_path)
    store.failed.mkdir(parents=True)
    (store.failed / f"{record.name}.json").write_text("{}")
    store.write(record)
    assert not list(store.failed.iterdir())


def test_undefined_metrics_may_stand_in_the_history_only(finished):
    raw = json.loads(finished[0].to_json())
    (entry,) = raw["scores"]["history"]
    raw["scores"]["history"].append({**entry, "epoch": entry["epoch"] + 1, "metrics": {"accuracy": None}})
    assert isinstance(Record.model_validate(raw), Record)
    for scored in (entry, raw["scores"]["best"], raw["scores"]["last"]):
        scored["metrics"]["accuracy"] = None
    with pytest.raises(ValueError, match=r"scores.best.metrics.accuracy is null, and the run has not collapsed"):
        Record.model_validate(raw)
    collapsed = Record.model_validate({**raw, "collapsed": "accuracy is undefined"})
    assert collapsed.score() == collapsed.score(select="last") == -math.inf
    assert parse(collapsed.to_json(), "record") == collapsed
    with pytest.raises(ValueError, match="history is empty"):
        Record.model_validate({**raw, "scores": {**raw["scores"], "history": []}})


def test_outputs_are_kept_with_their_record_and_checked(finished, tmp_path):
    record, _, _ = finished
    store = Store(tmp_path)
    path = output_path(record.name, "txt")
    record = record.model_copy(update={"outputs": {path: text_hash("one\ntwo\n")}})
    store.write(record, {path: "one\ntwo\n"})
    kept = store.find(record.name)
    assert kept == record and store.read_output(kept, "txt") == "one\ntwo\n"
    (tmp_path / path).write_text("one\nthree\n")
    with pytest.raises(RecordError, match="its SHA-256 differs"):
        store.read_output(kept, "txt")
    (tmp_path / path).unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        store.read_output(kept, "txt")


def test_hidden_files_are_no_records(finished, tmp_path):
    """macOS writes a ._ file beside each one on a disk that is not its own."""
    record, store = finished[0], Store(tmp_path)
    store.write(record)
    (store.runs / f"._{record.name}.json").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    assert store.names() == [record.name] and store.records() == [record] and status.look(tmp_path).done == {record.name}
    assert read_record(tmp_path) == record


def test_a_record_that_is_named_is_the_one_that_is_read(finished, tmp_path, monkeypatch):
    """An older copy in a folder beside runs/, or one with a relative path from within runs/."""
    record, store = finished[0], Store(tmp_path)
    path = store.write(record)
    copy = tmp_path / "old" / path.name
    copy.parent.mkdir()
    copy.write_text(record.model_copy(update={"cost": record.cost.model_copy(update={"seconds": 12345.0})}).to_json())
    assert read_record(copy).cost.seconds == 12345.0 != read_record(path).cost.seconds
    copy.write_text("{}")
    with pytest.raises(RecordError, match="old"):
        read_record(copy)
    copy.unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(copy)
    monkeypatch.chdir(store.runs)
    assert read_record(Path(path.name)) == record


def test_a_cell_is_read_when_it_is_asked_for(finished, tmp_path):
    record = finished[0]
    store = Store(tmp_path)
    store.write(record)
    other = record.name.replace(record.run.cell_id[:8], "0" * 8)
    store.path(other).write_text("{")
    cells = store.by_cell()
    assert [found.name for found in cells[record.run.cell_id]] == [record.name]
    assert cells.get("f" * 64) is None
    with pytest.raises(RecordError, match=other):
        cells.get("0" * 64)
    store.path("stray").write_text("{}")
    with pytest.raises(RecordError, match=r"stray\.json: not the name"):
        store.by_cell()
