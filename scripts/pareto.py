"""vera pareto, in a clone that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vera.commands import run

if __name__ == "__main__":
    sys.exit(run(Path(__file__).stem, sys.argv[1:]))
