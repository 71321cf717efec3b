"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from vera.errors import RecordError, VeraError
from vera.nn.files import HalfCharacter, link_new, read_json, sync, write_atomic

__all__ = [
    "append_line",
    "files_below",
    "link_new",
    "locked",
    "move_folder",
    "read_json",
    "read_lines",
    "remove_temporaries",
    "write_atomic",
]


def files_below(root: Path, *suffixes: str) -> Iterator[Path]:
    """The files below a folder (of some suffixes), and links to none, whose readers say so; in linked folders as well, but for
    links to a folder that they lie in."""
    real_root = os.path.realpath(root)
    above = {str(root): (real_root, *map(str, Path(real_root).parents))}  # by folder where it and those around it really are
    for folder, inside, names in os.walk(root, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in inside}
        inside[:] = [name for name in inside if real[name] not in above[folder]]
        above |= {os.path.join(folder, name): (*above[folder], real[name]) for name in inside}
        found = (Path(folder, name) for name in names)
        found = (file for file in found if not suffixes or file.suffix in suffixes)
        yield from (file for file in found if file.is_file() or file.is_symlink())


def mended(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, so that it can be written; two halves that belong together are
    one character again."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_mended_json(text: str) -> Any:
    """`read_json`, with its texts mended. Raises ValueError for the rest."""
    try:
        return read_json(text)
    except HalfCharacter:
        return json.loads(mended(json.dumps(json.loads(text.removeprefix("\ufeff")), ensure_ascii=False)))


@contextmanager
def os_error_as(error: type[VeraError], what: str) -> Iterator[None]:
    """Raises `error`, which says `what` and the system's reason, for an OSError within."""
    try:
        yield
    except OSError as reason:
        raise error(f"{what}: {reason.strerror or reason}") from None


@contextmanager
def locked(folder: Path, name: str, taken: VeraError) -> Iterator[None]:
    """Hold `.<name>.lock` of a folder, which is made. Raises `taken` when another process holds it, and RecordError when the
    folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise taken from None
    except OSError as error:
        raise RecordError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def remove_temporaries(folder: str | os.PathLike, name: str = "") -> None:
    """Remove what a killed process has left in a folder: files and folders that begin with `.<name>.` (without a name: with
    a dot). For whoever alone may write them."""
    start = f".{name}." if name else "."
    try:
        found = [entry.path for entry in os.scandir(os.fspath(folder)) if entry.name.startswith(start)]
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
            sync(path.parent)


def _no_link(path: str, flags: int) -> int:
    """Opens a file for appending, but none that a link in its place leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def read_lines(path: str | os.PathLike) -> list[str]:
    """The whole lines of a file that `append_line` writes; [] when there is none. A line ends with a line feed and with nothing
    else: texts may hold other separators, such as U+2028. Raises RecordError for what is not UTF-8."""
    try:
        with open(path, "rb") as file:
            size = _whole(file)
            file.seek(0)
            return file.read(size).decode().split("\n")[:-1]
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 at byte {error.start}") from None


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
            sync(Path(folder) / name)
        sync(Path(folder))
    old = source.with_name(source.name + ".old")
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
