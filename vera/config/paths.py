"""Values and paths on a command line and in conf/: as Hydra's grammar reads them back, local copies by the last part of a hub
id, and what a shell does not expand."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# Keys whose values are paths, as far as a command line is concerned.
_PATH_KEY = re.compile(r"(?:^|[._])(?:path|dir|root|folder)$")
_PLAIN = re.compile(r"[\w./+@%:-]*", re.ASCII)  # what Hydra's grammar takes as it is
_NO_TEXT = re.compile(r"[+-]?[\d_.]+(e[+-]?\d+)?|[+-]?(inf|nan)|true|false", re.IGNORECASE)  # a number, or a boolean
_TEXT = "tag:yaml.org,2002:str"  # of what is no number, null or the like to YAML
_SWEEP = re.compile(r"(?:choice|glob|sort|shuffle)\(.*\)$")


def local_copy(root: str | None, repository: str | None) -> str | None:
    """Where a folder of local copies (models_dir, data_root) has a repository: <root>/<last part of its id>."""
    if not isinstance(root, str) or not root or repository is None:  # a root that is none is told by its key's check
        return None
    return str(Path(root).expanduser() / repository.rpartition("/")[2])


def beside_results(results_dir: Any, name: str) -> Any:
    """A folder of the results' own: below results that lie elsewhere (an absolute path, or one that leads out by ..), on the
    same disk; else <name>/<results_dir>. What is no folder (null, a number, an empty text) is left to the check of results_dir,
    which names it."""
    if not isinstance(results_dir, str) or not results_dir:
        return results_dir
    elsewhere = os.path.isabs(results_dir) or os.path.normpath(results_dir).split(os.sep)[0] == os.pardir
    return os.path.join(results_dir, name) if elsewhere else os.path.join(name, results_dir)


def work_of(results: str | os.PathLike, run: str = "") -> Path:
    """Where the runs of a results folder, or the one of a name, have kept what they trained, unless they were given another
    work_dir: of all that `beside_results` would have chosen, as they may have been named from any folder above them then."""
    root = Path(results)
    whole = root.absolute()
    named = [Path(beside_results(str(root), "work")), Path(beside_results(str(whole), "work"))]
    named += [above / beside_results(str(whole.relative_to(above)), "work") for above in whole.parents]
    return max(named, key=lambda folder: ((folder / run).is_dir(), folder.is_dir()))  # of equal ones the first


def readable(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with the paths among them as Hydra's grammar reads them: a leading ~ expanded, and quoted where
    they hold spaces, brackets, quotes or =. A comma separates the paths of a sweep, unless a file of the whole name exists."""
    return [_readable(argument) for argument in arguments]


def _readable(argument: str) -> str:
    key, equals, value = argument.partition("=")
    done = value.startswith(("'", '"', "[")) or "${" in value or _SWEEP.match(value)
    if not equals or key.startswith("-") or not _PATH_KEY.search(key) or done:
        return argument
    whole = os.path.expanduser(value)
    parts = [whole] if os.path.exists(whole) else [os.path.expanduser(part) for part in value.split(",")]
    return f"{key}={','.join(map(_quoted, parts))}"


def written(value: Any) -> str:
    """A value of a YAML file as Hydra's grammar reads it on a command line. A text that its YAML must have quoted (null, 10) is
    quoted here; one such as 1e-3, which is a text to YAML alone, is left to Hydra, which takes it for the number it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(part)}' for key, part in value.items())}}}"
    if not isinstance(value, str):
        return str(value)
    plain = _PLAIN.fullmatch(value) and yaml.SafeLoader("").resolve(yaml.ScalarNode, value, (True, False)) == _TEXT
    return value if plain else _in_quotes(value)


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value) and not _NO_TEXT.fullmatch(value):
        return value
    return _in_quotes(value)


def _in_quotes(value: str) -> str:
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
    return f"'{escaped}'"
