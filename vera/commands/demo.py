"""What `make demo` shows after its runs: table, picture, verdict and comparison with the repository's own records."""

import argparse
from pathlib import Path

from experiments import RESULTS
from experiments.artefacts import digits
from experiments.engine.paper import ask
from experiments.engine.render import latex, markdown, show
from vera.io.files import write_atomic


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results/demo", help="folder with the runs (default: results/demo)")
    folder = parser.parse_args().results
    asked = ask(Path(folder))
    mine, committed = digits.records(asked), digits.records(ask(RESULTS))
    (table,) = digits.build(asked)
    write_atomic(Path(folder) / "digits.md", markdown(table))
    write_atomic(Path(folder) / "digits.tex", latex(table))
    pictures = digits.draw(asked, Path(folder))
    show(table)
    print(digits.verdict(mine))
    print("\nThis machine against the records in results/runs:")
    for line in digits.compare(mine, committed):
        print(f"  {line}")
    written = [Path(folder) / "digits.md", Path(folder) / "digits.tex", *pictures]
    print(f"\nrecords: {folder}/runs ({sum(map(len, mine.values()))})   written: {', '.join(map(str, written))}")
    return 0
