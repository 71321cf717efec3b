"""A project outside this repository: a folder whose conf/, published/ and modules add to what is here."""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
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


def code_of(target: str) -> str | None:
    """SHA-256, in hex, of the project's files that hold a class (module.Class) and what they import of the project; None where
    the class is not the project's. Nothing is imported: a module of the project counts by its name, also where an installed one
    of that name would be taken."""
    found: dict[str, bytes] = {}
    modules = [target.rpartition(".")[0]]
    while (there := project()) and modules:
        module = modules.pop()
        for stem in (module.replace(".", "/"), module.replace(".", "/") + "/__init__"):
            path = there / f"{stem}.py"
            if module and stem not in found and path.is_file():
                found[stem] = path.read_bytes()
                modules += [".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 1)]
                modules += _imported(found[stem], module if stem.endswith("__init__") else module.rpartition(".")[0])
    if not found:
        return None
    return hashlib.sha256(
        b"".join(f"{stem}\0{len(found[stem])}\0".encode() + found[stem] for stem in sorted(found))
    ).hexdigest()


def _imported(text: bytes, package: str) -> Iterator[str]:
    """What a module of this package may import: every name that may be a module."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):  # who imports it is told
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" if base else alias.name for alias in node.names))


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
