"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: str | os.PathLike, data: bytes | str) -> Path:
    """Write beside the target, sync, rename over it, sync the folder. A crash leaves the old file or the new one.

    Raises OSError, and removes its temporary file, when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def append_line(path: str | os.PathLike, line: str) -> None:
    """Append one line and sync. What a crash left of a last line without its end is cut off first.

    Raises OSError when the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", opener=_no_link) as file:
        size = _whole(file)
        file.truncate(size)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        if size == 0:
            _sync_folder(path.parent)


def _no_link(path: str, flags: int) -> int:
    """Opens a file for appending, but none that a link in its place leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def read_lines(path: str | os.PathLike) -> list[str]:
    """The whole lines of a file that `append_line` writes; [] when there is none."""
    try:
        with open(path, "rb") as file:
            size = _whole(file)
            file.seek(0)
            return file.read(size).decode().splitlines()
    except FileNotFoundError:
        return []


def _whole(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    end = file.seek(0, os.SEEK_END)
    block = 1 << 16
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def move_folder(source: Path, target: Path) -> None:
    """Rename a finished folder into place; an older one of that name is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    os.replace(source, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
