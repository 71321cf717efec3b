"""A finished run of a sweep costs neither a composition nor an import of torch."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vera.config import compose
from vera.config import memory as compositions
from vera.runs import sweep


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty memory of compositions, and the list of what is composed anew."""
    made, composed = compositions.Compositions(tmp_path), []

    def counted(overrides):
        composed.append(tuple(overrides))
        return compose(overrides)

    monkeypatch.setattr(compositions, "_compositions", lambda: made)
    monkeypatch.setattr(compositions, "compose", counted)
    return composed


def test_the_seeds_of_a_cell_are_composed_once(memory):
    committed = f"results_dir={ROOT / 'results'}"
    records = [sweep.finished(["method=vera", f"seed={seed}", committed]) for seed in range(5)]
    assert [record.run.seed for record in records] == [0, 1, 2, 3, 4] and len(memory) == 1
    assert sweep.finished(["method=vera", "seed=977", committed]) is None
    assert len(memory) == 1


@pytest.mark.parametrize("overrides", [["method=nosuch"], ["seed=x"], ["nosuch=1"]])
def test_a_job_that_is_wrong_is_left_to_hydra(overrides, memory, tmp_path):
    assert sweep.finished([*overrides, f"results_dir={tmp_path}"]) is None


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
