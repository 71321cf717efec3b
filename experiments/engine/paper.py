"""Everything that is made from records, in one process: tables, figures, claims, and the page that holds them all."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from experiments.engine import protocol, published, registry
from experiments.engine.comparison import studies
from experiments.engine.judged import PAPER_JUDGE, join
from experiments.engine.published import Statistic
from experiments.engine.render import Table, latex, markdown
from experiments.engine.report import page
from experiments.engine.rows import Asked
from experiments.engine.sweeps import prepare
from vera.errors import ConfigError
from vera.io.files import write_atomic
from vera.records.store import Store


def ask(results: Path, overrides: Sequence[str] = (), stat: Statistic | None = None, judge: str = PAPER_JUDGE) -> Asked:
    """For what a results folder gives, with the scores of a judge. Raises RecordError for an invalid record."""
    return Asked(join(Store(results).by_cell(), results, judge, overrides), overrides, stat, results)


def heeding(chosen: Sequence[str], given: Collection[str], named: bool) -> list[str]:
    """Those of the chosen artefacts that heed the options given (as in Artefact.takes).

    Raises ConfigError for one that does not, where it was named; else it is left out.
    """
    if not given:
        return list(chosen)
    deaf = {name: sorted(set(given) - set(registry.artefact(name).takes)) for name in chosen}
    for name, options in deaf.items():
        if options and named:
            raise ConfigError(f"{name} does not depend on --{options[0]}: {registry.artefact(name).why}; leave it out")
    return [name for name in chosen if not deaf[name]]


def tables(asked: Asked, chosen: Collection[str] | None = None) -> dict[str, list[Table]]:
    """The tables of every artefact (or the chosen ones) by name, with who ran which row."""
    made = {name: registry.artefact(name).build(asked) for name in registry.names() if chosen is None or name in chosen}
    for name in published.names():
        if name in made:
            made[name] += studies(name, asked.stat)
    return made


PARTS = ("cells", "tests", "long", "studies")  # of tables that have them where there are records
APART = {"table4": "judged"}  # a part under a name of its own


def write(made: dict[str, list[Table]], folder: Path) -> None:
    """Each table as Markdown and LaTeX; of its PARTS those that it has no longer are removed, since they would be of other
    records. Raises ConfigError where two would be one file."""
    every = [table for found in made.values() for table in found]
    for name, count in Counter(table.name for table in every).items():
        if count > 1:
            raise ConfigError(f"{count} tables are called {name}: give the published one (results/paper) another name")
    names = {table.name for table in every}
    gone = {f"{name}_{part}" for name in names for part in PARTS} | {APART[name] for name in names & APART.keys()}
    gone -= names | {*registry.names()}
    for path in (folder / f"{name}.{kind}" for name in gone for kind in ("md", "tex")):
        path.unlink(missing_ok=True)
    for table in every:
        write_atomic(folder / f"{table.name}.md", markdown(table))
        write_atomic(folder / f"{table.name}.tex", latex(table))


def draw(asked: Asked, folder: Path, chosen: Collection[str] | None = None) -> list[Path]:
    """The pictures of every artefact (or the chosen ones), which show medians; the files that were written."""
    found = [registry.artefact(name) for name in registry.names() if chosen is None or name in chosen]
    return [path for artefact in found if artefact.draw for path in artefact.draw(asked, folder)]


def paper(results: Path, out: Path, page_alone: bool = False) -> Path:
    """Tables and figures as files, and the page, whose path is returned.

    Raises VeraError for a record, a published table or a config that is wrong.
    """
    prepare()
    asked = ask(results)
    made = tables(asked)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = draw(asked, Path(scratch) if page_alone else out / "figures")
        if not page_alone:
            write(made, out / "tables")
        return write_page(made, pictures, asked, out)


def write_page(made: dict[str, list[Table]], pictures: Sequence[Path], asked: Asked, out: Path) -> Path:
    """out/report/index.html, where the settings of a table's rows lie with it."""
    shown = {n: [*found, *([protocol.table(n)] if n in protocol.ARTEFACTS else [])] for n, found in made.items()}
    vectors = [path for path in pictures if path.suffix == ".svg"]
    return write_atomic(out / "report" / "index.html", page(shown, vectors, asked.cells, asked.results))
