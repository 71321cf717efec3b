"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_atomic(path: str | os.PathLike, data: bytes | str, replace: bool = True) -> Path:
    """Write beside the target, sync, rename over it, sync the folder. A crash leaves the old file or the new one.

    With replace=False an existing file stays as it is, and FileExistsError is raised. Raises OSError, and removes its
    temporary file, when the folder cannot be written or the disk is full. The temporary file is called `.<name>.<random>.tmp`.
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
        if replace:
            os.replace(temporary, path)
        elif link_new(temporary, path):
            os.unlink(temporary)
        elif path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        else:
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return path


def link_new(temporary: str | os.PathLike, path: str | os.PathLike) -> bool:
    """Give a finished file a second name that nobody has: of several processes one succeeds, on network file systems as well.

    False where the file system knows no hard links. Raises FileExistsError when the name is taken, OSError otherwise.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        if os.stat(temporary).st_nlink < 2:  # NFS may send a link again that has succeeded
            raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    return True


def remove_temporaries(folder: str | os.PathLike, name: str = "") -> None:
    """Remove what a killed process has left in a folder: files and folders that begin with `.<name>.` (without a name: with
    a dot). For whoever alone may write them."""
    start = f".{name}." if name else "."
    try:
        found = [entry.path for entry in os.scandir(folder) if entry.name.startswith(start)]
    except FileNotFoundError:
        return
    for path in found:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            Path(path).unlink(missing_ok=True)


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
            _sync(path.parent)


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
    """Sync a finished folder and all in it, and rename it into place; an older one of that name is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder, _, files in os.walk(source):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    old = source.with_name(source.name + ".old")
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
