"""Every committed sweep composes into runs and rehearses, so that it cannot rot."""

import pytest
import yaml

from experiments.engine import plan
from vera.config import CONF_DIR, choices, compose
from vera.run import execute

SWEEPS = choices("sweep")


def cells(sweep: str) -> list[plan.Cell]:
    """Every cell of a sweep."""
    return plan.cells(sweep, plan.read_sweep(sweep))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_has_a_card_and_its_cells_compose_to_different_runs(sweep):
    text = (CONF_DIR / "sweep" / f"{sweep}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ") and "#   needs" in text
    assert {"model", "task", "method", "seed"} <= set(yaml.safe_load(text)["hydra"]["sweeper"]["params"])
    found = cells(sweep)
    assert len({cell.run.cell_id for cell in found}) == len(found)


@pytest.mark.parametrize("method", choices("method"))
@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("task", ["sst2", "mrpc", "cola", "qnli", "rte", "stsb"])
def test_every_method_has_settings_for_every_cell_of_table_2(method, size, task):
    compose([f"model=roberta_{size}", f"task={task}", f"method={method}"])


def test_recipes_hold_the_values_of_table_8():
    run = compose(["model=roberta_large", "task=mrpc", "method=vera"])
    assert (run.train.epochs, run.train.lr, run.train.head_lr, run.train.batch_size) == (40, 3e-2, 3e-3, 128)
    assert run.method["rank"] == 256 and run.task["max_length"] == 128 and run.train.warmup_ratio == 0.06
    run = compose(["model=roberta_base", "task=rte", "method=vera"])
    assert (run.train.epochs, run.train.lr, run.train.head_lr, run.train.batch_size) == (160, 4e-3, 1e-2, 64)
    assert run.method["rank"] == 1024 and run.task["max_length"] == 512


def test_an_ablation_shares_its_default_with_the_main_experiment():
    main = compose(["model=roberta_large", "task=rte", "method=vera"]).cell_id
    for sweep in ("table6a", "table6b", "table6c", "table7", "figure2_vera", "figure3"):
        assert main in {cell.run.cell_id for cell in cells(sweep)}, sweep


def test_figure_4_s_baseline_has_vera_s_hyperparameters():
    vera = compose(["model=roberta_large", "task=rte", "method=vera"])
    (cell,) = cells("figure4")
    for key in ("epochs", "batch_size", "head_lr", "schedule", "warmup_ratio"):
        assert getattr(cell.run.train, key) == getattr(vera.train, key), key
    (cell,) = cells("mini_figure4")
    assert cell.run.train.head_lr == compose(["method=vera"]).train.head_lr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps")  # one for all: a cell that several sweeps share is rehearsed once


def covering(sweep: str) -> list[tuple[str, ...]]:
    """Overrides of so few cells that every value of every axis is in one of them."""
    left, chosen = set(), []
    for cell in cells(sweep):
        left |= set(cell.overrides)
    for cell in cells(sweep):
        if left & set(cell.overrides):
            chosen.append(cell.overrides)
            left -= set(cell.overrides)
    return chosen


@pytest.mark.parametrize("sweep", SWEEPS)
def test_rehearsal_of_every_sweep(sweep, folder, cache):
    where = [f"cache_dir={cache}", f"results_dir={folder / 'results'}", f"work_dir={folder / 'work'}"]
    for overrides in covering(sweep):
        run = compose([*overrides, *plan.REHEARSAL, "device=cpu", "progress=false", *where])
        assert execute(run).provenance.model_source == "tiny random"


def test_a_sweep_over_a_method_s_key_runs_from_the_command_line(train, tmp_path):
    done = train("sweep=mini_table6a", "seed=0")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 3
