"""A project outside this repository: a folder whose conf/, published/ and modules add to what is here."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vera.errors import ConfigError

VARIABLE = "VERA_PROJECT"  # in the environment, so that launchers' workers have it as well


def project() -> Path | None:
    """Its folder; None when this repository is worked in."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def called(command: str) -> str:
    """How a command is called, in what is told to be run: in a project, from any folder."""
    there = project()
    return shlex.join(["vera", "--project", str(there), command]) if there else f"python scripts/{command}.py"


def enter(arguments: Sequence[str]) -> list[str]:
    """Go into the project of `--project DIR` (or VERA_PROJECT), if there is one; the other arguments.

    Raises ConfigError when there is no such folder.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--project", default=os.environ.get(VARIABLE))
    options, others = parser.parse_known_args(arguments)
    if options.project:
        folder = os.path.abspath(options.project)
        if not os.path.isdir(folder):
            raise ConfigError(f"--project {options.project}: there is no such folder")
        os.environ[VARIABLE] = folder
        os.chdir(folder)
        sys.path.append(folder)
    return others
