"""Fail when the tracked tables, figures and report are not what the tracked records give.

Tables are compared byte for byte, and so are a figure's PDF and SVG (a PNG's compression may differ between machines) and the
page, which holds the figures. With another matplotlib than the tested one, only tables are compared.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from experiments.engine import protocol
from vera.commands import ROOT, parser_of
from vera.errors import ConfigError, VeraError
from vera.project import project


def differences(made: Path, tracked: Path, kinds: dict[str, set[str]]) -> list[str]:
    """Files of these kinds (folder: suffixes) that are not the same in both folders, or in one alone."""
    found = []
    for kind, suffixes in kinds.items():
        new, old = (
            {path.name: path for path in (folder / kind).glob("*") if path.suffix in suffixes} for folder in (made, tracked)
        )
        for name in sorted(new.keys() | old.keys()):
            if name not in old or name not in new or old[name].read_bytes() != new[name].read_bytes():
                found.append(f"results/{kind}/{name}")
    return found


def settings() -> list[str]:
    """What is wrong with docs/protocol.md, or with what the recipes say of their sources."""
    try:
        made = protocol.page()
    except VeraError as error:
        return [str(error)]
    same = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8") == made
    return [] if same else ["docs/protocol.md is not what recipes and sources give; run `python scripts/protocol.py --write`"]


def main() -> int:
    parser_of(__doc__).parse_args()
    if project():
        raise ConfigError("check compares this repository's tracked tables, figures and page; a project's are made by `paper`")
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([sys.executable, str(ROOT / "scripts" / "paper.py"), "--out", folder], cwd=ROOT)
        if made.returncode:
            return made.returncode
        kinds = {"tables": {".md", ".tex"}}
        if f"matplotlib=={version('matplotlib')};" in (ROOT / "constraints.txt").read_text():
            kinds |= {"figures": {".pdf", ".svg"}, "report": {".html"}}
        else:
            print("figures and report are not compared: another matplotlib than the tested one draws other bytes")
        problems = differences(Path(folder), ROOT / "results", kinds)
    problems = [f"{problem} is not what the records give; run `make paper`" for problem in problems] + settings()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0
