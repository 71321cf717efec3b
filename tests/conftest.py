"""Shared by all tests: tiny models, a scratch results folder, the command line, and shared data where it is there."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked

ROOT = forked.ROOT
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job, as which no test is meant
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # the tests need no network
os.environ["WANDB_MODE"] = "offline"


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=0, metavar="N", help="inputs for each reader in tests/test_fuzz.py, at random")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Where several processes will test, the paper's runs are composed before, once for all of them."""
    if session.config.getoption("numprocesses", None):
        from experiments.engine.sweeps import prepare

        prepare()


def pytest_collection_finish(session):
    """What is imported is no garbage: each run looks for some (vera.train.loop), which takes longer than the run otherwise."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """How many inputs the readers were tried with, when that was asked for."""
    from tests.fuzzing import TRIED

    if terminalreporter.config.getoption("--fuzz") and TRIED:
        terminalreporter.section("inputs tried")
        for name, (accepted, refused) in TRIED.items():
            terminalreporter.write_line(f"{name:40}{accepted + refused:9,} tried{accepted:9,} accepted{refused:9,} refused")
        total = [sum(counts) for counts in zip(*TRIED.values(), strict=True)]
        terminalreporter.write_line(f"{'all':40}{sum(total):9,} tried{total[0]:9,} accepted{total[1]:9,} refused")


def trained(model, seed=1):
    """The model with values as training would give them, in whatever trains."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=draw) * 0.5
    return model


def own_methods() -> list[str]:
    """The methods of conf/method whose class is for them; those of AnyPeft are all tried in tests/test_any_peft.py."""
    from vera.config import choices
    from vera.config.components import own_target

    return [name for name in choices("method") if not str(own_target("method", name)).endswith(".AnyPeft")]


REHEARSAL = ["scale=rehearsal", "device=cpu", "progress=false"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One cache folder for the whole session, so that every tiny model is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compose(cache, tmp_path):
    """compose("method=lora", ...) -> RunConfig at rehearsal scale, writing below tmp_path."""
    from vera.config import compose as vera_compose

    def make(*overrides: str, scale: bool = True):
        base = REHEARSAL if scale else ["device=cpu", "progress=false"]
        return vera_compose(
            [*base, f"cache_dir={cache}", f"results_dir={tmp_path / 'results'}", f"work_dir={tmp_path / 'work'}", *overrides]
        )

    return make


@pytest.fixture
def warned(caplog, monkeypatch):
    """warned() -> the warnings so far."""
    monkeypatch.setattr(logging.getLogger("vera"), "propagate", True)  # a command in this process may have turned it off
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def drawn_twice(tmp_path, monkeypatch):
    """drawn_twice(draw, asked) -> a figure's files, the first of which was the same when drawn again; tests/test_experiments.py
    compares all three of one figure."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def make(draw, asked) -> list[Path]:
        first = draw(asked, tmp_path / "first")
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda made, path, **more: path.suffix == ".pdf" and save(made, path, **more))
            again, *_ = draw(asked, tmp_path / "again")
        assert [path.suffix for path in first] == [".pdf", ".png", ".svg"] and first[0].read_bytes() == again.read_bytes()
        return first

    return make


@pytest.fixture(scope="session")
def script():
    """script("plan.py", ...) runs one of scripts/ in a process of its own (tests.forked); returns the finished process."""
    forked.start()
    return forked.run


@pytest.fixture
def train(script, cache, tmp_path):
    """Run scripts/train.py at rehearsal scale in a process of its own, in tmp_path; returns the finished process."""

    def run(*overrides: str, timeout: float = 180, **environment: str) -> subprocess.CompletedProcess:
        flags = [override for override in overrides if override.startswith("-")]  # Hydra wants them first
        overrides = tuple(override for override in overrides if override not in flags)
        if not any(override.startswith("results_dir=") for override in overrides):
            overrides = (f"results_dir={tmp_path / 'results'}", *overrides)
        arguments = [*flags, *REHEARSAL, f"cache_dir={cache}", *overrides]
        environment = {**os.environ, **environment}
        if any(override.startswith("hydra/launcher=") for override in overrides):  # whose workers are not those of a fork
            command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=tmp_path, env=environment)
        return script("train.py", *arguments, cwd=tmp_path, environment=environment, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def shared_e2e() -> Path:
    """The E2E challenge's files and its reference outputs beside the project; tests that read them are skipped elsewhere."""
    folder = ROOT.parent / "shared" / "data" / "e2e"
    if not folder.is_dir():
        pytest.skip("no E2E files beside the project")
    return folder


@pytest.fixture(scope="session")
def shared_glue() -> Path:
    """GLUE's official files beside the project; tests that read them are skipped elsewhere."""
    folder = ROOT.parent / "shared" / "data" / "glue"
    if not folder.is_dir():
        pytest.skip("no GLUE files beside the project")
    return folder
