"""The scripts, each in a process of its own that need not import torch: a fork of one that has (multiprocessing's fork server).

The process has its own environment, folder, arguments, streams and exit status. What an import itself does, and what a script
imports, is tested with a new interpreter instead.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ["vera.run", "vera.models.text", "vera.nn", "vera.tasks.glue", "datasets", "evaluate", "sklearn.metrics", "pandas"]

STREAMS = ("stdout", "stderr")
_server = multiprocessing.get_context("forkserver")
os.fsync = lambda handle: None  # no test outlasts a power cut, and a disk takes its time


def start() -> None:
    """Start the fork server of this session, which imports from this project's root."""
    from multiprocessing import forkserver

    here, path = os.getcwd(), os.environ.get("PYTHONPATH")
    _server.set_forkserver_preload([*IMPORTED, "tests.forked", "pytest"])
    try:
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
        forkserver.ensure_running()
    finally:
        os.chdir(here)
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


def run(
    script: str, *arguments: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python scripts/SCRIPT ARGUMENTS` in `cwd`, with this process's environment or the one given."""
    with tempfile.TemporaryDirectory() as folder:
        process, command = begin(folder, script, *arguments, cwd=cwd, environment=environment)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in STREAMS)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def begin(
    folder: str | Path, script: str, *arguments: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> tuple[BaseProcess, list[str]]:
    """The process of `run`, started, with its output in files of `folder`; and its command."""
    start()
    command = [str(ROOT / "scripts" / script), *map(str, arguments)]
    environment = dict(os.environ if environment is None else environment)
    streams = [os.path.join(folder, name) for name in STREAMS]
    process = _server.Process(target=_become, args=(command, str(cwd), environment, streams))
    process.start()
    return process, command


def _become(command: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    gc.freeze()  # a collection would write to all of the memory that this process shares with the server
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = command
    sys.path.insert(0, os.path.dirname(command[0]))
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
