"""GLUE's official TSV files: UTF-8, tab-separated, never quoted. The csv module and pandas lose rows of them in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vera.errors import DataError

_WIDE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_tsv(path: Path, columns: Sequence[str], header: bool) -> Iterator[tuple[str, list[str]]]:
    """("file:line", the named columns) of every row. With no header the columns are positions, such as "3".

    One byte-order mark at the start is accepted (MRPC has one). Raises DataError, naming file and line, for a missing file or
    column, a row with another number of fields than the first line, text that is not UTF-8, a byte-order mark elsewhere, or a
    file without rows.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    for mark, encoding in _WIDE_MARKS.items():
        if data.startswith(mark):
            raise DataError(f"{path} is {encoding} (its byte-order mark says so); GLUE's files are UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line} is not UTF-8: byte {data[error.start]:#04x}") from None
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    if len(lines) <= header:
        raise DataError(f"{path} is empty: it has no rows")
    first = lines[0].split("\t")
    if header:
        missing = [column for column in columns if column not in first]
        if missing:
            raise DataError(f"{path}:1 has no column {missing[0]!r}; it has {', '.join(map(repr, first))}")
        positions = [first.index(column) for column in columns]
    else:
        positions = [int(column) for column in columns]
        if len(first) <= max(positions):
            raise DataError(f"{path}:1 has {len(first)} fields, expected {max(positions) + 1}")
    for number, line in enumerate(lines[header:], start=1 + header):
        fields = line.split("\t")
        if len(fields) != len(first):
            raise DataError(f"{path}:{number} has {len(fields)} fields, expected {len(first)}")
        if "\ufeff" in line:
            raise DataError(f"{path}:{number} holds a byte-order mark; were two files joined?")
        yield f"{path}:{number}", [fields[position] for position in positions]
