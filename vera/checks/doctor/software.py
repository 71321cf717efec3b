"""Python, packages and Java."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from vera.checks.doctor.lines import NOTE, OK, TODO, UNUSED, Line, full
from vera.config import RunConfig, component
from vera.tasks.e2e import E2E
from vera.tasks.e2e_metrics import NEEDS_JAVA, java_runs

DISTRIBUTION = "vera-experiments"
OLDEST_PYTHON = (3, 10)


def python() -> Line:
    here = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < OLDEST_PYTHON:
        return Line(TODO, "Python", here, "3.10 or newer: make setup PYTHON=python3.11")
    return Line(OK, "Python", here)


def packages(constraints: Path, extras: set[str]) -> list[Line]:
    """Installed against required, and against the set that the tests have passed with."""
    install = "make setup" + "".join(f" && pip install -c constraints.txt -e '.[{extra}]'" for extra in sorted(extras))
    try:
        declared = importlib.metadata.requires(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        declared = None
    if declared is None:  # where its folder is empty, too
        return [Line(TODO, "packages", f"{DISTRIBUTION} is not installed", "make setup")]
    tested = {pin.name.lower().replace("_", "-"): pin for pin in _pins(constraints)}
    lines, others, fine = [], [], 0
    for text in declared:
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        here = _installed(wanted.name)
        if here is None:
            lines.append(Line(TODO, wanted.name, "not installed", install))
            continue
        pin = tested.get(wanted.name.lower().replace("_", "-"))
        if not wanted.specifier.contains(here.public, prereleases=True):
            lines.append(Line(TODO, wanted.name, f"{here}, needs {wanted.specifier}", install))
        elif pin is not None and not pin.specifier.contains(here.public, prereleases=True):
            others.append(f"{wanted.name} {here} (tested {str(pin.specifier).lstrip('=')})")
        else:
            fine += 1
    if others:
        lines.append(
            Line(NOTE, "packages", "not the tested versions: " + ", ".join(others), "make setup installs the tested ones")
        )
    return [*lines, Line(OK, "packages", f"{fine} as in {constraints.name}")] if fine else lines


def _installed(name: str) -> Version | None:
    """A package's version; None also for what a removal has left, which states none."""
    try:
        return Version(str(importlib.metadata.version(name)))
    except (importlib.metadata.PackageNotFoundError, KeyError, InvalidVersion):
        return None


def _pins(constraints: Path) -> list[Requirement]:
    found = []
    for line in constraints.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            pin = Requirement(text) if text else None
        except InvalidRequirement:
            continue
        if pin is not None and (pin.marker is None or pin.marker.evaluate()):
            found.append(pin)
    return found


def extras_of(runs: Sequence[RunConfig], judged: bool) -> set[str]:
    extras = {"e2e"} if any(issubclass(component(run.task, "task"), E2E) for run in runs) else set()
    extras |= {"quantise"} if any(run.model.get("quantisation") == "nf4" for run in runs if full(run)) else set()
    extras |= {"minilm"} if any(run.model.get("package") and not run.model.get("path") for run in runs if full(run)) else set()
    return extras | ({"judge"} if judged else set())


def java(runs: Sequence[RunConfig]) -> Line:
    if not any(issubclass(component(run.task, "task"), E2E) for run in runs):
        return Line(UNUSED, "Java", "only E2E's METEOR, ROUGE-L and CIDEr use it")
    return Line(OK, "Java", "for METEOR, ROUGE-L and CIDEr") if java_runs() else Line(TODO, "Java", "missing", NEEDS_JAVA)
