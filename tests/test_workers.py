"""Several workers on one results folder: a run is claimed once, a dead or silent worker's run is taken over."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import psutil
import pytest

from tests import forked
from tests.conftest import REHEARSAL
from vera.errors import Claimed, ClaimLost, ConfigError, RecordError
from vera.records import workers
from vera.records.store import Store
from vera.records.workers import Claim, acquire, held, remains
from vera.run import execute

NAME = "model--task--method--0123abcd--s1"


def silent(root, seconds, name=NAME, generation=1):
    """Make a claim look as if its last sign of life was so long ago, by the file server's clock."""
    path = root / workers.FOLDER / f"{name}.{generation}.json"
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def as_of_another_machine(claim):
    claim.holder = claim.holder.model_copy(update={"machine": "elsewhere", "host": "node7"})
    claim.beat()


def test_a_run_is_claimed_once_and_released(tmp_path):
    claim = acquire(tmp_path, NAME, 300)
    with pytest.raises(Claimed, match=f"claimed by .* pid {os.getpid()} since 20"):
        acquire(tmp_path, NAME, 300)
    assert acquire(tmp_path, NAME + "0", 300).generation == 1  # a name that begins alike is another run
    claim.release()
    assert remains(tmp_path, NAME + "0") and not remains(tmp_path, NAME)
    assert acquire(tmp_path, NAME, 300).generation == 1


def test_a_neighbours_end_does_not_take_the_clock_away(tmp_path, monkeypatch):
    """A worker asks the file server's time while the holder of the run leaves and tidies up."""
    holder = acquire(tmp_path, NAME, 300)
    found = held(tmp_path, NAME)
    whole = os.fsync

    def leaving(handle):
        holder.release()
        whole(handle)

    monkeypatch.setattr(os, "fsync", leaving)
    monkeypatch.setattr(workers, "_clocks", {})
    assert not workers.stale(tmp_path, found, 300) and not remains(tmp_path, NAME)
    monkeypatch.undo()
    left = tmp_path / workers.FOLDER / f"{workers.PROBE}left.tmp"
    left.touch()
    os.utime(left, (1, 1))
    workers._clocks.clear()
    workers.stale(tmp_path, found, 300)
    assert list((tmp_path / workers.FOLDER).iterdir()) == []


def test_a_claim_below_one_that_is_there_is_taken_back(tmp_path):
    assert Claim(tmp_path, NAME, 2, 300).create() and not Claim(tmp_path, NAME, 1, 300).create()
    assert [path.name for path in (tmp_path / workers.FOLDER).iterdir()] == [f"{NAME}.2.json"]


def test_a_claim_whose_content_is_tidied_away_leaves_no_name(tmp_path, monkeypatch):
    """Where there are no hard links, the name comes first."""
    claim = Claim(tmp_path, NAME, 1, 300)
    monkeypatch.setattr(workers, "link_new", lambda temporary, path: temporary.unlink() or False)
    assert not claim.create() and list((tmp_path / workers.FOLDER).iterdir()) == []


@pytest.mark.parametrize(("value", "count"), [(None, 1), ("", 1), (" ", 1), ("1", 1), ("2", 2)])
def test_a_launchers_variable_that_is_empty_counts_as_unset(value, count, monkeypatch):
    for name in workers.LAUNCHER:
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert workers.launched() == count
    assert ("RANK" in os.environ) == (count > 1 or value == "1")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE=two in the environment is no number of processes"):
        workers.launched()


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="to see a process end without waiting for it takes waitid")
@pytest.mark.parametrize("waited_for", [True, False])
def test_the_claim_of_a_process_that_is_gone_is_taken_over_at_once(waited_for, tmp_path):
    """Also while it is a zombie, since its parent has not asked how it ended."""
    holder = multiprocessing.get_context("fork").Process(target=acquire, args=(tmp_path, NAME, 9e9))
    holder.start()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    if waited_for:
        holder.join()
    assert psutil.pid_exists(holder.pid) != waited_for and held(tmp_path, NAME).dead
    claim = acquire(tmp_path, NAME, 9e9)
    assert claim.generation == 2
    claim.release()
    assert list((tmp_path / workers.FOLDER).iterdir()) == []
    holder.join()


def test_a_pid_that_another_process_has_now_counts_as_gone(tmp_path):
    claim = acquire(tmp_path, NAME, 300)
    claim.holder = claim.holder.model_copy(update={"created": claim.holder.created - 100})
    claim.beat()
    assert held(tmp_path, NAME).dead


