"""SIGTERM and SIGINT: leave at a moment of our choosing where there is one soon, at once elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """The process was asked to leave. `str()` is the line to print, `status` the exit status that shells expect; `again`: it
    was asked a second time, and nothing but leaving is to be done."""

    def __init__(self, signum: int, where: str = "interrupted", again: bool = False):
        super().__init__(signum, where, again)
        self.status, self.again = 128 + signum, again

    def __str__(self) -> str:
        return f"{self.args[1]}; the same command goes on from here"


_asked: int | None = None  # the signal that came; kept, since a library may swallow the exception
_deferred = False


def _on_signal(signum: int, frame: object) -> None:
    global _asked
    first, _asked = _asked is None, signum
    if not (first and _deferred):
        raise Interrupted(signum, again=not first)


@contextmanager
def handled() -> Iterator[None]:
    """Inside, the signals raise Interrupted. Ignored signals (nohup) stay ignored; other threads than the first have none."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    outermost = _on_signal not in before.values()
    for each, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(each, _on_signal)
    try:
        yield
        check()
    finally:
        for each, handler in before.items():
            if handler is not None:
                signal.signal(each, handler)
        if outermost:
            _asked = None


@contextmanager
def deferred(noted: bool = True) -> Iterator[None]:
    """Inside, a first signal is only noted, for code that looks at `requested` often; a second one raises at once."""
    global _deferred
    before, _deferred = _deferred, noted
    try:
        yield
    finally:
        _deferred = before


@contextmanager
def immediate() -> Iterator[None]:
    """Inside `deferred`: a part that takes long. A signal raises, and so does one that came before."""
    with deferred(False):
        check()
        yield


def requested() -> bool:
    """Whether a signal has come."""
    return _asked is not None


def check(where: str = "interrupted") -> None:
    """Raises Interrupted when a signal has come."""
    if _asked is not None:
        raise Interrupted(_asked, where)


def leave(where: str) -> NoReturn:
    """Raises Interrupted, for the signal that came or, where another process of the same run got it, SIGTERM."""
    raise Interrupted(_asked or signal.SIGTERM, where)
