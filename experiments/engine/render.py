"""A table of strings as Markdown, LaTeX or terminal output, and the way numbers are printed in it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable

from experiments.engine.aggregate import PAPER_SEEDS, Difference, Summary
from experiments.engine.published import Statistic

DASH = "–"
COLLAPSED = "collapsed"
COLLAPSED_NOTE = "Collapsed seeds (a correlation undefined for constant predictions, or a loss not finite) count as the worst."
INTERVAL = "Interval of the median"
INTERVAL_NOTE = (
    f"{INTERVAL}: of two to five seeds the smallest and the largest, which cover it with 50%, 75%, 87.5% and 93.75%; from "
    "six on order statistics that cover it with 95% or more."
)
MIXED = "†"
MIXED_NOTE = f"{MIXED} seeds that were run on different backbones, data or precision, or by different code of a project."


class Sourced(str):
    """Printed text that knows where it comes from: the cell_id of its records, and how it differs from the published figure.

    deviation: ours minus the paper's in the printed unit; p: of aggregate.deviation_p. None where there is nothing to compare.
    """

    cell: str
    deviation: float | None
    p: float | None

    def __new__(cls, text: str, cell: str, deviation: float | None = None, p: float | None = None):
        made = super().__new__(cls, text)
        made.cell, made.deviation, made.p = cell, deviation, p
        return made


@dataclass
class Table:
    """name: file stem. rows: strings, one for each column. rules: row numbers after which a line is drawn."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    rules: list[int] = field(default_factory=list)


def number(summary: Summary | None, scale: float = 1.0, digits: int = 1, stat: Statistic = "median") -> str:
    """Median (or what `stat` says), standard deviation, a mark for unlike seeds and, where it is not the paper's five, n.

    A dash for nothing. What comes from records remembers their cell (Sourced)."""
    if summary is None:
        return DASH
    text = figure(scale * summary.centre(stat), digits)
    if summary.std is not None:
        text += f"±{scale * summary.std:.{digits}f}"
    if summary.mixed:
        text += MIXED
    if summary.collapsed:
        text += f" ({summary.collapsed} of {summary.n} collapsed)"
    elif summary.n != PAPER_SEEDS:
        text += f" (n={summary.n})"
    return Sourced(text, summary.cell)


def figure(value: float, digits: int = 1) -> str:
    """A number in a table; one that collapsed seeds decide is no number."""
    return f"{value:.{digits}f}" if math.isfinite(value) else COLLAPSED


def interval(summary: Summary | Difference | None, scale: float = 1.0, digits: int = 1) -> str:
    """The interval of a summary (order statistics, of the median: INTERVAL) or of a difference (Student's t, of the mean)."""
    if summary is None or summary.interval is None:
        return DASH
    low, high = summary.interval
    return f"[{figure(scale * low, digits)}, {figure(scale * high, digits)}]"


def signed(difference: Difference | None, scale: float = 1.0, digits: int = 1) -> str:
    """A paired difference with its interval; a dash for nothing."""
    if difference is None:
        return DASH
    text = f"{scale * difference.mean:+.{digits}f}"
    if difference.interval is not None:
        low, high = difference.interval
        text += f" [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
    return text


def p_value(p: float | None) -> str:
    """A p with four places, of which none would read as certainty; a dash for none."""
    if p is None:
        return DASH
    return f"{p:.4f}" if p >= 1e-4 else "below 0.0001"


def notes_of(table: Table) -> list[str]:
    """The table's notes, and what its marks mean."""
    cells = [cell for row in table.rows for cell in row]
    intervals = [cell for row in table.rows for cell, column in zip(row, table.columns, strict=True) if column == INTERVAL]
    return (
        table.notes
        + [INTERVAL_NOTE] * any(cell != DASH for cell in intervals)
        + [MIXED_NOTE] * any(MIXED in cell for cell in cells)
        + [COLLAPSED_NOTE] * any(COLLAPSED in cell for cell in cells)
    )


def markdown(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [f"# {table.title}", "", line(table.columns), "|" + "---|" * len(table.columns)]
    lines += [line(row) for row in table.rows]
    notes = notes_of(table)
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\texttt{\char34}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    DASH: "--",
    MIXED: r"$\dagger$",
}


def latex(table: Table) -> str:
    """A booktabs tabular, ready for \\input, with the table's notes as comments."""

    def line(cells: list[str]) -> str:
        signs = (re.sub(r"(?<![\w.)\]])-(?=\d)", "−", cell) for cell in cells)  # before a number, not in a name or a range
        text = " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in signs) + r" \\"
        return f"{{{text[0]}}}{text[1:]}" if text[0] in "[*" else text  # an argument of the command above, or its star

    spec = "l" * min(3, len(table.columns)) + "r" * max(0, len(table.columns) - 3)
    said = [f"% {' '.join(text.split())}" for text in (table.title, *notes_of(table))]
    lines = [*said, rf"\begin{{tabular}}{{{spec}}}", r"\toprule", line(table.columns), r"\midrule"]
    for index, row in enumerate(table.rows, start=1):
        lines.append(line(row))
        if index in table.rules and index < len(table.rows):
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def show(table: Table) -> None:
    """Print a table; wide enough for every column when the output is not a terminal."""
    console().print(_rich(table))


def console() -> Console:
    """Where scripts print; wide enough for every column when that is not a terminal."""
    made = Console(highlight=False, markup=False)
    if not made.is_terminal:
        made.width = 200
    return made


def _rich(table: Table) -> RichTable:
    view = RichTable(title=table.title, title_justify="left", caption="\n".join(notes_of(table)), caption_justify="left")
    for column in table.columns:
        view.add_column(column)
    for index, row in enumerate(table.rows, start=1):
        view.add_row(*row, end_section=index in table.rules)
    return view
