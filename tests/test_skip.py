"""A finished run of a sweep costs neither a composition nor an import of torch."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT
from vera.commands.train import from_conf_alone
from vera.config import compose
from vera.config import memory as compositions
from vera.config.marks import table
from vera.errors import ConfigError
from vera.records import sweep
from vera.records.store import Store


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty memory of compositions, and the list of what is composed anew."""
    made, composed = compositions.Compositions(tmp_path), []

    def counted(whole):
        return lambda overrides: composed.append(tuple(overrides)) or whole(overrides)

    for name in ("compose", "compose_lasting"):
        monkeypatch.setattr(compositions.config, name, counted(getattr(compositions.config, name)))
    monkeypatch.setattr(compositions, "_compositions", lambda: made)
    return composed


def test_the_seeds_of_a_cell_are_composed_once(memory):
    committed = f"results_dir={ROOT / 'results'}"
    records = [sweep.finished(["method=vera", f"seed={seed}", committed]) for seed in range(5)]
    assert [record.run.seed for _, record in records] == [0, 1, 2, 3, 4] and len(memory) == 1
    assert sweep.finished(["method=vera", "seed=977", committed]) is None
    assert len(memory) == 1


def test_the_memory_answers_for_nothing_that_may_change(memory, monkeypatch, tmp_path):
    """What the environment or the clock says is asked each time, also in text that the sweeper has escaped."""
    for out in ("a", "b"):
        monkeypatch.setenv("RANK_OF_MINE", "4" if out == "a" else "8")
        monkeypatch.setenv("OUT_OF_MINE", str(tmp_path / out))
        run = compositions.composed(["method.rank=${oc.env:RANK_OF_MINE}", "results_dir=${oc.env:OUT_OF_MINE}", "seed=3"])
        assert (run.method["rank"], run.results_dir, run.seed) == ({"a": 4, "b": 8}[out], str(tmp_path / out), 3)
    assert len(memory) == 2 and not compositions._compositions().known
    for seed in (0, 7):
        assert compositions.composed(["results_dir=out/${seed}", f"seed={seed}"]).results_dir == f"out/{seed}"


def test_a_folder_that_a_yaml_names_after_the_seed_or_the_clock_is_composed_each_time():
    from vera.config.composing import compose_lasting

    assert compose_lasting(["method=vera"])[1]
    for place in ("out/${seed}", "out/${now:%H}", "${oc.env:HOME}/out"):
        assert not compose_lasting([f"results_dir={place}"])[1]
    assert not compose_lasting(["model=roberta_base", "task=rte", "task.data_dir=/folds/${seed}"])[1]
    assert compose_lasting(["model=gpt2_mini", "task=e2e", "task.data_dir=/e2e"])[1]  # its yaml selects another key's value


def test_what_a_class_of_ones_own_makes_of_a_yaml_is_composed_each_time(memory, monkeypatch):
    """Its fields and marks are in code that the memory does not look at."""
    listed = table()
    monkeypatch.setattr("vera.config.composing.table", lambda: {k: v for k, v in listed.items() if not k.endswith(".Lora")})
    for method, times in (("lora", 3), ("vera", 1)):  # what is not remembered is composed once more, to find that out
        for _ in range(2):
            compositions.composed([f"method={method}", "seed=1"])
        assert memory.count((f"method={method}",)) + memory.count((f"method={method}", "seed=1")) == times


def test_every_seed_of_a_remembered_cell_is_as_hydra_composes_it(memory):
    for seed in (0, 5):
        assert compositions.composed(["method=vera", f"seed={seed}"]) == compose(["method=vera", f"seed={seed}"])
    assert len(memory) == 1


@pytest.mark.parametrize("overrides", [["seed=x"], ["train.lr=abc"]])
def test_a_job_that_is_wrong_is_left_to_its_own_line(overrides, memory, tmp_path):
    assert sweep.finished([*overrides, f"results_dir={tmp_path}"]) is None


@pytest.mark.parametrize("overrides", [["method=nosuch"], ["nosuch=1"]])
def test_the_first_job_that_cannot_be_composed_ends_the_sweep(overrides, memory, monkeypatch):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hydra_plugins.vera_sweeper import VeraSweeper

    sweeper = VeraSweeper(max_batch_size=None)
    sweeper.config = OmegaConf.create()
    monkeypatch.setattr(sweep, "skip", lambda job: sweep.finished(job) is not None)
    with pytest.raises(ConfigError, match="nosuch"):
        sweeper.split_arguments(OverridesParser.create().parse_overrides([*overrides, "seed=0,1,2,3,4"]), None)
    assert len(memory) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config-name=mine", "--config-dir=other"], []),
        (["-cd=other"], []),
        ([], ["hydra.searchpath=[file://other]", "train=mine"]),
    ],
)
def test_yamls_from_elsewhere_are_composed_by_hydra_and_not_remembered(flags, words, train, tmp_path):
    for group in ("recipe", "train"):
        (tmp_path / "other" / group).mkdir(parents=True)
    (tmp_path / "other" / "train" / "mine.yaml").write_text("defaults: [default, _self_]\n")
    (tmp_path / "other" / "mine.yaml").write_text("defaults: [run, _self_]\n")
    (tmp_path / "other" / "recipe" / "ia3_roberta_base.yaml").write_text("# @package _global_\ntrain: {lr: 0.321}\n")
    asked = ["-m", "model=roberta_base", "task=rte", "method=ia3,head", "train.epochs=1"]
    first, again, without = train(*asked, *flags, *words), train(*asked, *flags, *words), train(*asked)
    assert first.returncode == again.returncode == without.returncode == 0, first.stderr + again.stderr + without.stderr
    assert [done.stderr.count("already done") for done in (first, again, without)] == [0, 2, 1]  # the head's recipe is conf/'s
    store = Store(tmp_path / "results")
    rates = [store.find(name).run.config["train"]["lr"] for name in store.names() if "--ia3--" in name]
    assert len(rates) == 2 and 0.321 in rates


@pytest.mark.parametrize("given", ["--config-name=mine", "-cn=mine", "-cp=x", "--config-d=x", "hydra.searchpath=[]"])
def test_an_entry_or_a_folder_of_ones_own_is_known_however_it_is_given(given):
    assert not from_conf_alone(["-m", given, "method=head"]) and from_conf_alone(["-m", "sweep=demo", "hydra/launcher=basic"])


def test_a_sweep_of_finished_runs_starts_no_torch(tmp_path):
    script = (
        "import runpy, sys; sys.argv = ['train.py', '-m', 'method=lora,vera', 'seed=0,1', 'results_dir=results'];"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"try: runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop: print('status', stop.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "status 0 False", done.stderr
    assert done.stderr.count("already done") == 4
