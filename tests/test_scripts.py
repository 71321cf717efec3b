"""The command line as a person meets it: one clear line for each mistake, sweeps that go on, nothing done twice."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def runs(tmp_path):
    return sorted((tmp_path / "results" / "runs").glob("*.json"))


def test_one_run_leaves_one_record_and_is_not_repeated(train, tmp_path):
    first = train("seed=2")
    assert first.returncode == 0, first.stderr
    (path,) = runs(tmp_path)
    assert path.name.startswith("digits_vit--digits--vera--") and path.name.endswith("--s2.json")
    assert "accuracy" in first.stderr
    text = path.read_text()
    second = train("seed=2")
    assert second.returncode == 0 and "already done" in second.stderr and path.read_text() == text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.rank=abc"], ["method.rank", "integer"]),
        (
            ["model.size=full", "model=roberta_base", "task=rte"],
            ["FacebookAI/roberta-base", "model.path=/path/to/roberta-base"],
        ),
        (["model=minilm", "task=rte", "task.synthetic=false"], ["nyu-mll/glue", "task.data_dir=/path/to/glue"]),
        (["seed"], ["seed"]),
        (["sweep=glue_base", "task.data_dr=/x"], ["task.data_dr", "data_dir"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line_and_leaves_no_record(overrides, words, train, tmp_path):
    """A case for each layer that refuses; the other messages are tested where they are raised."""
    failed = train(*overrides, RANK="8")  # of nobody's launcher
    lines = [line for line in failed.stderr.splitlines() if line.strip()]
    assert failed.returncode != 0 and failed.stdout == ""
    assert len(lines) == 1 and lines[0].startswith("error: "), failed.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert not runs(tmp_path)


def test_a_results_folder_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("")
    failed = train(f"results_dir={tmp_path / 'file'}")
    assert failed.returncode != 0 and "not writable" in failed.stderr and len(failed.stderr.splitlines()) == 1


def test_a_sweep_goes_on_after_a_failure_and_later_runs_only_what_is_missing(train, tmp_path):
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    rows = "index\tsentence1\tsentence2\tlabel\n" + "0\ta dog\ta cat\tentailment\n1\tb\tc\tnot_entailment\n" * 4
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "glue" / "RTE" / name).write_text(rows)
    sweep = ["-m", "model=roberta_base", "task=mrpc,rte", "method=head", "seed=0", "task.synthetic=false"]
    sweep.append(f"task.data_dir={tmp_path / 'glue'}")
    first = train(*sweep)
    assert first.returncode == 1
    assert [path.name.split("--")[1] for path in runs(tmp_path)] == ["rte"]
    (failure,) = (tmp_path / "results" / "failed").glob("*.json")
    written = json.loads(failure.read_text())
    assert written["status"] == "failed" and written["run"]["task"] == "mrpc" and "MRPC" in written["error"]
    assert "Traceback" not in first.stderr

    (tmp_path / "glue" / "MRPC").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "glue" / "MRPC" / name).write_text(
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "1\t1\t2\ta\tb\n0\t1\t2\tc\td\n"
        )
    second = train(*sweep)
    assert second.returncode == 0, second.stderr
    assert len(runs(tmp_path)) == 2 and "already done" in second.stderr
    assert not list((tmp_path / "results" / "failed").iterdir())


def test_a_sweep_file_sweeps_by_itself_and_every_axis_can_be_overridden(train, tmp_path):
    done = train("sweep=demo", "seed=0", "method=head,vera", "method.train_head=true", "model.path=null")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name.split("--")[2] for path in runs(tmp_path)) == ["head", "vera"]


def test_tables_from_records_without_torch(train, tmp_path):
    assert train("sweep=demo", "seed=0,1", "method=vera").returncode == 0
    code = (
        f"import sys, runpy; sys.argv = ['tables.py', 'digits', '--show', '--results', {str(tmp_path / 'results')!r}, "
        f"'--with', 'scale=rehearsal', '--out', {str(tmp_path / 'out')!r}]\n"
        f"try: runpy.run_path({str(ROOT / 'scripts' / 'tables.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "VeRA" in done.stdout and "n=2" in done.stdout
    assert (tmp_path / "out" / "tables" / "digits.tex").is_file()
    assert (tmp_path / "out" / "figures" / "digits.png").is_file()


def test_other_statistics_are_printed_and_overwrite_nothing(script, tmp_path):
    done = script("tables.py", "table2", "--stat", "last", "--results", tmp_path)
    assert done.returncode == 0 and "each run's last epoch" in " ".join(done.stdout.split()), done.stderr
    assert not list(tmp_path.iterdir())
    done = script("tables.py", "table99")
    assert done.returncode == 2 and "no such table: table99; there are" in " ".join(done.stderr.split())


def make(*words):
    """As from a shell, though make may run these tests: a make within a make gets its variables, and says where it enters."""
    ours = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "METHOD", "WORKERS", "ARTEFACT", "ARGS", "NAME", "MODEL", "TASK", "RUN", "FILE")
    shell = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(["make", *words], capture_output=True, text=True, cwd=ROOT, env=shell)


def test_the_makefile_documents_itself_and_deletes_no_results():
    done = make()
    text = (ROOT / "Makefile").read_text()
    assert done.returncode == 0
    for target in ("setup", "demo", "test", "tables", "glue-base", "glue-large"):
        assert f"  {target} " in done.stdout
    assert "rm -" not in text and "git clean" not in text


def test_each_make_target_takes_what_its_recipe_reads():
    text = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^([a-z][a-z0-9-]*):.*\n((?:\t.*\n?)*)", text, re.MULTILINE))
    listed = {
        name: value.split() for name, value in re.findall(r"^(?:TAKE_)?([A-Z]+) := ([a-z0-9 $()SWEPT-]*)$", text, re.MULTILINE)
    }
    deaf, swept = listed.pop("DEAF"), listed.pop("SWEPT")
    listed["ARGS"] = [name for name in recipes if name not in deaf and name != "figures"]  # an alias
    for name, targets in listed.items():
        read_as = [f"$({word})" for word in (name, {"METHOD": "CHOSEN", "WORKERS": "CREW"}.get(name, name))]
        reading = {target for target, recipe in recipes.items() if any(word in recipe for word in read_as)}
        assert reading == {each for word in targets for each in (swept if word == "$(SWEPT)" else [word])}, name
    assert {"ARGS", "METHOD", "MODEL", "TASK", "RUN"} <= listed.keys()
    for words in ("'results_dir=a b'", 'results_dir="a b"', "+results_dir=mine"):  # which nothing could hand on
        refused = make("-n", "demo", f"ARGS={words}")
        assert refused.returncode == 2 and "give results_dir=FOLDER without quotes" in refused.stderr, words
    assert "results_dir=$HOME/x" in make("-n", "demo", "ARGS=results_dir=$$HOME/x").stdout
    there = make("-n", "ablations-mini", "ARGS=results_dir=mine seed=1").stdout.splitlines()
    assert "analyse.py --results mine" in there[-1] and "cells as conf/ has them" in there[-2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lint", "ARGS=x"], "ARGS has no effect on lint; it is for: demo"),
        (
            ["glue-minilm", "METHOD=vera", "TASK=cola"],
            "TASK has no effect on glue-minilm; it is for: tune pareto; elsewhere: ARGS=",
        ),
        (["plan", "tune", "METHOD=vera"], "METHOD has no effect on plan"),
        (["glue-minilm", "SEED=0"], "nothing takes SEED=; keys go into ARGS='SEED=0'"),
        (["glue-minilm", "task=cola"], "ARGS='task=cola'"),
        (["demo", "task.data_dir=/a b/c=d"], "ARGS='task.data_dir=/a b/c=d'"),
        (["SWEPT=lint", "demo"], "nothing takes SWEPT="),
        (["demo", "ARGS=results_dir=$HOME/x"], "ARGS has a $ that make would read: write $$HOME, or ~"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_make_refuses_a_word_that_a_target_does_not_take(words, said):
    done = make("-n", *words)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


def test_a_value_of_make_reaches_the_script_as_one_word():
    given = ["NAME=sick", "FILE=~/my data/train.csv", "TEXT=sentence A,sentence B", "LABEL=don't know (0-5)"]
    line = make("-n", "task", *given).stdout.splitlines()[-1].replace("@", "")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout.splitlines()
    file = os.path.expanduser("~/my data/train.csv")
    assert words[2:] == ["sick", file, "--text", "sentence A,sentence B", "--label", "don't know (0-5)"]
    verify = make("-n", "verify", "RUN=my runs/a.json").stdout.splitlines()[-1]
    assert verify.split("verify.py ")[1].strip() == "'my runs/a.json'"


def test_relative_paths_are_meant_from_where_the_command_was_started(train, tmp_path):
    """Also with hydra.job.chdir, and an empty WORLD_SIZE is none."""
    done = train("-m", "hydra.job.chdir=true", "results_dir=rel", "work_dir=wrk", "method=head", WORLD_SIZE="", RANK="")
    assert done.returncode == 0 and len(list((tmp_path / "rel" / "runs").glob("*.json"))) == 1, done.stderr
    assert "(best, epoch 1)" in done.stderr