def test_on_another_machine_only_silence_counts_and_the_file_server_s_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's own clock says nothing
    as_of_another_machine(acquire(tmp_path, NAME, 300))
    with pytest.raises(Claimed, match="claimed by node7"):
        acquire(tmp_path, NAME, 300)
    silent(tmp_path, 100)
    with pytest.raises(Claimed):
        acquire(tmp_path, NAME, 1)  # what counts is the timeout that the holder has promised
    silent(tmp_path, 190)
    with pytest.raises(Claimed):
        acquire(tmp_path, NAME, 300)
    silent(tmp_path, 20)
    assert acquire(tmp_path, NAME, 300).generation == 2


def test_a_file_that_is_no_claim_is_waited_for_and_then_replaced(tmp_path):
    (tmp_path / workers.FOLDER).mkdir()
    (tmp_path / workers.FOLDER / f"{NAME}.3.json").write_text("")
    with pytest.raises(Claimed, match="somebody unknown"):
        acquire(tmp_path, NAME, 60)
    silent(tmp_path, 61, generation=3)
    assert acquire(tmp_path, NAME, 60).generation == 4


def test_a_worker_that_was_suspended_has_lost_the_run(tmp_path):
    suspended = acquire(tmp_path, NAME, 60)
    as_of_another_machine(suspended)
    silent(tmp_path, 61)
    winner = acquire(tmp_path, NAME, 60)
    with pytest.raises(ClaimLost, match=f"taken over by .* pid {os.getpid()}"):
        suspended.check()
    with pytest.raises(ClaimLost):
        suspended.progress(1, 2)
    suspended.release()  # removes nothing of the winner's
    winner.check()
    winner.release()
    acquire(tmp_path, NAME, 60)  # generation 1 again, but not the suspended worker's
    suspended.lost = False  # as for one that wakes up only now
    with pytest.raises(ClaimLost):
        suspended.check()


def test_signs_of_life_come_by_themselves_and_tell_the_progress(tmp_path):
    with acquire(tmp_path, NAME, 1.0) as claim:
        claim.progress(0, 40)
        first = held(tmp_path, NAME).beat
        time.sleep(0.05)
        claim.progress(10, 40)
        deadline = time.monotonic() + 10
        while held(tmp_path, NAME).holder.step != 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        found = held(tmp_path, NAME)
        assert (found.holder.step, found.holder.total) == (10, 40) and found.holder.seconds_left > 0.1
        assert found.beat > first
    assert not remains(tmp_path, NAME)


def test_signs_of_life_continue_on_a_full_disk(tmp_path, monkeypatch):
    claim = acquire(tmp_path, NAME, 300)
    silent(tmp_path, 100)
    before = held(tmp_path, NAME)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    claim.beat()
    assert held(tmp_path, NAME).beat > before.beat + 90
    assert len(list((tmp_path / workers.FOLDER).iterdir())) == 1


def _race(root, start, won):
    start.wait()
    try:
        won.put(acquire(root, NAME, 60).generation)
    except Claimed:
        won.put(None)
    start.wait()  # the winner lives until all have tried


@pytest.mark.parametrize("after_a_dead_one", [False, True])
def test_of_many_takers_one_wins(tmp_path, after_a_dead_one):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        root = tmp_path / str(attempt)
        if after_a_dead_one:
            as_of_another_machine(acquire(root, NAME, 60))
            silent(root, 61)
        start, won = context.Barrier(6), context.Queue()
        takers = [context.Process(target=_race, args=(root, start, won)) for _ in range(6)]
        for taker in takers:
            taker.start()
        results = [won.get(timeout=60) for _ in takers]
        for taker in takers:
            taker.join()
        assert sorted(results, key=str) == [1 + after_a_dead_one] + [None] * 5


def test_where_there_are_no_hard_links_one_wins_too(tmp_path, monkeypatch):
    def none(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    claim = acquire(tmp_path, NAME, 300)
    with pytest.raises(Claimed):
        acquire(tmp_path, NAME, 300)
    rival = Claim(tmp_path, NAME, 1, 300)
    assert not rival.create()
    claim.check()
    claim.release()
    assert not remains(tmp_path, NAME)


def test_a_results_folder_without_write_access_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"results_dir=.*file is not writable"):
        acquire(tmp_path / "file", NAME, 300)


def test_a_run_of_another_worker_is_left_alone(compose):
    run = compose()
    claim = acquire(Path(run.results_dir), run.run_name, 300)
    with pytest.raises(Claimed):
        execute(run)
    assert not Path(run.work_dir).exists() and not Store(run.results_dir).failed.exists()
    claim.release()
    assert execute(run).status == "done"


