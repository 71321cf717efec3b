"""Everything that is made from records, in one process: tables, figures, claims, and the page that holds them all."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from experiments.engine import protocol, published, registry
from experiments.engine.aggregate import Cells
from experiments.engine.comparison import studies
from experiments.engine.judged import PAPER_JUDGE, join
from experiments.engine.judged import table as judged_table
from experiments.engine.published import Statistic
from experiments.engine.render import Table, latex, markdown
from experiments.engine.report import page
from experiments.engine.sweeps import prepare
from vera.io.files import write_atomic
from vera.runs.store import Store


def read(results: Path, judge: str = PAPER_JUDGE) -> Cells:
    """The records of a results folder by cell, with the scores that a judge gave. Raises RecordError for an invalid one."""
    return join(Store(results).by_cell(), results, judge)


def _wanted(chosen: Collection[str] | None) -> list[str]:
    return [name for name in registry.names() if chosen is None or name in chosen]


def tables(
    cells: Cells,
    results: Path,
    chosen: Collection[str] | None = None,
    overrides: Sequence[str] = (),
    stat: Statistic | None = None,
) -> dict[str, list[Table]]:
    """The tables of every artefact (or the chosen ones) by name, with who ran which row; what judges said goes with Table 4."""
    made = {
        name: registry.artefact(name).build(cells, overrides, stat)
        for name in registry.names()
        if chosen is None or name in chosen
    }
    for name in published.names():
        if name in made:
            made[name] += studies(name, stat)
    judged = judged_table(results)
    if judged and "table4" in made:
        made["table4"].append(judged)
    return made


def write(made: dict[str, list[Table]], folder: Path) -> None:
    """Each table as Markdown and LaTeX."""
    for table in (table for found in made.values() for table in found):
        write_atomic(folder / f"{table.name}.md", markdown(table))
        write_atomic(folder / f"{table.name}.tex", latex(table))


def draw(cells: Cells, folder: Path, chosen: Collection[str] | None = None, overrides: Sequence[str] = ()) -> list[Path]:
    """The figures of every artefact (or the chosen ones); the files that were written."""
    found = [registry.artefact(name) for name in _wanted(chosen)]
    return [path for artefact in found if artefact.draw for path in artefact.draw(cells, folder, overrides)]


def write_page(made: dict[str, list[Table]], pictures: Sequence[Path], cells: Cells, results: Path, out: Path) -> Path:
    """out/report/index.html, where the settings of a table's rows lie with it."""
    made = {n: [*found, *([protocol.table(n)] if n in protocol.ARTEFACTS else [])] for n, found in made.items()}
    vectors = [path for path in pictures if path.suffix == ".svg"]
    return write_atomic(out / "report" / "index.html", page(made, vectors, cells, results))


def paper(results: Path, out: Path) -> Path:
    """Tables, figures and page. Raises VeraError for a record, a published table or a config that is wrong."""
    prepare()
    cells = read(results)
    made = tables(cells, results)
    write(made, out / "tables")
    return write_page(made, draw(cells, out / "figures"), cells, results, out)


def report(results: Path, out: Path) -> Path:
    """The page alone."""
    prepare()
    cells = read(results)
    with tempfile.TemporaryDirectory() as folder:
        return write_page(tables(cells, results), draw(cells, Path(folder)), cells, results, out)
