"""Folders that are made once and kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from vera.io.files import move_folder, remove_temporaries


def make_folder(folder: Path, complete: str, make: Callable[[Path], None]) -> Path:
    """A cached folder, made once: `make` fills a scratch folder that is renamed into place when it is whole.

    Processes that want the same folder wait for the first one. `complete` is a file that a finished folder has. What a killed
    process has left of this folder is removed.
    """
    if not (folder / complete).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not (folder / complete).is_file():
                remove_temporaries(folder.parent, folder.name)
                scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
                try:
                    make(scratch)
                    scratch.chmod(0o755)
                    move_folder(scratch, folder)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    return folder
