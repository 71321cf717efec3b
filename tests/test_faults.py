"""Killed, interrupted or out of disk at any moment: the same command ends with the same numbers. `make test-faults` is the
long version, with real commands."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import REHEARSAL, ROOT
from tests.system.faults import comparable, kept
from vera.config import compose as vera_compose
from vera.errors import TrainingError
from vera.io.files import move_folder, write_atomic
from vera.records import interrupt
from vera.records.store import Store
from vera.run import execute
from vera.train import loop as loops

TEXT = ("model=roberta_base", "task=rte")
LONG = (*TEXT, "train.epochs=2", "train.max_steps=null", "train.batch_size=5", "train.save=true", "train.checkpoint_seconds=0")


@pytest.fixture(autouse=True)
def interruptible():
    """A shell starts what it runs in the background with SIGINT ignored, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def weights(run):
    return kept(Path(run.work_dir) / run.run_name)


def raw(record):
    return json.loads(record.to_json())


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The uninterrupted run: record and kept weights."""
    folder = tmp_path_factory.mktemp("whole")
    where = [f"cache_dir={cache}", f"results_dir={folder}", f"work_dir={folder / 'work'}"]
    run = vera_compose([*REHEARSAL, *where, *LONG])
    return comparable(raw(execute(run))), weights(run)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["step", "last step of an epoch", "evaluation", "last evaluation", "scoring", "record"])
def test_a_signal_anywhere_costs_nothing(where, signum, whole, compose, monkeypatch):
    if signum == signal.SIGINT and where not in ("step", "evaluation"):
        pytest.skip("the same path as SIGTERM's")
    run, calls = compose(*LONG), []

    def at(call, function):
        def wrapped(*arguments):
            calls.append(where)
            if len(calls) == call:
                signal.raise_signal(signum)
            return function(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        if where in ("step", "last step of an epoch"):
            patch.setattr(loops.Loop, "_step", at(2 if where == "step" else 5, loops.Loop._step))
        elif where == "scoring":
            from vera.tasks.glue import Glue

            patch.setattr(Glue, "score", at(1, Glue.score))
        elif where == "record":
            patch.setattr(Store, "write", at(1, Store.write))
        else:
            from transformers import RobertaForSequenceClassification as Roberta

            forward, trained = Roberta.forward, []

            def interrupted(model, *arguments, **named):
                if model.training:
                    trained.append(1)
                elif len(trained) == (5 if where == "evaluation" else 10):
                    signal.raise_signal(signum)
                return forward(model, *arguments, **named)

            patch.setattr(Roberta, "forward", interrupted)
        handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        with pytest.raises(interrupt.Interrupted) as left, interrupt.handled():
            execute(run)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert left.value.status == 128 + signum
    if where != "record":
        assert "interrupted at step " in str(left.value) and " of 10; the same command goes on from here" in str(left.value)
    root = Path(run.results_dir)
    assert not (root / "failed").exists() and list((root / "claims").iterdir()) == []
    steps = []
    original = loops.Loop._step
    monkeypatch.setattr(loops.Loop, "_step", lambda loop, batches: (steps.append(loop.step), original(loop, batches)))
    record = execute(run)
    done = {"step": 2, "last step of an epoch": 5, "evaluation": 5, "last evaluation": 10, "scoring": 5, "record": 10}[where]
    assert steps == list(range(done, 10)) and record.cost.restarts == (where != "record")  # not one step is trained again
    assert (comparable(raw(record)), weights(run)) == whole


def test_a_signal_on_the_test_set_costs_its_scoring_alone(compose, monkeypatch):
    run = compose(*LONG, "train.checkpoint_seconds=1000", "task.validation=0.2")
    scored, whole_scored = [], loops.Loop._scored

    def at(loop, data, when):
        scored.append(when)
        if when == "on the test set":
            signal.raise_signal(signal.SIGTERM)
        return whole_scored(loop, data, when)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Loop, "_scored", at)
        with pytest.raises(interrupt.Interrupted), interrupt.handled():
            execute(run)
    assert scored == ["after epoch 1", "after epoch 2", "on the test set"]
    monkeypatch.setattr(loops.Loop, "_step", lambda *_: pytest.fail("trained again"))
    resumed = execute(run)
    monkeypatch.undo()
    apart = [f"{key}={getattr(run, key)}/other" for key in ("results_dir", "work_dir")]
    alone = execute(compose(*LONG, "task.validation=0.2", *apart))
    assert (resumed.cost.restarts, alone.cost.restarts) == (1, 0) and resumed.scores == alone.scores


def test_a_second_signal_leaves_at_once(compose, monkeypatch):
    run = compose(*LONG)
    seen = []

    def step(loop, batches):
        seen.append(loop.step)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        seen.append("never here")

    monkeypatch.setattr(loops.Loop, "_step", step)
    with pytest.raises(interrupt.Interrupted) as left, interrupt.handled():
        execute(run)
    assert left.value.again and seen == [0] and not list(Path(run.work_dir).rglob("state*"))


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.handled():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_swallowed_interruption_comes_again():
    with pytest.raises(interrupt.Interrupted), interrupt.handled():
        with contextlib.suppress(BaseException):  # as some libraries do
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_command_leaves_within_seconds_and_goes_on(signum, cache, tmp_path):
    where = [f"cache_dir={cache}", f"results_dir={tmp_path / 'results'}", f"work_dir={tmp_path / 'work'}"]
    keys = [*REHEARSAL, *where, *TEXT, "train.epochs=30", "train.max_steps=null"]
    process, _ = forked.begin(tmp_path, "train.py", *keys, cwd=tmp_path)
    claims = tmp_path / "results" / "claims"
    deadline = time.monotonic() + 120
    while not (tmp_path / "work").is_dir() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signum)
    process.join(60)
    errors = (tmp_path / "stderr").read_text()
    assert process.exitcode == 128 + signum, errors
    (line,) = errors.splitlines()
    assert line.startswith("interrupted") and line.endswith("; the same command goes on from here")
    assert list(claims.iterdir()) == [] and not (tmp_path / "results" / "failed").exists()


class FullDisk:
    """Writing of files whose path holds a word fails after some bytes, as on a full disk."""

    def __init__(self, monkeypatch, *words):
        self.words, self.hits, self.fsync = words, 0, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if any(word in path for word in self.words):
            self.hits += 1
            raise OSError(28, "No space left on device")
        return self.fsync(handle)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
@pytest.mark.parametrize("what", ["state.safetensors", ".best-", "/runs/", "/failed/"])
def test_a_full_disk_is_one_line_and_the_next_start_completes(what, whole, compose, monkeypatch):
    run = compose(*LONG)
    root = Path(run.results_dir)
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, "/runs/", what)
        with pytest.raises(Exception, match="No space left on device") as failed:
            execute(run)
        assert disk.hits and "\n" not in str(failed.value)
    assert what == "/failed/" or len(list((root / "failed").iterdir())) == 1
    half = [path for path in [*root.rglob(".*"), *Path(run.work_dir).rglob(".*")] if path.is_file() or path.is_dir()]
    assert half == [] and Store(root).records() == [] and list((root / "claims").iterdir()) == []
    assert (comparable(raw(execute(run))), weights(run)) == whole
    assert not list((root / "failed").glob("*"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_a_failure_that_cannot_be_written_does_not_hide_the_first_error(compose, monkeypatch):
    run = compose()

    def broken(run, **_):
        raise TrainingError("the first error")

    monkeypatch.setattr("vera.run.prepare", broken)
    FullDisk(monkeypatch, "/failed/")
    with pytest.raises(TrainingError, match="the first error"):
        execute(run)


def test_a_folder_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """Power loss: everything inside must be on the disk when the name is."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (done.append(os.readlink(f"/proc/self/fd/{h}")), fsync(h))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", str(b))), replace(a, b))[1])
    source, target = tmp_path / ".new", tmp_path / "kept"
    (source / "deep").mkdir(parents=True)
    for path in (source / "a", source / "deep" / "b"):
        path.write_text("x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").write_text("y")
    move_folder(source, target)
    renamed = done.index(("rename", str(target)))
    assert {str(source / "a"), str(source / "deep" / "b"), str(source), str(source / "deep")} <= set(done[:renamed])
    assert done[-1] == str(tmp_path) and {path.name for path in tmp_path.iterdir()} == {"kept"}
    assert {path.name for path in target.iterdir()} == {"a", "deep"}


def test_a_new_file_is_never_put_over_another(tmp_path):
    write_atomic(tmp_path / "a", "first", replace=False)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "a", "second", replace=False)
    assert (tmp_path / "a").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_every_file_operation_the_runs_end_with_the_same_numbers(tmp_path):
    """Two runs, killed at their first, second, third ... file operation: within claims, checkpoints, weights and records."""
    command = [sys.executable, str(ROOT / "tests" / "faults" / "each_operation.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found["died"], "kills")
    assert found["died"] > 10 and found["same"] and found["runs"] == 2 and found["left"] == []
