"""What scripts/analyse.py and scripts/expressivity.py have measured, as they left it in <results>/analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments import RESULTS
from vera.errors import RecordError


def read(name: str, results: Path = RESULTS) -> dict[str, Any] | None:
    """One measurement, or None when nobody has made it. Raises RecordError for a file that is no JSON object."""
    path = results / "analysis" / f"{name}.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RecordError(f"{path} holds {type(found).__name__}, not an object")
    return found