def test_a_worker_that_loses_its_run_on_the_way_writes_nothing_more(compose, monkeypatch):
    run = compose("train.epochs=9", "train.batch_size=5", "train.max_steps=20", "train.checkpoint_seconds=0", "train.save=true")
    root, steps = Path(run.results_dir), []
    progress = Claim.progress

    def taken_over(claim, step, total):
        steps.append(step)
        if step == 12:
            with monkeypatch.context() as patch:
                patch.setattr(workers.Held, "dead", True)
                acquire(root, run.run_name, 300)
            before.update(contents(Path(run.work_dir)))
        progress(claim, step, total)

    before = {}
    monkeypatch.setattr(Claim, "progress", taken_over)
    with pytest.raises(ClaimLost, match="taken over by"):
        execute(run)
    assert before and contents(Path(run.work_dir)) == before
    assert Store(root).records() == [] and not (root / "failed").exists()
    assert held(root, run.run_name).generation == 2


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_record_is_never_overwritten(compose):
    run = compose()
    record, store = execute(run), Store(run.results_dir)
    before = store.path(record.name).stat()
    with pytest.raises(RecordError, match="never overwritten"):
        store.write(record)
    assert store.path(record.name).stat().st_mtime_ns == before.st_mtime_ns


def test_what_killed_workers_left_of_a_run_is_removed_and_nothing_of_others(compose):
    run = compose()
    root, work, name = Path(run.results_dir), Path(run.work_dir) / run.run_name, run.run_name
    other = name.replace("--s0", "--s01")
    claim = acquire(root, name, 300)
    as_of_another_machine(claim)
    silent(root, 301, name)
    mine = [root / part / f".{name}.json.x.tmp" for part in ("runs", "failed", "claims")]
    mine += [root / "outputs" / f".{name}.txt.x.tmp", work / ".state.safetensors.x.tmp", work / ".best-x" / "file"]
    theirs = [root / part / f".{other}.json.x.tmp" for part in ("runs", "failed", "claims")]
    theirs += [Path(run.work_dir) / other / ".state.safetensors.x.tmp"]
    for path in mine + theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    execute(run)
    assert not any(path.exists() for path in mine) and all(path.exists() for path in theirs)
    assert not remains(root, name) and not (work / ".best-x").exists()


def test_what_is_left_of_a_finished_run_is_removed_by_the_next_start(compose):
    """Killed between writing the record and leaving."""
    run = compose()
    record = execute(run)
    root, state = Path(run.results_dir), Path(run.work_dir) / run.run_name / "state.safetensors"
    silent_claim = acquire(root, run.run_name, 300)
    as_of_another_machine(silent_claim)
    state.write_bytes(b"")
    assert execute(run) == record and state.exists()  # its worker may still be there
    silent(root, 301, run.run_name)
    assert execute(run) == record
    assert not state.exists() and not remains(root, run.run_name)


def test_a_sweep_comes_back_to_the_runs_of_another_worker(cache, tmp_path):
    """One is finished elsewhere meanwhile, the other one's worker dies."""
    from vera.config import compose

    where = [f"cache_dir={cache}", f"results_dir={tmp_path / 'results'}", f"work_dir={tmp_path / 'work'}"]
    runs = [compose([*REHEARSAL, *where, f"seed={seed}"]) for seed in range(3)]
    root = tmp_path / "results"
    taken = [acquire(root, run.run_name, 300) for run in runs[:2]]
    as_of_another_machine(taken[1])
    sweep, _ = forked.begin(tmp_path, "train.py", "-m", *REHEARSAL, *where, "seed=0,1,2", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not Store(root).path(runs[2].run_name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sweep.is_alive() and len(Store(root).records()) == 1
    taken[0].release()
    execute(runs[0])
    silent(root, 301, runs[1].run_name)
    sweep.join(120)
    assert sweep.exitcode == 0
    text = (tmp_path / "stderr").read_text()
    assert f"{runs[0].run_name}: claimed by " in text and f"pid {os.getpid()}" in text and text.count("comes back to it") == 2
    assert len(Store(root).records()) == 3 and list((root / "claims").iterdir()) == []
    assert json.loads(Store(root).path(runs[1].run_name).read_text())["status"] == "done"


def test_a_worker_killed_at_a_look_at_the_clock_leaves_no_file(tmp_path, monkeypatch):
    folder, seen = tmp_path / workers.FOLDER, []
    folder.mkdir()
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.listdir(folder)))
    assert workers.server_time(tmp_path) == pytest.approx(time.time(), abs=60) and seen == [[]]
