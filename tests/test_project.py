"""A project outside this repository: its yamls, its tables and its classes beside ours, its records in its own folder."""

import os
import re
from types import SimpleNamespace

import pytest

from experiments.engine import published, report, sweeps
from experiments.engine.tuning import searches
from tests.conftest import REHEARSAL, ROOT
from vera.commands import rehearse as rehearsal
from vera.config import choices
from vera.config.marks import TABLE as TABLE_OF_FIELDS
from vera.config.memory import _state
from vera.project import code_of
from vera.records.store import Store

METHOD = """\
_target_: own_methods.Doubled
name: doubled
version: 1
targets: [query, value]
rank: 4
alpha: 8
dropout: 0.0
train_head: true
"""
CLASS = '''
from vera.methods.lora import Lora


class Doubled(Lora):
    """LoRA under another name."""
'''
SWEEP = """\
# @package _global_
artefacts: [mine]
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "0,1"}}}
"""
TABLE = """\
table: mine
title: Two methods on the digits
stat: median
models: {digits_vit: Digits ViT}
columns: {digits: {label: Digits, task: digits, metric: accuracy, scale: 100}}
rows:
  - {label: LoRA twice, model: digits_vit, method: doubled, source: ours}
  - {label: VeRA, model: digits_vit, method: vera, variant: {method.rank: 4}, source: ours}
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    for name, text in {
        "conf/method/doubled.yaml": METHOD,
        "own_methods.py": CLASS,
        "conf/sweep/mine.yaml": SWEEP,
        "published/mine.yaml": TABLE,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def command(script, project, tmp_path):
    """A script from a folder that is neither the project nor this repository."""

    def call(name, *arguments, **environment):
        return script(name, *arguments, cwd=tmp_path, environment={**os.environ, **environment})

    return call


@pytest.mark.parametrize("more", ["train: {epochs: 2}\n", None])
def test_a_table_s_sweep_cannot_set_what_its_rows_do_not(more, command, project, cache):
    """Its runs would be done in the plan and a dash in the table, which looks for the rows' own cells."""
    path = project / "conf" / "sweep" / "mine.yaml"
    path.write_text(SWEEP + more if more else SWEEP.replace('seed: "0,1"', 'seed: "0,1", train.epochs: 2'))
    for name, *words in (("train.py", "sweep=mine", *REHEARSAL, f"cache_dir={cache}"), ("plan.py", "mine")):
        done = command(name, "--project", project, *words)
        assert done.returncode and "conf/sweep/mine.yaml: train.epochs would make other runs" in done.stderr, done.stderr
    assert not (project / "results").exists()
    path.write_text(SWEEP + "train: {save: false, micro_batch_size: 8}\n")  # how, not what
    assert command("plan.py", "--project", project, "mine").returncode == 0


def test_train_plan_tables_and_verify_in_a_project(command, project, cache):
    here = ["--project", project]
    plan = command("plan.py", *here, "--commands")
    assert plan.stdout == f"vera --project {project} train sweep=mine\n", plan.stderr
    places = [f"cache_dir={cache}", "results_dir=results", "work_dir=work"]
    trained = command("train.py", *here, "sweep=mine", *REHEARSAL, *places)
    assert trained.returncode == 0, trained.stderr
    records = sorted((project / "results" / "runs").glob("*.json"))
    assert [path.name.split("--")[2] for path in records] == ["doubled", "doubled", "vera", "vera"]
    shown = command("tables.py", "--with", "scale=rehearsal", "--out", "results", "--show", VERA_PROJECT=str(project))
    assert shown.returncode == 0 and "LoRA twice" in shown.stdout and "n=2" in shown.stdout, shown.stderr
    made = {path.stem for path in (project / "results" / "tables").glob("*.md")}
    assert "mine" in made and not any(name.startswith(("table", "figure")) for name in made)
    again = command("verify.py", *here, records[0].relative_to(project), f"cache_dir={cache}")
    assert again.returncode == 0 and "equal: all" in again.stdout, again.stderr


def test_a_class_s_code_is_its_file_s_and_what_that_imports_of_the_project(project, monkeypatch):
    monkeypatch.setenv("VERA_PROJECT", str(project))
    files = {
        "own_methods.py": "from own import parts\nimport torch\n" + CLASS,
        "own/__init__.py": "",
        "own/parts.py": "from .deeper import FACTOR\n",
        "own/deeper.py": "FACTOR = 1\n",
        "unrelated.py": "",
    }
    (project / "own").mkdir()
    for name, text in files.items():
        (project / name).write_text(text)
    before, seen = code_of("own_methods.Doubled"), set()
    for name, text in files.items():
        (project / name).write_text(text + "# changed\n")
        seen.add(code_of("own_methods.Doubled"))
        assert (code_of("own_methods.Doubled") == before) == (name == "unrelated.py"), name
        (project / name).write_text(text)
    assert len(seen) == len(files) and code_of("own_methods.Doubled") == before
    assert code_of("vera.methods.lora.Lora") is None
    (project / "own_methods.py").write_text("not python(")  # who imports it is told
    assert code_of("own_methods.Doubled") not in (None, before)


