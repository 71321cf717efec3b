"""Sweeps through Hydra's launchers: a line a run, finished runs skipped, failures heard of (more: `make test-launchers`)."""

import importlib

import pytest

from tests.conftest import ROOT
from tests.system.launchers import LAUNCHERS, installed
from vera.config import explain
from vera.records.store import Store
from vera.run import execute


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit", "ray"])
def test_a_sweep_through_a_launcher(name, train, compose, tmp_path):
    package, extra, _, keys = LAUNCHERS[name]
    if not installed(package):
        pytest.skip(f"no {package}; pip install -c constraints.txt -e '.[{extra}]'")
    same = ["method=lora", "train.max_steps=6"]
    execute(compose(*same, "method.targets=[query]"))
    sweep = ["-m", *same, "method.targets=[query],[value],[nowhere]", f"work_dir={tmp_path / 'work'}", *keys]
    done = train(*sweep, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), RAY_ADDRESS="")
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    lines = [line for line in output.splitlines() if "digits_vit--digits--lora--" in line]
    words = [next(word for word in ("already done", "error: ", "accuracy") if word in line) for line in lines]
    assert sorted(words) == ["accuracy", "already done", "error: "] and "Traceback" not in output, output
    assert len(Store(tmp_path / "results").records()) == 2
    assert len(list((tmp_path / "results" / "failed").iterdir())) == 1


@pytest.mark.parametrize(("name", "extra"), [("slurm", "slurm"), ("ray", "ray")])
def test_a_launcher_that_is_not_there_says_how_to_install_it(name, extra, train):
    if installed(LAUNCHERS["submitit" if name == "slurm" else name][0]):
        pytest.skip(f"{name} is installed")
    done = train("-m", "seed=0,1", f"hydra/launcher={name}")
    assert done.returncode == 2 and f"'.[{extra}]'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_hydra_says_of_a_launcher_becomes_one_line():
    missing = Exception("In 'hydra/config': Could not find 'hydra/launcher/submitit_local'\n\nAvailable options")
    assert explain(missing).endswith("'.[slurm]'")
    unknown = Exception("In 'hydra/config': Could not find 'hydra/launcher/nonesuch'\n\nAvailable options")
    expected = "no such choice; allowed: ray, slurm, and those of installed plugins such as joblib"
    assert explain(unknown) == f"hydra/launcher=nonesuch: {expected}"


def test_slurm_where_there_is_none_is_refused_where_something_is_submitted(train, tmp_path):
    if not installed(LAUNCHERS["submitit"][0]):
        pytest.skip("no hydra_submitit_launcher; pip install -c constraints.txt -e '.[slurm]'")
    shown = train("hydra/launcher=slurm", "--cfg=job", PATH="")
    assert shown.returncode == 0 and "seed: 0" in shown.stdout
    done = train("-m", "hydra/launcher=slurm", "seed=0,1", PATH="")
    assert done.returncode == 2
    line = "error: hydra/launcher=slurm: no SLURM here, srun is not found; workers=2 starts two on this machine"
    assert line in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_the_launchers_yamls_have_the_keys_of_their_plugins(name):
    """A release that drops a key would only be noticed on a cluster."""
    from omegaconf import OmegaConf

    package, extra, _, _ = LAUNCHERS["submitit" if name == "slurm" else name]
    if not installed(package):
        pytest.skip(f"no {package}; pip install -c constraints.txt -e '.[{extra}]'")
    config = importlib.import_module(f"{package}.{'config' if name == 'slurm' else '_config'}")
    schema = config.SlurmQueueConf if name == "slurm" else config.RayLauncherConf
    written = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / f"{name}.yaml")
    assert OmegaConf.merge(OmegaConf.structured(schema), written)._target_ == written._target_
