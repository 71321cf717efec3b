"""The commands: `vera NAME ...`, and `python scripts/NAME.py ...` in a clone that is not installed.

Each module here is one, with a `main() -> int` that reads sys.argv; ERROR there is the exit status of an error (1).
`--project DIR` (or VERA_PROJECT) works in a folder outside this repository: as if started there, with what its conf/ and
published/ add, and its modules to import.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from vera.errors import VeraError
from vera.io.pipe import ended
from vera.project import enter

ROOT = Path(__file__).resolve().parent.parent.parent  # conf/, bench/, results/ and docs/ lie there


def main() -> int:
    """`vera NAME ...`; without a name the list of commands."""
    _printable()
    words = sys.argv[1:]
    if words[:1] == ["--project"]:
        words = [f"--project={''.join(words[1:2])}", *words[2:]]
    if words and words[0].startswith("--project="):
        words = [*words[1:2], words[0], *words[2:]]
    asked, *arguments = words or ["--help"]
    known = {path.stem: path for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))}
    name = asked.replace("-", "_")
    if name in known:
        return run(name, arguments, f"vera {asked}")
    if asked not in ("-h", "--help"):
        print(f"error: vera {asked}: no such command; there are {', '.join(known)}", file=sys.stderr)
        return 2
    print("vera COMMAND ...    (vera COMMAND --help says more)\n")
    for name, path in known.items():
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        print(f"  {name:13} {' '.join(said.partition(chr(10) * 2)[0].split())}")
    return 0


def _printable() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes by itself
        sys.stdout.reconfigure(errors="replace")


def parser_of(said: str | None) -> argparse.ArgumentParser:
    """Of a command's arguments. said: what its module says of it, whose lines `--help` leaves as they are."""
    return argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)


def of_run(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which finished run, and which of its weights (vera.trained.export.find)."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="local paths again, cache_dir")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="which epoch (default: best)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="the run's results_dir, if the folder does not say it")
    parser.add_argument("--work", type=Path, metavar="DIR", help="the run's work_dir, if the record does not say it")


def whole(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, `least` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def run(name: str, arguments: Sequence[str], shown: str | None = None) -> int:
    """One command's exit status, an error told in one line. shown: what its usage calls it (as it was called).

    ~ begins a home in --out=~/x as in --out ~/x, where the shell sees to it; what stdout's encoding lacks is shown as ?.
    """
    _printable()
    arguments = [re.sub(r"^(--[\w-]+=)(~.*)", lambda at: at[1] + os.path.expanduser(at[2]), word) for word in arguments]
    before, command = sys.argv, None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if str(ROOT) not in sys.path:  # for bench/, which is no installed package
        sys.path.append(str(ROOT))
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports
    try:
        sys.argv = [shown or sys.argv[0], *enter(arguments)]
        command = import_module(f"vera.commands.{name}")
        signal.signal(signal.SIGINT, interrupted)
        return ended(command.main)
    except (VeraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(command, "ERROR", 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        sys.argv = before
        signal.signal(signal.SIGINT, interrupted)
