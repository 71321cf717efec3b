"""Output that another program reads, which may stop reading."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CLOSED = 128 + getattr(signal, "SIGPIPE", 13)


class _Read:
    """Standard output; the process ends in silence when nobody reads it any more, wherever it is just writing."""

    def __init__(self, out: Any):
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        return self._or_leave(self._out.write, text)

    def flush(self) -> None:
        self._or_leave(self._out.flush)

    def _or_leave(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())  # for what is still buffered
            raise SystemExit(CLOSED) from None


def ended(main: Callable[[], int]) -> int:
    """The exit status of a script's `main`; in silence, that of SIGPIPE, when nobody reads its output any more (`| head`)."""
    sys.stdout = _Read(sys.stdout)
    try:
        status = main()
        sys.stdout.flush()
        return status
    finally:
        sys.stdout = sys.stdout._out
