"""Arguments that several scripts have in common."""

from __future__ import annotations

from argparse import ArgumentParser


def artefact(parser: ArgumentParser) -> None:
    parser.add_argument(
        "artefact", nargs="?", help="a table, a figure (or how they begin) or a sweep; default: the whole paper"
    )


def results(parser: ArgumentParser) -> None:
    parser.add_argument("--results", default="results", help="folder with runs/ (default: results)")


def overrides(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--with", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as given to train.py"
    )