def test_a_record_knows_its_project_s_code_and_a_run_that_is_done_says_when_that_changed(command, project, cache, monkeypatch):
    words = ["--project", project, "method=doubled", *REHEARSAL, f"cache_dir={cache}", "results_dir=results", "work_dir=work"]
    assert command("train.py", *words).returncode == 0
    monkeypatch.setenv("VERA_PROJECT", str(project))
    (record,) = Store(project / "results").records()
    assert record.provenance.own_code == {"method": code_of("own_methods.Doubled")}
    for changed in (False, True):
        again = command("train.py", *words)
        assert ("already done (by other code of its method: raise `version`" in again.stderr + again.stdout) == changed
        (project / "own_methods.py").write_text(CLASS + "FACTOR = 2\n")


def test_a_yaml_is_called_what_its_file_is_called(command, project, cache):
    (project / "conf" / "method" / "doubled.yaml").write_text(METHOD.replace("name: doubled", "name: twice"))
    done = command("train.py", "--project", project, "method=doubled", *REHEARSAL, f"cache_dir={cache}")
    assert done.returncode and "doubled.yaml: its name is 'twice'; it must be the file's, 'doubled'" in done.stderr
    named = command("train.py", "--project", project, "method=doubled", "method.name=twice", *REHEARSAL, "--cfg=job")
    assert named.returncode == 0, named.stderr


def test_ours_stay_as_they_are(project, monkeypatch):
    before = [sweep.label for sweep in sweeps.sweeps()], published.names(), choices("method")
    monkeypatch.setenv("VERA_PROJECT", str(project))
    assert [sweep.label for sweep in sweeps.sweeps()] == ["mine"]
    assert [sweep.label for sweep in sweeps.sweeps("table2")] == ["glue_base", "glue_large"]  # by name
    assert sweeps.own_sweeps() == []  # the page lists mine once
    assert not [title for title, _ in report.summary({}, project / "results") if "GPU" in title]
    assert published.names() == [*before[1], "mine"] and set(choices("method")) - set(before[2]) == {"doubled"}
    monkeypatch.delenv("VERA_PROJECT")
    assert ([sweep.label for sweep in sweeps.sweeps()], published.names(), choices("method")) == before


@pytest.mark.parametrize(
    ("file", "text", "script_name", "said"),
    [
        ("conf/method/vera.yaml", METHOD, "plan.py", "conf/method has a vera already; give this one a name of its own"),
        ("published/digits.yaml", TABLE, "tables.py", "there is a digits already; give this table a name of its own"),
        ("conf/scale/paper.yaml", "train: {epochs: 3}", "plan.py", "conf/scale has a paper already; give this one a name"),
        ("conf/run.yaml", "[", "train.py", "conf has a run already; give this one a name of its own"),
        ("conf/recipe/lora_digits_vit.yaml", "train: {}", "train.py", "conf/recipe has a lora_digits_vit already"),
        ("conf/method/more.yml", METHOD, "plan.py", "more.yml: only files called .yaml are read; call it more.yaml"),
        ("published/more.yml", TABLE, "tables.py", "more.yml: only files called .yaml are read; call it more.yaml"),
        ("published/mine.yaml", "columns: 1\nrows: 2", "tables.py", "published/mine.yaml"),
        ("published/mine.yaml", TABLE.replace("rows:", "row:"), "tables.py", "published/mine.yaml"),
        ("published/mine.yaml", "[]", "tables.py", "published/mine.yaml: not a mapping"),
    ],
)
def test_a_name_that_is_taken_and_a_wrong_table_are_one_line(file, text, script_name, said, command, project):
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text(text)
    done = command(script_name, "--project", project, *(["--out", "out"] if script_name == "tables.py" else []))
    assert done.returncode in (1, 2) and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_sweep_s_key_that_nothing_reads_is_refused(command, project, cache):
    path = project / "conf" / "sweep" / "mine.yaml"
    path.write_text(SWEEP.replace("artefacts:", "artefact:"))
    for name, *words in (("train.py", "sweep=mine", *REHEARSAL, f"cache_dir={cache}"), ("plan.py", "mine")):
        done = command(name, "--project", project, *words)
        assert done.returncode and "conf/sweep/mine.yaml: nothing reads artefact" in done.stderr, done.stderr
    assert not (project / "results").exists()


