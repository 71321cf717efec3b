"""Rows of comma- or tab-separated files, checked: every error names file and line."""

from __future__ import annotations

import csv
import io
import logging
import math
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Any

from vera.errors import DataError

log = logging.getLogger(__name__)
csv.field_size_limit(2**31 - 1)  # a long document has more than the module's 131,072 characters


def check_path(path: Path) -> None:
    """Raises DataError for a path that is not UTF-8, which neither Arrow nor a yaml can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r} is not UTF-8; rename it") from None


def spelt(name: str) -> str:
    """A name but for spaces, case, and how its characters are composed (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


def read_text(path: str | Path) -> str:
    """A UTF-8 text, without its byte-order mark if it has one. Raises DataError."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16 (its byte-order mark says so), not UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line} is not UTF-8: byte {data[error.start]:#04x}") from None


def number_of(value: Any) -> float | None:
    """A value of a data file as a number; None for what is none there: nan, infinity, and 1_000, which Python alone takes for
    one."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and not isinstance(value, bool) and "_" not in str(value) else None


_SHORT = Repr()  # of a header that is none, such as a text
_SHORT.maxstring = 60


def positions(where: object, columns: Sequence[str], header: Collection[str]) -> list[int]:
    """Where the columns stand in a header. Raises DataError, which names `where`, for one that it lacks or has twice."""
    names = list(header)
    for column in columns:
        if column not in names:
            raise DataError(f"{where} has no column {column!r}; it has {', '.join(map(_SHORT.repr, names))}")
        if names.count(column) > 1:
            raise DataError(f"{where} has {names.count(column)} columns {column!r}; rename all but the one that is meant")
    return [names.index(column) for column in columns]


def read_csv(
    path: str | Path, columns: Sequence[str], delimiter: str = ",", may_be_empty: Collection[str] = ()
) -> Iterator[tuple[str, list[str]]]:
    """("file:line", the named columns) of every row below the header; a quoted value may hold line breaks.

    Blank lines at the end are passed over. Raises DataError for a file that is missing, empty or not UTF-8, a column that is
    missing or there twice, a row with another number of fields than the header, quotes that do not fit, or an empty value in a
    column that is not in `may_be_empty`. Warns of a value that seems to hold whole rows: what stands after a quote that belongs
    to the text and is not doubled.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = _header(path, reader)
    wanted = positions(f"{path}:1", columns, header)
    found, blank, swallowed = False, None, {}
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where}: {_explained(error)}") from None
        if row is None:
            break
        if not row:  # legal at the end alone
            blank = blank or where
            continue
        if blank is not None:
            raise DataError(f"{blank} is blank, and rows follow")
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} fields, expected {len(header)}")
        values = [row[position] for position in wanted]
        for column, value in zip(columns, values, strict=True):
            if not value.strip() and column not in may_be_empty:
                raise DataError(f"{where}: {column} is empty")
        found = True
        if held := _held(row, delimiter):
            swallowed[where] = held
        yield where, values
    if not found:
        raise DataError(f"{path} has no rows below its header")
    if swallowed:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        known = {(column, value) for row in rows for column, value in enumerate(row) if "\n" not in value}
        places = [where for where, held in swallowed.items() if held & known]
        if places:
            log.warning(
                "%s: a quoted value of several lines seems to hold whole rows (%d such in this file); a quote that belongs to "
                "the text is written twice",
                places[0],
                len(places),
            )


def csv_columns(path: str | Path) -> list[str]:
    """The columns of a comma-separated file. Raises DataError."""
    return _header(path, csv.reader(io.StringIO(read_text(path), newline=""), strict=True))


def _header(path: str | Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}:1: {_explained(error)}") from None
    if header is None:
        raise DataError(f"{path} is empty")
    return header


def _explained(error: csv.Error) -> str:
    of_quotes = "expected after" in str(error) or "end of data" in str(error)
    return f"{error}" + ("; a quote inside a quoted value is written twice" if of_quotes else "")


def _held(row: list[str], delimiter: str) -> set[tuple[int, str]]:
    """(column, value) of the rows that a value of several lines would hold if its opening quote were a part of the text."""
    held = set()
    for position, value in enumerate(row):
        lines = value.split("\n")
        for number, line in enumerate(lines if len(lines) > 1 else ()):
            first, last = number == 0, number == len(lines) - 1
            start, stop = position if first else 0, position + 1 if last else len(row)
            parts = list(enumerate(line.rstrip("\r").split(delimiter), start=start))
            if len(parts) == stop - start:  # and then its own value, which the quotes belong to, is no evidence
                held |= set(parts[first : len(parts) - last])
    return {(column, part) for column, part in held if part.strip()}
