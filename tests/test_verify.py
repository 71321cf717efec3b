"""A recorded run comes out again, and what does not agree is named. Nothing that a record says is executed or opened."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import REHEARSAL, ROOT
from vera.checks.verify import compare, read_record, repeat, run_of
from vera.commands.verify import report
from vera.config import build, cell_id
from vera.config import compose as compose_run
from vera.errors import ConfigError, RecordError
from vera.records import sources
from vera.records.record import Record
from vera.records.store import Store
from vera.run import execute

SLOW = ("seconds", "started", "finished")


SETTINGS = ["method=vera", "train.max_steps=3", "train.epochs=3", "train.batch_size=32"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, cache):
    """A record and its path, made once."""
    folder = tmp_path_factory.mktemp("recorded")
    places = [f"cache_dir={cache}", f"results_dir={folder / 'results'}", f"work_dir={folder / 'work'}"]
    run = compose_run([*REHEARSAL, *SETTINGS, *places])
    return execute(run), Store(run.results_dir).path(run.run_name)


def changed(record, change):
    """The record with another config whose identity holds."""
    raw = json.loads(record.to_json())
    change(raw["run"])
    raw["run"]["cell_id"] = cell_id(raw["run"]["config"], raw["run"]["follows_seed"])
    return Record.model_validate(raw)


def named(run, group, name):
    run[group] = run["config"][group]["name"] = name


def without_times(record):
    raw = json.loads(record.to_json())
    for part in (raw["cost"], raw["provenance"]):
        for key in SLOW:
            part.pop(key, None)
    return raw


def test_same_config_and_seed_give_the_same_record(recorded, compose):
    record, _ = recorded
    assert without_times(execute(compose(*SETTINGS))) == without_times(record)


def test_a_record_is_repeated_and_left_alone(recorded, cache):
    record, path = recorded
    before = path.read_bytes(), path.stat().st_mtime_ns
    found = compare(read_record(path), repeat(record, [f"cache_dir={cache}"]))
    assert not found.differing() and not found.conditions
    assert {"parameters.adapter", "epoch 1 accuracy", "epoch 2 train_loss", "best accuracy"} <= {v.name for v in found.values}
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_what_differs_is_named(recorded):
    record, _ = recorded
    raw = json.loads(record.to_json())
    raw["scores"]["history"][0]["train_loss"] += 1e-9
    first = raw["scores"]["history"][0]
    chosen = [which for which in ("best", "last") if raw["scores"][which]["epoch"] == first["epoch"]]
    for scored in (first, *(raw["scores"][which] for which in chosen)):
        scored["metrics"]["f1"] = 0.5
    more = {f"{which} f1" for which in chosen}
    raw["parameters"]["total"] += 1
    raw["cost"]["threads"] += 1
    raw["provenance"].update(git_dirty=None, data_fingerprint="other")
    raw["provenance"]["versions"]["torch"] = "2.0"
    found = compare(record, Record.model_validate(raw))
    names = {value.name: value.difference for value in found.differing()}
    assert names.keys() == {"epoch 1 train_loss", "epoch 1 f1", "parameters.total"} | more
    assert names["epoch 1 f1"] == float("inf") and names["epoch 1 train_loss"] == pytest.approx(1e-9, rel=1e-4)
    assert {name for name, _, _ in found.conditions} == {"git_dirty", "data_fingerprint", "versions.torch", "threads"}
    assert {value.name for value in found.differing(1e-6)} == {"epoch 1 f1", "parameters.total"} | more


@pytest.mark.parametrize(("more", "tolerance", "status"), [(0.0, 0.0, 0), (1e-3, 0.01, 0), (1e-3, 0.0, 1)])
def test_other_conditions_are_listed_whatever_comes_out(recorded, capsys, more, tolerance, status):
    """Also where a tolerance hides what they changed."""
    raw = json.loads(recorded[0].to_json())
    for entry in raw["scores"]["history"]:
        entry["train_loss"] += more
    raw["provenance"].update(model_fingerprint="0" * 16, data_fingerprint="1" * 16)
    assert report(compare(recorded[0], Record.model_validate(raw)), tolerance) == status
    said = " ".join(capsys.readouterr().out.split())
    made = recorded[0].provenance
    assert f"model_fingerprint: recorded {made.model_fingerprint}, here {'0' * 16}" in said
    assert f"data_fingerprint: recorded {made.data_fingerprint}, here {'1' * 16}" in said
    assert ("model and data are not the recorded ones, so that equal numbers are not to be expected" in said) == bool(status)


def test_another_configuration_is_a_condition_and_no_number(recorded, capsys):
    """Where both say it: an older record does not."""

    def noted(**notes):
        raw = json.loads(recorded[0].to_json())
        raw["provenance"]["notes"] |= notes
        return Record.model_validate(raw)

    found = compare(noted(configuration="a", preprocessing="same"), noted(configuration="b", preprocessing="same"))
    assert not found.differing() and found.conditions == [("configuration", "a", "b")] and report(found, 0.0) == 0
    assert "configuration: recorded a, here b" in capsys.readouterr().out
    for pair in ((noted(), noted(configuration="b")), (noted(configuration="b"), noted())):
        assert not compare(*pair).differing() and not compare(*pair).conditions


def test_what_else_computed_the_record_is_a_condition(recorded, capsys):
    """Several processes, an earlier start elsewhere, other micro-batches: numbers may differ, and not by chance."""
    raw = json.loads(recorded[0].to_json())
    raw["cost"]["processes"] = 2
    raw["provenance"]["notes"]["resumed"] = [{"step": 3, "started": "then", "threads": 8}]
    raw["run"]["config"]["train"]["micro_batch_size"] = 5
    raw["scores"]["history"][0]["train_loss"] += 1e-7
    assert report(compare(Record.model_validate(raw), recorded[0]), 0.0) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "processes: recorded 2, here 1" in said and "train.micro_batch_size: recorded 5, here -" in said
    assert 'resumed: recorded {"step": 3, "started": "then", "threads": 8}, here -' in said and "not deterministic" not in said


EDITS = {
    "best by accuracy: accuracy": lambda raw: raw["scores"]["best_each"]["accuracy"]["metrics"].update(accuracy=0.9),
    "best by accuracy: epoch": lambda raw: raw["scores"]["best_each"]["accuracy"].update(epoch=99),
    "collapsed": lambda raw: raw.update(collapsed="made up"),
    "cost.steps": lambda raw: raw["cost"].update(steps=999),
    "cost.examples": lambda raw: raw["cost"].update(examples=1),
    "notes.few_shot_rows": lambda raw: raw["provenance"]["notes"]["few_shot_rows"].reverse(),
    "notes.x": lambda raw: raw["provenance"]["notes"].update(x=1),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_anything_that_comes_out_again_is_seen(name, recorded, capsys):
    raw = json.loads(recorded[0].to_json())
    EDITS[name](raw)
    raw["provenance"]["notes"] |= {"decoding_seconds": 3.0, "resumed": [{"step": 0, "started": "then", "device": "a GPU"}]}
    found = compare(Record.model_validate(raw), recorded[0])
    assert [value.name for value in found.differing()] == [name] and report(found, 0.0) == 1
    assert name in capsys.readouterr().out.replace("\n", " ")


def test_a_record_from_before_a_note_was_written_is_equal(recorded):
    raw = json.loads(recorded[0].to_json())
    assert raw["provenance"]["notes"].pop("few_shot_rows")
    assert not compare(Record.model_validate(raw), recorded[0]).differing()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run["config"]["method"].update(_target_="os.system"), "method._target_: 'os.system' is not a component"),
        (lambda run: run["config"]["method"].update(_target_="vera.methods.lora.Lora"), "conf/method has 'vera.methods.vera"),
        (lambda run: run["config"]["model"].update(path="/etc"), "run.config.model.path shows a path"),
        (lambda run: run["config"]["task"].update(version=9), "made with version 9 of task=digits"),
        (lambda run: named(run, "method", "veera"), "conf/method has no 'veera'"),
        (
            lambda run: named(run, "model", "mine"),
            "conf/model has no 'mine'; python scripts/model.py ID --write mine writes one",
        ),
        (lambda run: run["config"]["train"].update(command="rm"), "train.command"),
        (lambda run: run["config"].update(train={"version": 1}), "train.epochs is missing"),
    ],
)
def test_a_record_is_data(recorded, change, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        run_of(changed(recorded[0], change), [], tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_is_an_id_and_a_package_has_no_dots(recorded, tmp_path):
    """A path or an importable parent package in a record's config is refused before anything is looked up."""
    for change in ({"checkpoint": "/etc"}, {"checkpoint": "../x"}, {"package": "os.path/x"}, {"package": "x/../../etc"}):
        record = changed(recorded[0], lambda run, change=change: run["config"]["model"].update(change))
        with pytest.raises(ConfigError, match=rf"model\.{next(iter(change))}"):
            repeat(record)


