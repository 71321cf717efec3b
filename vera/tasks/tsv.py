"""GLUE's official TSV files: UTF-8, tab-separated, never quoted. The csv module and pandas lose rows of them in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vera.errors import DataError
from vera.io.rows import positions, read_text


def read_tsv(path: Path, columns: Sequence[str], header: bool) -> Iterator[tuple[str, list[str]]]:
    """("file:line", the named columns) of every row. With no header the columns are positions, such as "3".

    A byte-order mark at the start is passed over (MRPC has one; elsewhere it is a character of its row), and so are blank lines
    at the end. Raises DataError, naming file and line, for a missing file, a column that is missing or there
    twice, a row with another number of fields than the first line, text that is not UTF-8, or a file without rows.
    """
    lines = read_text(path).split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    while lines and lines[-1] == "":
        lines.pop()
    if len(lines) <= header:
        raise DataError(f"{path} is empty: it has no rows")
    first = lines[0].split("\t")
    if header:
        wanted = positions(f"{path}:1", columns, first)
    else:
        wanted = [int(column) for column in columns]
        if len(first) <= max(wanted):
            raise DataError(f"{path}:1 has {len(first)} fields, expected {max(wanted) + 1}")
    for number, line in enumerate(lines[header:], start=1 + header):
        fields = line.split("\t")
        if len(fields) != len(first):
            raise DataError(f"{path}:{number} has {len(fields)} fields, expected {len(first)}")
        yield f"{path}:{number}", [fields[position] for position in wanted]
