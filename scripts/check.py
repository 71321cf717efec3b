"""Fail when the tracked tables and figures are not what the tracked records give.

Tables are compared byte for byte; of a figure only the PDF is (a PNG's compression may differ between machines).
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([sys.executable, str(ROOT / "scripts" / "tables.py"), "--out", folder], cwd=ROOT)
        if made.returncode:
            return made.returncode
        problems = []
        kinds = [("tables", {".md", ".tex"})]
        if f"matplotlib=={version('matplotlib')};" in (ROOT / "constraints.txt").read_text():
            kinds.append(("figures", {".pdf"}))
        else:
            print("figures are not compared: another matplotlib than the tested one draws other bytes")
        for kind, suffixes in kinds:
            new = {path.name: path for path in (Path(folder) / kind).glob("*") if path.suffix in suffixes}
            old = {path.name: path for path in (ROOT / "results" / kind).glob("*") if path.suffix in suffixes}
            for name in sorted(new.keys() | old.keys()):
                if name not in old or name not in new or old[name].read_bytes() != new[name].read_bytes():
                    problems.append(f"results/{kind}/{name}")
    for problem in problems:
        print(f"error: {problem} is not what the records give; run `make tables`", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
