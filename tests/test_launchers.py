"""Sweeps through Hydra's launchers: a line a run, finished runs skipped, failures heard of (more: `make test-launchers`)."""

import importlib.util

import pytest

from scripts.launchers import LAUNCHERS, installed
from tests.conftest import ROOT
from vera.config import compose, explain
from vera.store import Store


@pytest.mark.parametrize("name", ["joblib", "submitit", "ray"])
def test_a_sweep_through_a_launcher(name, train, tmp_path):
    package, extra, _, keys = LAUNCHERS[name]
    if not installed(package):
        pytest.skip(f"no {package}; pip install -c constraints.txt -e '.[{extra}]'")
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    sweep = ["-m", "method=head", "seed=0,1", "train.max_steps=1", f"hydra.sweep.dir={tmp_path / 'hydra'}", *keys]
    first = train(*sweep, "train.head_lr=0.01", **environment)
    assert first.returncode == 0, first.stderr
    assert len(Store(tmp_path / "results").records()) == 2
    lines = [line for line in (first.stdout + first.stderr).splitlines() if "digits_vit--digits--head--" in line]
    assert len(lines) == 2 and all("accuracy" in line for line in lines), first.stderr
    second = train(
        *sweep, "train.head_lr=0.01,1e30", "train.max_steps=2", "train.clip=0", "train.warmup_ratio=0", **environment
    )
    output = second.stdout + second.stderr
    assert second.returncode == 1, output
    assert output.count("already done") == 0 and output.count("error: digits_vit--digits--head") == 2, output
    assert len(list((tmp_path / "results" / "failed").iterdir())) == 2 and "Traceback" not in output
    assert len(Store(tmp_path / "results").records()) == 4
    third = train(*sweep, "train.head_lr=0.01", **environment)
    assert third.returncode == 0 and (third.stdout + third.stderr).count("already done") == 2


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
    assert explain(unknown) == "hydra/launcher=nonesuch: no such choice; allowed: ray, slurm"


def test_the_launchers_yamls_have_the_keys_of_their_plugins():
    """A release that drops a key would only be noticed on a cluster."""
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    for name in ("slurm", "ray"):
        package = LAUNCHERS["submitit" if name == "slurm" else name][0]
        if not installed(package):
            pytest.skip(f"no {package}")
        Plugins.instance()
        config = importlib.import_module(f"{package}.{'config' if name == 'slurm' else '_config'}")
        schema = config.SlurmQueueConf if name == "slurm" else config.RayLauncherConf
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / f"{name}.yaml"))
    assert compose([]).run_name
