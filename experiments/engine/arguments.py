"""Arguments that several scripts have in common."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path


def artefact(parser: ArgumentParser) -> None:
    parser.add_argument(
        "artefact", nargs="?", help="a table, a figure (or how they begin) or a sweep; default: the whole paper"
    )


def results(parser: ArgumentParser) -> None:
    parser.add_argument("--results", type=_results, default=Path("results"), help="folder with runs/ (default: results)")


def out(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("--out", default=None, help=f"folder for {what} (default: the results folder)")


def target(parser: ArgumentParser, given: str | None, results: Path) -> Path:
    """Where to write. Ends with a usage error where that would be beside records that are not there."""
    if given is None and not results.is_dir():
        parser.error(f"--results {results}: there is no such folder; give --out as well to write tables without records")
    return Path(results if given is None else given)


def _results(text: str) -> Path:
    """A folder that may not be there yet, which is said, since it may be misspelt."""
    if not Path(text).is_dir():
        print(f"note: --results {text}: there is no such folder, so nothing counts as done", file=sys.stderr)
    return Path(text)


def overrides(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--with", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as given to train.py"
    )
