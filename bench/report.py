"""A machine's file of results/bench: what is measured now beside what is there, written after each part so that all is kept."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import NeedsMore
from bench.measure import accumulated, code, machine, now
from vera.io.files import write_atomic


class Report:
    """What the file holds. A row that was measured with other versions than the file's `machine` has a `machine` of its own.

    folder: None writes nothing.
    """

    def __init__(self, device: str, folder: Path | None):
        self.device, self.machine = device, machine(device)
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.machine['device']} {self.machine['threads']} threads".lower()).strip("-")
        self.path = None if folder is None else folder / f"{name}.json"
        self.content: dict[str, Any] = {"machine": self.machine, "cases": [], "left_out": []}
        if self.path is not None and self.path.exists():
            self.content |= json.loads(self.path.read_text(encoding="utf-8"))

    def part(self, name: str, measure: Callable[[], None]) -> None:
        """Measure one part, or tell what it needs that is not here."""
        try:
            measure()
        except NeedsMore as error:
            self.lacks(name, str(error))
        else:
            self.left_out(name)
            self.write()

    def lacks(self, name: str, why: str) -> None:
        """A part that is not measured now: what was measured of it before stays."""
        if any(row["case"] == name for row in self.content["cases"]) or name in self.content.get("proof", {}):
            print(f"({name}) not measured again, needs {why}", file=sys.stderr, flush=True)
        else:
            self.left_out(name, why)
        self.write()

    def left_out(self, name: str, why: str | None = None) -> None:
        """Note why a part is left out, or (None) that it is not."""
        self.content["left_out"] = [entry for entry in self.content["left_out"] if entry["case"] != name]
        if why is not None:
            print(f"({name}) not measured, needs {why}", file=sys.stderr, flush=True)
            self.content["left_out"].append({"case": name, "why": why})

    def rows(self, case: str, found: list[dict[str, Any]]) -> None:
        """New rows of a case in the place of the old, which they count with where they are of the same code."""
        before = [row for row in self.content["cases"] if row["case"] == case]
        rest = [row for row in self.content["cases"] if row["case"] != case]
        if not rest and not self.content.get("proof"):
            self.content["machine"] = self.machine
        made = [{**row, **self.unlike()} for row in accumulated(before, found, now(), code(case))]
        self.content["cases"] = sorted([*rest, *made], key=lambda row: row["case"])
        for row in made:
            goal = "" if row["goal"] is None else f"   goal {row['goal']:.2f}"
            low, high = row["interval"]
            ratio = f"{row['ratio']['median']:.3f} [{low:.3f}, {high:.3f}] on {len(row['occasions'])} occasions{goal}"
            print(f"({case}) {row['what']}: {ratio}   {row['shapes']}", flush=True)

    def unlike(self) -> dict[str, Any]:
        """What is measured now says of its machine: nothing where the file says it."""
        return {} if self.content["machine"] == self.machine else {"machine": self.machine}

    def write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self.content, indent=1) + "\n")
