"""What this library raises on purpose."""

from __future__ import annotations

from collections.abc import Callable


def one_line(error: BaseException, most: int = 200) -> str:
    """What an error of a library says, as `VeraError.shown` and in one line of at most so many characters; its type where it
    says nothing."""
    return VeraError.shown(" ".join(str(error).split()))[:most] or type(error).__name__


class VeraError(Exception):
    """Base of every error raised on purpose: something that the caller can do something about, said in one line.

    shown  what a message becomes when the error is made, for a program that hides secrets in it or cuts it.
    """

    shown: Callable[[str], str] = staticmethod(str)

    def __init__(self, message: object = ""):
        super().__init__(self.shown(str(message)))


class AdapterError(VeraError, ValueError):
    """An adapter that cannot be attached, or a file that does not belong to this model."""
