"""Render tables and figures from records, without torch.

python scripts/tables.py                                  all of them, from results/runs to results/tables and results/figures
python scripts/tables.py table2 --show                    one of them, also printed
python scripts/tables.py table2 --with train.batch_size=32    the cells that these overrides make
"""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.render import latex, markdown, show
from vera.errors import VeraError
from vera.files import write_atomic
from vera.store import Store


def main() -> int:
    modules = [importlib.import_module(f"experiments.{path.stem}") for path in sorted((ROOT / "experiments").glob("*.py"))]
    artefacts = {module.__name__.rpartition(".")[2]: module for module in modules if hasattr(module, "build")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(artefacts)} (or how they begin)")
    parser.add_argument("--results", default="results", help="folder with runs/ (default: results)")
    parser.add_argument("--out", default=None, help="folder for tables/ and figures/ (default: the results folder)")
    parser.add_argument(
        "--with", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as given to train.py"
    )
    parser.add_argument("--show", action="store_true", help="print the tables as well")
    options = parser.parse_args()
    chosen = {n: m for n, m in artefacts.items() if not options.names or any(n.startswith(name) for name in options.names)}
    if not chosen:
        parser.error(f"no such table: {', '.join(options.names)}; there are {', '.join(artefacts)}")
    out = Path(options.out or options.results)
    try:
        cells = Store(options.results).by_cell()
        for module in chosen.values():
            for table in module.build(cells, options.overrides):
                write_atomic(out / "tables" / f"{table.name}.md", markdown(table))
                write_atomic(out / "tables" / f"{table.name}.tex", latex(table))
                if options.show:
                    show(table)
            if hasattr(module, "draw"):
                module.draw(cells, out / "figures", options.overrides)
    except (VeraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{sum(map(len, cells.values()))} records in {options.results}/runs; tables in {out / 'tables'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