def test_only_what_cannot_change_the_numbers_may_be_given(recorded, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.lr=1: only model\.path"):
        run_of(recorded[0], ["train.lr=1"], tmp_path)
    run = run_of(recorded[0], ["train.micro_batch_size=4", "device=cpu"], tmp_path)
    assert run.train.micro_batch_size == 4 and run.cell_id == recorded[0].run.cell_id and not run.train.save
    pieces = changed(recorded[0], lambda run: run["config"]["train"].update(micro_batch_size=2))
    run = run_of(pieces, ["train.micro_batch_size=null", "cache_dir=null", "device=null"], tmp_path)
    assert (run.train.micro_batch_size, run.cache_dir, run.device) == (None, ".cache", "auto")


def test_a_local_copy_that_conf_names_is_where_it_is_read_from(recorded, tmp_path, monkeypatch):
    from vera.checks import verify

    real, own = verify.choice, {"path": "/there"}
    monkeypatch.setattr(verify, "choice", lambda group, name: real(group, name) | (own if group == "model" else {}))
    local = changed(recorded[0], lambda run: run["config"]["model"].update(path="local"))
    assert run_of(local, [], tmp_path).model["path"] == "/there"
    assert run_of(local, ["model.path=/here"], tmp_path).model["path"] == "/here"
    assert run_of(recorded[0], [], tmp_path).model["path"] is None
    text = Store(ROOT / "results").find("gpt2_mini--e2e--adapter_l--8b7bfe17--s0")
    rows = {"data_dir": "/rows"}
    monkeypatch.setattr(verify, "choice", lambda group, name: real(group, name) | (rows if group == "task" else {}))
    run = run_of(text, [], tmp_path)
    assert run.task["data_dir"] == run.model["data_dir"] == "/rows"
    run = run_of(text, ["task.data_dir=/here"], tmp_path)
    assert run.task["data_dir"] == run.model["data_dir"] == "/here"


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def test_fingerprints_decide_wherever_the_weights_lie(recorded, compose, tmp_path, cache):
    """A record of a folder and one of the same weights from elsewhere are repeated with either; other weights are refused."""
    folder = Path(build(compose("method=head").model, "model").source(cache))
    sizes = [f"model.architecture.{key}={value}" for key, value in SIZES.items()]
    run = compose("method=head", "model.size=full", f"model.path={folder}", "train.max_steps=2", *sizes)
    record = execute(run)
    copied = shutil.copytree(folder, tmp_path / "copied")
    here = [f"model.path={copied}", f"cache_dir={cache}"]
    assert not compare(record, repeat(record, here)).differing()
    elsewhere = changed(record, lambda run: run["config"]["model"].update(path=None))
    assert not compare(elsewhere, repeat(elsewhere, here)).differing()
    weights = load_file(copied / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, copied / "model.safetensors", {"format": "pt"})
    sources._stamped.cache_clear()  # as in a new process
    with pytest.raises(RecordError, match=r"other weights: local folder, fingerprint .* and model\.path=.*copied has"):
        repeat(record, here)


def test_a_class_that_has_moved_since_is_the_same_component(recorded, tmp_path):
    old = changed(recorded[0], lambda run: run["config"]["method"].update(_target_="vera.methods.before.Vera"))
    assert old.run.cell_id == recorded[0].run.cell_id
    assert run_of(old, [], tmp_path).method["_target_"] == "vera.methods.vera.Vera"


def test_a_younger_neutral_key_stands_at_its_neutral_value(recorded, tmp_path):
    """train.warmup_steps is younger than version 1 of conf/train: records without it mean null."""
    younger = [*recorded[0].run.config["train"]["neutral"], "neutral"]
    assert "warmup_steps" in younger
    old = changed(recorded[0], lambda run: [run["config"]["train"].pop(key, None) for key in younger])
    assert old.run.cell_id == recorded[0].run.cell_id
    assert run_of(old, [], tmp_path).train.warmup_steps is None


def test_the_command(script, recorded, cache, tmp_path):
    record, path = recorded

    def run(path, *more):
        return script("verify.py", path, f"cache_dir={cache}", *more, cwd=tmp_path)

    done = run(path)
    assert done.returncode == 0 and "equal: all" in done.stdout, done.stdout + done.stderr
    raw = json.loads(record.to_json())
    raw["scores"]["history"][0]["train_loss"] += 0.25
    other = tmp_path / "tampered" / "runs" / path.name
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps(raw))
    done = run(other)
    assert done.returncode == 1 and "differs: 1 of" in done.stdout and "epoch 1 train_loss" in done.stdout, done.stdout
    assert "nothing around the run differs" in done.stdout
    assert run(other, "--tolerance", "0.3").returncode == 0
    done = run(tmp_path / "none.json")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    with pytest.raises(RecordError):
        read_record(tmp_path / "none.json")


@pytest.mark.parametrize("words", ["--tolerance -1", "--tolerance nan", "--tolerance inf", "--threads 0", "--threads -3"])
def test_limits_that_would_decide_alone_are_refused(words, monkeypatch, capsys):
    from vera.commands import verify as command

    monkeypatch.setattr("sys.argv", ["verify.py", "none.json", *words.split()])
    with pytest.raises(SystemExit):
        command.main()
    assert words.split()[0] in capsys.readouterr().err


def test_paths_are_given_as_to_a_training_and_options_anywhere(recorded, tmp_path, monkeypatch):
    run = run_of(recorded[0], ["cache_dir=~/some cache"], tmp_path)
    assert run.cache_dir == os.path.expanduser("~/some cache")
    from vera.commands import verify as command

    monkeypatch.setattr("sys.argv", ["verify.py", "none.json", "device=cpu", "--tolerance", "1", "cache_dir=x"])
    with pytest.raises(RecordError, match=r"none\.json cannot be read: No such file"):
        command.main()
