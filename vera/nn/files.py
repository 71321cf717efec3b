"""Files that are there whole or not at all, and JSON that others wrote."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    sync(path.parent)
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


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class HalfCharacter(ValueError):
    """Half of a surrogate pair, which no text can be written with."""


def read_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text (UTF-8; a byte-order mark is skipped). pairs: what an object becomes (json's object_pairs_hook).

    Raises ValueError for everything that is not JSON, is nested too deeply to be read, or holds half of a surrogate pair,
    which no text can be written with.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=pairs)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError as error:
        raise HalfCharacter(f"half of a surrogate pair: {error.object[error.start]!r}") from None
    return value
