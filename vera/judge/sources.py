"""Official files that this repository does not copy: read from a folder, or fetched once and checked by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vera.config import Strict
from vera.errors import DataError
from vera.io.files import os_error_as, read_mended_json, write_atomic

TIMEOUT_SECONDS = 20


class PinnedFile(Strict):
    """names: what folders call it, the first that is there is read. url, sha256: the official bytes."""

    names: list[Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]] = Field(min_length=1)
    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Found:
    """The bytes of a file, what to call it in an error, and whether they are the official ones."""

    data: bytes
    where: str
    sha256: str
    official: bool


def in_folder(file: PinnedFile, folder: str | Path) -> Found | None:
    """The file from a folder, or None when it holds none of its names."""
    for name in file.names:
        path = Path(folder) / name
        if path.is_file():
            with os_error_as(DataError, f"{path} cannot be read"):
                data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            return Found(data, str(path), digest, digest == file.sha256)
    return None


def cached(file: PinnedFile, cache_dir: str | Path) -> bool:
    """Whether `fetch` needs no network."""
    return _place(file, cache_dir).is_file() or file.url.startswith("file:")


def _place(file: PinnedFile, cache_dir: str | Path) -> Path:
    return Path(cache_dir) / "official" / f"{file.sha256[:16]}-{file.names[0]}"


def fetch(file: PinnedFile, cache_dir: str | Path) -> Found:
    """The official file, from the cache or its address. Raises DataError when it cannot be had or is another file."""
    path = _place(file, cache_dir)
    if path.is_file():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == file.sha256:
            return Found(data, str(path), file.sha256, True)
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not file.url.startswith("file:"):
        raise DataError(f"{file.url} is not fetched because HF_HUB_OFFLINE=1")
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as answer:
            data = answer.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{file.url} cannot be fetched ({reason})") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise DataError(f"{file.url} is not the expected file: SHA-256 {digest[:16]}, not {file.sha256[:16]}")
    write_atomic(path, data)
    return Found(data, file.url, digest, True)


def json_lines(data: bytes, where: str) -> list[tuple[str, dict[str, Any]]]:
    """(place, object) for each line that is not empty; half of a surrogate pair is read as U+FFFD. Raises DataError naming file
    and line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}") from None
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            value = read_mended_json(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{place}: not a JSON object")
        found.append((place, value))
    return found
