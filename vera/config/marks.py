"""Which keys of a configuration do not decide what a run computes. The mark stands on the key's own field:

    workers: Annotated[int | None, Operational] = None

and is known here without importing the class (which brings torch): `components.json` lists the fields of every class that conf/
names, written by scripts/components.py and checked by a test.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

Mark = Literal["setting", "place", "source", "stand-in"]

Operational = Field(json_schema_extra={"operational": "setting"})  # how fast, or what others decide
Place = Field(json_schema_extra={"operational": "place"})  # a path of this machine, which no record shows
Source = Field(json_schema_extra={"operational": "source"})  # one whose files decide the numbers: compared, never hashed
StandIn = Field(json_schema_extra={"operational": "stand-in"})  # counts only for a model of size=tiny

TABLE = Path(__file__).with_name("components.json")
Fields = dict[str, dict[str, Any]]  # a class's fields by name: the JSON schema of each, `required` and `operational` with it


@lru_cache(maxsize=1)
def table() -> dict[str, Fields]:
    """The fields of every class that conf/ names, by its full name."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def marked(fields: Fields) -> dict[str, Mark]:
    """The marked ones among a class's fields."""
    return {name: schema["operational"] for name, schema in fields.items() if "operational" in schema}


@lru_cache(maxsize=256)
def marks(group: str, target: str) -> dict[str, Mark]:
    """The marked keys of one component, as far as they are known without importing it: those of the class, of the class of that
    name where it was once in another module, or else those of every class of the group."""
    known = table()
    name = target.rpartition(".")[2]
    fitting = [target] if target in known else [path for path in known if path.rpartition(".")[2] == name]
    fitting = fitting or [path for path in known if path.startswith(f"vera.{group}s.")]
    return {key: mark for path in fitting for key, mark in marked(known[path]).items()}
