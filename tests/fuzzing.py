"""Inputs for the readers: bytes at random, and valid files broken in the ways that files are broken."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from vera.errors import VeraError

TRIED: dict[str, list[int]] = {}  # reader -> [accepted, refused]
SECONDS = 20  # a reader that takes longer hangs

PIECES = [
    *(
        b"\x00",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"\t",
        b",",
        b'"',
        b"'",
        b"\\",
        b"%",
        b"$",
        b"\xff",
    ),
    *(b"\\ud800", b"\xed\xa0\x80", "\u202e".encode(), "\u2028".encode(), b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 5000),
    *(
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"../../x",
        b"/etc/passwd",
        b"{0.__class__}",
        b"a" * 140_000,
    ),
]
ODD = [
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, 10**400, float("nan"), float("inf"), 1e308, "", " ", "x", "\x00", "\ud800"),
    *(
        "../../x",
        "/etc/passwd",
        "a/b",
        "NaN",
        "1e999",
        "${seed}",
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"a": {"b": []}},
    ),
    *([1, "a"], ["\ud800"], {"_target_": "os.system"}, [[[[[[[[[[]]]]]]]]]]),
]


@st.composite
def broken_bytes(draw, valid: list[bytes]) -> bytes:
    """A valid file with one to four changes of its bytes, or no valid file at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "cut", "end", "insert", "repeat", "random"]))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 30))]
        elif kind == "end":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(PIECES))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value inside a JSON value, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def broken_value(draw, valid: list[Any]) -> Any:
    """A valid JSON value in which some values are others, missing, doubled or new."""
    value = copy.deepcopy(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(places(value))))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not path:
            if draw(st.integers(0, 20)) == 0:
                return odd
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace":
            parent[path[-1]] = odd
        elif kind == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "x", "name", "../x", "schema", "\ud800"]))] = odd
        else:
            parent.append(odd)
    return value


def as_json(value: Any, ascii_only: bool = True) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")


def broken_json(valid: list[Any]) -> st.SearchStrategy[bytes]:
    """JSON that holds odd values, and JSON text with broken bytes."""
    return st.one_of(st.builds(as_json, broken_value(valid), st.booleans()), broken_bytes([as_json(value) for value in valid]))


def broken_lines(valid: list[Any]) -> st.SearchStrategy[bytes]:
    """The same for JSON lines."""
    whole = b"\n".join(as_json(value) for value in valid)
    lines = broken_value([valid]).map(
        lambda rows: b"\n".join(as_json(row) for row in (rows if isinstance(rows, list) else [rows]))
    )
    return st.one_of(lines, broken_bytes([whole]))


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside a block that takes longer."""

    def stop(*_):
        raise TimeoutError(f"still reading after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(name: str, read: Callable[[], Any]) -> Any:
    """What the reader gives, or None when it refuses with an error of this project in one line; anything else is a failure."""
    counts = TRIED.setdefault(name, [0, 0])
    try:
        with in_time(SECONDS):
            found = read()
    except VeraError as error:
        assert str(error) and "\n" not in str(error).strip(), str(error)
        assert len(str(error)) < 5000, "an error that prints the whole input"
        counts[1] += 1
        return None
    counts[0] += 1
    return found