def test_sweeps_in_several_folders_are_said_and_their_commands_name_no_other(command, project):
    path = project / "conf" / "sweep" / "mine.yaml"
    path.write_text(SWEEP + "results_dir: results/long\n")
    (project / "conf" / "sweep" / "plain.yaml").write_text(
        SWEEP.replace("artefacts: [mine]\n", "").replace("seed", "method: lora, seed")
    )
    for name, *words in (("plan.py", "--commands"), ("status.py", "--once")):
        done = command(name, "--project", project, *words)
        assert "looked for in results, where their runs do not go: mine (results/long)" in done.stderr, done.stderr
        assert "results_dir" not in done.stdout
    assert not command("plan.py", "--project", project, "mine").stderr


def test_a_sweep_s_yaml_as_the_page_has_it_is_one_and_without_its_mode_is_refused(command, project):
    page = (ROOT / "docs" / "extending.md").read_text()
    (lines,) = re.findall(r"\n    (# @package _global_\n(?:    .*\n)+)", page)
    written = lines.replace("\n    ", "\n")
    path = project / "conf" / "sweep" / "mine.yaml"
    path.write_text(written)
    done = command("status.py", "--project", project, "mine", "--once")
    assert re.search(r"mine +10 +0 ", done.stdout), done.stdout + done.stderr  # two rows, five seeds
    path.write_text(written.partition("hydra:")[0])
    done = command("train.py", "--project", project, "sweep=mine")
    assert done.returncode and "error: conf/sweep/mine.yaml: no hydra.sweeper.params" in done.stderr
    path.write_text(written.replace("mode: MULTIRUN, ", ""))
    for words in (["train.py", "sweep=mine"], ["train.py", "-m", "sweep=mine"], ["status.py", "mine", "--once"]):
        done = command(words[0], "--project", project, *words[1:])
        assert done.returncode and "error: conf/sweep/mine.yaml: hydra.mode is not MULTIRUN" in done.stderr
    done = command("status.py", "--project", project, "glue_base", "--once")
    assert done.returncode == 0 and "note: left out: conf/sweep/mine.yaml: hydra.mode is not" in done.stderr


def test_a_yaml_in_a_linked_folder_is_not_remembered_when_it_has_changed(project, tmp_path, monkeypatch):
    (project / "conf" / "method").rename(tmp_path / "shared")
    (project / "conf" / "method").symlink_to(tmp_path / "shared")
    monkeypatch.setenv("VERA_PROJECT", str(project))
    before = _state()
    with (tmp_path / "shared" / "doubled.yaml").open("a") as file:
        file.write("# more\n")
    assert _state() != before


def test_commands_of_the_repository_say_so_in_a_project(command, project, monkeypatch):
    done = command("check.py", "--project", project)
    assert done.returncode == 1 and "check compares this repository's tracked tables" in done.stderr
    assert rehearsal.answers("instruct") and not rehearsal.answers("demo")
    asked = []
    monkeypatch.setenv("VERA_PROJECT", str(project))
    monkeypatch.setattr("sys.argv", ["rehearse", "--jobs", "1"])
    monkeypatch.setattr(rehearsal, "answers", lambda sweep: False)  # Hydra is of this repository alone here
    monkeypatch.setattr(rehearsal, "rehearse", lambda sweep, *_: asked.append(sweep) or (sweep, 0, 0.0, ""))
    monkeypatch.setattr(rehearsal.subprocess, "run", lambda *_: SimpleNamespace(returncode=0))
    assert rehearsal.main() == 0 and set(asked) == {"mine"}
    monkeypatch.setattr("sys.argv", ["rehearse", "demo", "train.lr=1", "--jobs", "1"])
    asked.clear()
    monkeypatch.setattr(rehearsal, "rehearse", lambda *given: asked.append(given) or ("demo", 0, 0.0, ""))
    assert rehearsal.main() == 0 and [(one[0], one[2], one[4]) for one in asked] == [("demo", False, ["train.lr=1"])]


def test_the_table_of_this_repository_s_classes_is_not_a_project_s(command, project):
    before = TABLE_OF_FIELDS.read_bytes()
    done = command("components.py", "--project", project)
    assert done.returncode == 1 and "those of a project are imported when needed" in done.stderr
    assert TABLE_OF_FIELDS.read_bytes() == before


def test_seeds_of_a_table_are_no_search_s_however_its_sweep_writes_them(project, monkeypatch):
    path = project / "conf" / "sweep" / "mine.yaml"
    path.write_text(SWEEP.replace('"0,1"', '"range(100,103)"'))
    monkeypatch.setenv("VERA_PROJECT", str(project))
    searches._of_sweeps.cache_clear()
    assert {seed for seed, place in searches._of_sweeps().items() if place == "conf/sweep/mine.yaml"} == {100, 101, 102}
    searches._of_sweeps.cache_clear()


def test_a_folder_that_is_not_there_is_one_line(command, tmp_path):
    done = command("plan.py", "--project", tmp_path / "none")
    assert done.returncode == 1 and done.stderr == f"error: --project {tmp_path / 'none'}: there is no such folder\n"
