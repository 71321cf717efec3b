"""Arguments that several scripts have in common."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from vera.config.paths import readable

OF_RUNS = "where the runs asked for go, when it is one folder, else results"


def artefact(parser: ArgumentParser) -> None:
    """What `parsed` splits into options.artefact and, joined by --with, options.overrides."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ARTEFACT | KEY=VALUE",
        help="a table, a figure (or how they begin) or a sweep, default: the whole paper; and keys, as given to train.py",
    )


def parsed(parser: ArgumentParser) -> Namespace:
    """The command line, with `artefact` (None: the whole paper), `given` (the keys as they were written) and `overrides` (the
    same, paths as Hydra's grammar reads them)."""
    options = parser.parse_intermixed_args()
    names, keys = parted(options.words)
    if len(names) > 1:
        parser.error(f"one artefact at a time, not {' and '.join(names)}; keys are KEY=VALUE")
    options.artefact = names[0] if names else None
    options.given = [*keys, *options.overrides]
    options.overrides = keys_of(parser, options, options.given)
    return options


def parted(words: list[str]) -> tuple[list[str], list[str]]:
    """Names, and keys of a run. A sweep's label is a name, though it may hold keys further on."""
    keys = [word for word in words if "=" in word.partition(" ")[0]]
    return [word for word in words if word not in keys], keys


def keys_of(parser: ArgumentParser, options: Namespace, given: list[str]) -> list[str]:
    """Keys as written, with paths as Hydra's grammar reads them. Ends with a usage error for one that is an option."""
    if hasattr(options, "results") and any(key.startswith("results_dir=") for key in given):
        parser.error("results_dir= says where runs go; where they are looked for is --results FOLDER")
    return readable(given)


def results(parser: ArgumentParser, default: Path | None = Path("results"), said: str = "results") -> None:
    parser.add_argument("--results", type=_results, default=default, help=f"folder with runs/ (default: {said})")


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
