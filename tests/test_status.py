"""`make status`: what is done, running, failed and missing, from names and claims alone."""

import json
import os
import time

from rich.console import Console

from experiments.engine import status, sweeps
from vera.records import workers
from vera.records.workers import FOLDER, acquire

SWEEP = "ablations artefacts=table6a scale=mini"  # three cells, five seeds


def names():
    return sorted(name for cell in sweeps.cells(sweeps.read_sweep("ablations"), SWEEP.split()[1:]) for name in cell.names())


def text_of(state, wanted, results):
    console = Console(width=180, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(status.shown(state, wanted, results))
    return console.export_text()


def sweep_underway(root):
    """Two done, one failed, two running (one of them killed), one tried again after a failure; the names in that order."""
    every = names()
    for folder in ("runs", "failed"):
        (root / folder).mkdir(parents=True)
    for name in every[:2]:
        (root / "runs" / f"{name}.json").write_text("never read")
    for name in (every[2], every[5]):
        (root / "failed" / f"{name}.json").write_text(json.dumps({"error": "the loss is nan at step 7 of 50"}))
    running = acquire(root, every[3], 300)
    running.progress(100, 400)
    time.sleep(0.02)
    running.progress(110, 400)
    running.holder = running.holder.model_copy(update={"seconds_left": 200.0})
    running.beat()
    killed = acquire(root, every[4], 300)
    killed.holder = killed.holder.model_copy(update={"created": 1.0})
    killed.beat()
    acquire(root, every[5], 300)
    return every


def test_states_are_told_apart(tmp_path):
    every = sweep_underway(tmp_path)
    state = status.look(tmp_path)
    assert status.counted(state, set(every)) == [len(every), 2, 3, 1, len(every) - 6]
    assert not status.finished(state, set(every)) and not status.finished(state, set(every[:3]))
    lines = text_of(state, {SWEEP: set(every)}, tmp_path).splitlines()
    (row,) = [line for line in lines if every[3] in line]
    assert f" {os.getpid()} " in row and "110 of 400" in row and "3 min 20 s" in row and "0 s ago" in row
    (row,) = [line for line in lines if every[4] in line]
    assert "killed; whoever comes takes over" in row
    (row,) = [line for line in lines if every[2] in line]
    assert row.startswith("failed: ") and "the loss is nan" in row
    assert not [line for line in lines if line.startswith("failed: ") and every[5] in line]
    (row,) = [line.replace(SWEEP, "").split() for line in lines if SWEEP in line]
    assert row == [str(len(every)), "2", "3", "1", str(len(every) - 6)]


def test_a_silent_worker_is_called_so(tmp_path):
    every = sweep_underway(tmp_path)
    path = tmp_path / FOLDER / f"{every[3]}.1.json"
    os.utime(path, (time.time() - 1000,) * 2)
    text = text_of(status.look(tmp_path), {SWEEP: set(every)}, tmp_path)
    assert "16 min 40 s ago" in text and "silent; whoever comes takes over" in text


def test_age_is_by_the_clock_that_workers_go_by(tmp_path, monkeypatch):
    every = sweep_underway(tmp_path)
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 1000)  # this machine's is wrong
    assert "silent" not in text_of(status.look(tmp_path), {SWEEP: set(every)}, tmp_path)

    def read_only(root):
        raise PermissionError

    monkeypatch.setattr(workers, "server_time", read_only)
    assert "silent" in text_of(status.look(tmp_path), {SWEEP: set(every)}, tmp_path)


def test_a_single_sweep_is_looked_for_where_its_yaml_puts_it(script, tmp_path):
    (cell, *_) = sweeps.cells(sweeps.read_sweep("demo"))
    for folder, names_ in (("demo", cell.names()[:1]), ("elsewhere", cell.names()[:3])):
        (tmp_path / "results" / folder / "runs").mkdir(parents=True)
        for name in names_:
            (tmp_path / "results" / folder / "runs" / f"{name}.json").write_text("never read")
    for more, done in (([], "1"), (["--results", "results/elsewhere"], "3")):
        shown = script("status.py", "demo", *more, cwd=tmp_path).stdout
        assert [line.split()[1:3] for line in shown.splitlines() if " demo " in line] == [["35", done]], shown


def test_a_sweep_is_finished_when_nothing_is_missing_and_nobody_computes(tmp_path):
    every = names()
    assert not status.finished(status.look(tmp_path), set(every))
    (tmp_path / "runs").mkdir()
    for name in every:
        (tmp_path / "runs" / f"{name}.json").write_text("")
    assert status.finished(status.look(tmp_path), set(every))


def test_many_records_cost_no_reading(tmp_path):
    (tmp_path / "runs").mkdir()
    for number in range(1000):
        os.close(os.open(tmp_path / "runs" / f"model--task--method--01234567--s{number}.json", os.O_CREAT))
    assert len(status.look(tmp_path).done) == 1000  # empty files, which none could be read from


def test_the_command_prints_once_where_nobody_watches(script, tmp_path):
    every = sweep_underway(tmp_path)
    done = script("status.py", SWEEP, "--results", tmp_path)
    assert done.returncode == 0 and done.stderr == "" and every[3] in done.stdout
    wrong = script("status.py", "no_such")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: nothing that has runs is called 'no_such'")


def test_durations():
    found = [status.duration(seconds) for seconds in (0.4, 42, 200, 3600 * 5 + 720, 86400 * 2 + 3600 * 3)]
    assert found == ["0 s", "42 s", "3 min 20 s", "5 h 12 min", "2 d 3 h"]
