"""`vera NAME` and `python scripts/NAME.py` are the same commands; naming them, and those that report, brings no torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vera import commands
from vera.commands import run
from vera.errors import ConfigError

NAMES = sorted(path.stem for path in Path(commands.__file__).parent.glob("[a-z]*.py"))


@pytest.fixture
def vera(monkeypatch, capsys):
    """The exit status, output and errors of `vera ARGUMENTS`, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vera", *map(str, arguments)])
        try:
            status = commands.main()
        except SystemExit as left:  # argparse's
            status = left.code
        return status, *capsys.readouterr()

    return call


def test_each_command_has_one_script_and_the_scripts_differ_in_their_name_alone():
    found = (ROOT / "scripts").glob("*.py")
    scripts = {path.stem: path.read_text().replace(f"vera {path.stem},", "vera NAME,") for path in found}
    assert sorted(scripts) == NAMES and len(set(scripts.values())) == 1


def test_the_project_declares_the_entry_point():
    assert '[project.scripts]\nvera = "vera.commands:main"\n' in (ROOT / "pyproject.toml").read_text()
    assert callable(commands.main)


def test_the_list_says_what_each_command_does(vera):
    for arguments in ([], ["--help"], ["-h"]):
        status, out, err = vera(*arguments)
        assert status == 0 and not err
        lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()[2:]}
        assert sorted(lines) == NAMES and lines["train"] == "One run, or a sweep of runs, each leaving one record."


def test_a_command_is_called_as_its_script(vera, script, tmp_path):
    arguments = ["table2", "method=vera", "task=rte", "--results", tmp_path, "--commands"]
    status, out, err = vera("plan", *arguments)
    done = script("plan.py", *arguments)
    assert (status, out, err) == (done.returncode, done.stdout, done.stderr) and out.startswith("python scripts/train.py")
    assert vera("score-e2e", "--help")[1].startswith("usage: vera score-e2e ")
    assert script("score_e2e.py", "--help").stdout.startswith("usage: score_e2e.py ")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["plan", "table99"], 1, "error: nothing that has runs is called 'table99'"),
        (["doctor", "table99"], 2, "error: nothing that has runs is called 'table99'"),
        (["verify", "none.json"], 2, "error: none.json"),
        (["score_e2e", "none", "none"], 1, "error: none"),
        (["train", "method=veera"], 2, "error: method=veera"),
    ],
)
def test_a_mistake_is_one_line(arguments, status, said, script, tmp_path):
    name, *more = arguments
    done = script(f"{name}.py", *more, cwd=tmp_path)
    assert done.returncode == status and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *[(f"expressivity --matrices {n}", f"--matrices: '{n}' is no whole number from 2 on") for n in ("0", "1", "-3", "2.5")],
        ("expressivity --starts 0", "--starts: '0' is no whole number from 1 on"),
        ("expressivity --seed -1", "--seed: '-1' is no whole number from 0 on"),
        ("bench h --banks 20,0", "--banks: '0' is no whole number from 1 on"),
        ("bench h --banks x", "--banks: 'x' is no whole number from 1 on"),
        ("table12 --tiny --warmup -1", "--warmup: '-1' is no whole number from 0 on"),
        ("rehearse none --jobs 0", "--jobs: '0' is no whole number from 1 on"),
        ("gpu-proof none --toy --minutes nan", "--minutes nan: it must be positive"),
        ("plan none --tflops inf", "--tflops inf: it must be finite and positive"),
    ],
)
def test_a_number_that_a_command_cannot_go_by_is_a_usage_error(words, said, vera):
    status, _, err = vera(*words.split(), *(["--out", "none"] if words.startswith("expressivity") else []))
    assert status == 2 and err.splitlines()[-1].endswith(said), err


@pytest.mark.parametrize("words", [["plan", "demo", "--results", "none"], ["protocol", "table4"]])
def test_what_stdout_cannot_show_is_no_traceback(words):
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", "import sys; from vera.commands import main; sys.exit(main())", *words]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.isascii() and b"?" in done.stdout, done.stderr


def test_a_home_is_found_behind_an_options_equals_sign(monkeypatch, tmp_path):
    import vera.commands.demo as demo

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(demo, "main", lambda: seen.extend(sys.argv[1:]) or 0)
    seen = []
    words = ["--out=~/x y", "--results=~", "--with=a=~/b", "~task", "task.data_dir=~/data", "--where=a~/b"]
    assert run("demo", words) == 0
    assert seen == [f"--out={tmp_path}/x y", f"--results={tmp_path}", *words[2:]]


def test_an_unknown_command_names_those_there_are(vera):
    status, out, err = vera("tabels")
    assert status == 2 and not out and err.startswith("error: vera tabels: no such command; there are account, analyse, ")


def test_what_a_command_raises_and_what_stays(monkeypatch, capsys):
    import vera.commands.demo as demo

    def left(error):
        def main():
            raise error

        monkeypatch.setattr(demo, "main", main)
        return run("demo", ["x"])

    argv, handler = sys.argv, signal.getsignal(signal.SIGINT)
    assert left(ConfigError("a: b")) == 1 and left(OSError("full")) == 1 and left(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "error: a: b\nerror: full\n"
    with pytest.raises(ZeroDivisionError):  # a fault of ours is no message to the user
        left(ZeroDivisionError())
    assert sys.argv is argv and signal.getsignal(signal.SIGINT) is handler


def test_the_list_and_reporting_bring_no_torch():
    code = (
        "import sys\nfrom vera import commands\n"
        "for words in (['--help'], ['plan', '--help'], ['tables', '--help'], ['paper', '--help'], ['status', '--help']):\n"
        "    sys.argv = ['vera', *words]\n"
        "    try: commands.main()\n"
        "    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, words"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
