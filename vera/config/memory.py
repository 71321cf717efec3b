"""Composing thousands of configs is slow in Hydra (some 60 ms each) and nearly always gives the same: remember it on disk.

The memory lies in .cache/compositions/<hash>.json; the hash is over everything in conf/, the code and the versions that compose
it, so a changed yaml is never answered from an old one. What may be another the next time (${oc.env:}, ${now:}) is always
composed. Deleting the folder is safe.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vera import config  # whose functions that compose bring Hydra, which a machine that only measures may lack
from vera.config import CONF_DIR, RunConfig, conf_folders
from vera.config.marks import TABLE
from vera.io.files import files_below, write_atomic

FOLDER = Path(".cache") / "compositions"
CHUNK = 8


class Compositions:
    """Overrides to RunConfig, read from and written to one file a state of conf/."""

    def __init__(self, folder: Path):
        self.path = folder / f"{_state()}.json"
        self.known: dict[str, Any] = self._read()
        self.built: dict[str, RunConfig | None] = {}  # None: composed each time
        self.changed = False

    def get(self, overrides: Sequence[str]) -> RunConfig:
        """As vera.config.compose. Raises ConfigError.

        All seeds of a cell are composed once.
        """
        cell, seed = split_seed(overrides)
        if seed is None or any("$" in override for override in overrides):
            return config.compose(overrides)
        run = self._lasting(cell)
        if run is None:
            return config.compose(overrides)
        return run.with_seed(seed) if len(cell) < len(overrides) else run

    def _lasting(self, cell: tuple[str, ...]) -> RunConfig | None:
        """The run of these overrides (without a seed), or None where it may be another one the next time."""
        key = " ".join(cell)
        if key not in self.built:
            try:
                self.built[key] = RunConfig(**self.known[key])
            except (KeyError, TypeError, ValidationError):  # not known, or not a run
                self._keep(key, *config.compose_lasting(cell))
        return self.built[key]

    def _keep(self, key: str, run: RunConfig, lasting: bool) -> None:
        self.built[key] = run if lasting else None
        if lasting:
            self.known[key] = run.model_dump(mode="json")
            self.changed = True

    def add(self, wanted: Iterable[Sequence[str]]) -> None:
        """Compose what is not known yet, in as many processes as there are cores. Raises ConfigError."""
        new = [overrides for overrides in dict.fromkeys(map(tuple, wanted)) if " ".join(overrides) not in self.known]
        workers = min(os.cpu_count() or 1, len(new) // CHUNK)
        if workers < 2 or sys.platform != "linux":  # forking is cheap there; elsewhere `get` composes one by one
            return
        with ProcessPoolExecutor(workers, get_context("fork")) as pool:
            for overrides, (run, lasting) in zip(new, pool.map(config.compose_lasting, new, chunksize=CHUNK), strict=True):
                self._keep(" ".join(overrides), run, lasting)
        self.save()

    def save(self) -> None:
        """Write what is new; a folder that cannot be written costs time, nothing else."""
        if self.changed:
            try:
                write_atomic(self.path, json.dumps({**self._read(), **self.known}, separators=(",", ":")))
            except OSError:
                return
            self.changed = False

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def split_seed(overrides: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """The overrides of a run's cell, and its seed (0 where none is given); None for a seed that only Hydra can judge."""
    seeds = [override for override in overrides if override.startswith("seed=")]
    text = seeds[-1].removeprefix("seed=") if seeds else "0"
    known = re.fullmatch(r"[0-9]{1,9}", text) and not any(override.startswith(("+seed", "~seed")) for override in overrides)
    return tuple(override for override in overrides if override not in seeds), int(text) if known else None


def composed(overrides: Sequence[str]) -> RunConfig:
    """The run that `python scripts/train.py OVERRIDES` would make, remembered. Raises ConfigError with one line."""
    return _compositions().get(overrides)


def compose_all(wanted: Iterable[Sequence[str]]) -> None:
    """Remember many runs at once, for `composed` to find. Raises ConfigError with one line."""
    _compositions().add(wanted)


@lru_cache(maxsize=1)
def _compositions() -> Compositions:
    made = Compositions(FOLDER)
    atexit.register(made.save)
    return made


def _state() -> str:
    digest = hashlib.sha256("".join(version(package) for package in ("hydra-core", "omegaconf")).encode())
    yamls = [path for folder in conf_folders() for path in sorted(filter(Path.is_file, files_below(folder, ".yaml")))]
    for path in [*sorted(Path(__file__).parent.glob("*.py")), TABLE, *yamls]:
        digest.update(os.path.relpath(path, CONF_DIR).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
