"""Several workers of one command: their lines in one stream, a GPU each, a signal for all, a dead one named."""

import os
import signal
import sys
import threading
import time

import pytest

from tests.conftest import ROOT
from vera.errors import ConfigError
from vera.records import crew

SLEEP = "import time\nwhile True: time.sleep(0.01)"


def run(code, places, during=lambda said: None):
    """The exit status and the lines of workers that run a piece of Python each."""
    said: list[str] = []
    helper = threading.Thread(target=during, args=(said,))
    helper.start()
    status = crew.Crew(said.append).run([sys.executable, "-c", code], places)
    helper.join()
    return status, said


def wait_for(said, count):
    deadline = time.monotonic() + 60
    while len(said) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_each_worker_has_a_gpu_and_all_lines_become_one_stream():
    code = "import os; print(os.environ['VERA_WORKER'], os.environ['CUDA_VISIBLE_DEVICES'])\nraise SystemExit(0)"
    status, said = run(code, ["0", "3", "0"])
    assert status == 0 and sorted(said) == ["1 0", "2 3", "3 0"]


def test_places_are_the_gpus_in_turn():
    assert crew.places("auto", ["0", "1"]) == ["0", "1"] and crew.places("3", ["4", "6"]) == ["4", "6", "4"]
    assert crew.places("auto", []) == [None] and crew.places("2", []) == [None, None]
    assert crew.parted(["sweep=demo", "workers=2", "seed=0"]) == ("2", ["sweep=demo", "seed=0"])
    assert crew.parted(["task.workers=2"]) == (None, ["task.workers=2"])  # another key, of images
    for wrong in ("0", "two", "-1", ""):
        with pytest.raises(ConfigError, match="no number of workers"):
            crew.parted([f"workers={wrong}"])


def test_what_one_worker_has_said_of_a_run_is_not_said_again():
    lines = {
        "1": ["a--s0  accuracy 0.5  2.0 s", "b--s0  accuracy 0.5  already done"],
        "2": ["b--s0: claimed by host pid 1; comes back to it", "b--s0  accuracy 0.5  already done", "warning: x"],
    }
    code = f"import os; print('\\n'.join({lines}[os.environ['VERA_WORKER']]))"
    _, said = run(code, [None, None])
    assert len([line for line in said if line.endswith("already done")]) <= 1  # none where the other's line came first
    assert "a--s0  accuracy 0.5  2.0 s" in said and "warning: x" in said


def test_that_a_run_is_the_other_worker_s_is_not_said():
    code = "import os; print(f'a--s0: claimed by host pid {os.getpid()} since now; comes back to it')"
    assert run(code, [None, None])[1] == []
    code = "print('a--s0: claimed by host pid 1 since now; comes back to it')"
    assert len(run(code, [None])[1]) == 1


def test_a_signal_reaches_every_worker_once():
    code = f"""
import signal, sys
def leave(signum, frame):
    print("left by", signum, flush=True); sys.exit(128 + signum)
signal.signal(signal.SIGINT, leave)
print("here", flush=True)
{SLEEP}"""

    def interrupt(said):
        wait_for(said, 2)
        os.kill(os.getpid(), signal.SIGINT)

    status, said = run(code, [None, None], interrupt)
    assert status == 130 and said.count("left by 2") == 2 and len(said) == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_dead_worker_is_named_and_the_others_end_well():
    code = f"""
import os, time
print(os.environ["VERA_WORKER"], os.getpid(), flush=True)
if os.environ["VERA_WORKER"] == "1":
    {SLEEP.replace(chr(10), chr(10) + "    ")}
time.sleep(0.3)"""

    def kill(said):
        wait_for(said, 2)
        pid = next(int(line.split()[1]) for line in said if line.startswith("1 "))
        os.kill(pid, signal.SIGKILL)

    status, said = run(code, ["5", "6"], kill)
    assert status == 0 and any("worker 1 (GPU 5) was ended by signal 9" in line for line in said)


def test_the_status_is_that_of_a_failure_where_none_ended_well():
    assert run("raise SystemExit(2)", [None, None])[0] == 2
    assert run("import os; raise SystemExit(int(os.environ['VERA_WORKER']) - 1)", [None, None])[0] == 0


def test_a_command_that_uses_one_of_several_gpus_says_so_once(monkeypatch):
    from vera.commands import train

    said = []
    monkeypatch.setattr(train.log, "info", lambda text, *values: said.append(text % values))
    monkeypatch.setattr("vera.train.processes.gpus", lambda: ["0", "1", "2"])
    monkeypatch.setenv(train.MAIN_PROCESS, str(os.getpid()))
    for name in (crew.WORKER, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    train.say_of_other_gpus.cache_clear()
    train.say_of_other_gpus()
    train.say_of_other_gpus()
    assert len(said) == 1 and "has 3 GPUs" in said[0] and "WORKERS=auto" in said[0]
    monkeypatch.setenv(crew.WORKER, "1")
    train.say_of_other_gpus.cache_clear()
    train.say_of_other_gpus()
    assert len(said) == 1
    train.say_of_other_gpus.cache_clear()


def test_workers_and_a_launcher_are_not_both(monkeypatch):
    from vera.commands import train

    monkeypatch.setattr("vera.train.processes.gpus", lambda: ["0", "1"])
    assert train.places_of("auto", ["sweep=demo"]) == ["0", "1"]
    assert train.places_of("auto", ["sweep=demo", "device=cpu"]) == [None]
    with pytest.raises(ConfigError, match="leave one of them out"):
        train.places_of("2", ["hydra/launcher=joblib"])


@pytest.mark.parametrize("name", ["train", "answer"])
def test_workers_start_wherever_the_command_was_started(name, tmp_path, monkeypatch):
    """By absolute paths, since --project changes the folder."""
    from vera import commands
    from vera.commands import train

    (tmp_path / "proj").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERA_PROJECT", "")  # given back afterwards
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.argv", [f"scripts/{name}.py"])
    started = []
    monkeypatch.setattr(crew.Crew, "run", lambda self, command, places: started.append((command, places)) or 0)
    monkeypatch.setattr(train.sweep, "skip", None)
    given = ["--project", "proj", "sweep=demo", "workers=2", "device=cpu"]
    assert commands.run(name, given) == 0
    assert started == [([sys.executable, str(ROOT / "scripts" / f"{name}.py"), "sweep=demo", "device=cpu"], [None, None])]
    assert os.path.isabs(started[0][0][1]) and os.environ["VERA_PROJECT"] == str(tmp_path / "proj")
