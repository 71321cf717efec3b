"""JSON that others wrote: plain values, or one kind of error."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text (UTF-8; a byte-order mark is skipped).

    Raises ValueError for everything that is not JSON, is nested too deeply to be read, or holds half of a surrogate pair,
    which no text can be written with.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text.removeprefix("\ufeff"))
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair: {error.object[error.start]!r}") from None
    return value
