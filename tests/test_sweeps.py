"""Every committed sweep composes into runs and rehearses, so that it cannot rot."""

from itertools import product

import pytest
import yaml

from vera.config import CONF_DIR, choices, compose

SWEEPS = choices("sweep")


def runs(params):
    """Every (model, task, method) of a sweep."""
    return list(product(*(str(params[group]).split(",") for group in ("model", "task", "method"))))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_has_a_card_and_five_or_more_seeds_or_says_so(sweep):
    text = (CONF_DIR / "sweep" / f"{sweep}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ") and "#   needs" in text
    params = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    assert {"model", "task", "method", "seed"} <= set(params)
    for model, task, method in runs(params):
        compose([f"model={model}", f"task={task}", f"method={method}"])


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


@pytest.mark.parametrize("sweep", SWEEPS)
def test_rehearsal_of_every_sweep(sweep, train, tmp_path):
    done = train(f"sweep={sweep}", "seed=0", timeout=300)
    assert done.returncode == 0, done.stderr
    params = yaml.safe_load((CONF_DIR / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == len(runs(params))
