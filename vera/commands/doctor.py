"""What a sweep needs and whether it is here, before the money is spent. Nothing is downloaded but question files.

python scripts/doctor.py                              the whole paper
python scripts/doctor.py table2                       what one table, figure or sweep needs
python scripts/doctor.py glue_base models_dir=/models data_root=/data
python scripts/doctor.py vicuna questions.data_dir=/data/vicuna_bench judging=fastchat

Exit status: 0 nothing is missing, 1 something is to be done, 3 nothing is known to be missing, but some lines need a network.
"""

from rich.table import Table

from experiments.engine import arguments
from experiments.engine.accounting import of_cell
from experiments.engine.judging import split
from experiments.engine.plan import estimate
from experiments.engine.render import console
from experiments.engine.sweeps import Cell, cells, sweeps
from vera.commands import ROOT, parser_of
from vera.config import checked, resolve
from vera.errors import redacted

ERROR = 2
STYLE = {"ok": "green", "to do": "bold red", "needs a network": "yellow", "not needed here": "dim", "note": "cyan"}


def main() -> int:
    parser = parser_of(__doc__)
    arguments.artefact(parser)
    arguments.overrides(parser)
    parser.add_argument("--packages", action="store_true", help="look at Python and its packages alone")
    options = arguments.parsed(parser)
    if options.packages:
        from vera.checks import doctor

        return show([doctor.python(), *doctor.packages(ROOT / "constraints.txt", set())])
    of_runs, of_judge = split(options.overrides)
    found = [cell for sweep in sweeps(options.artefact) for cell in cells(sweep, of_runs)]
    return show(examine(found, of_runs, of_judge))


def examine(found: list[Cell], of_runs: list[str], of_judge: list[str]):
    """The doctor's lines for these cells, with overrides of runs and of the judge."""
    from vera.checks import doctor  # brings torch, which --help and a wrong name do not need
    from vera.judge.endpoint import JudgeSettings
    from vera.judge.questions import QuestionSource

    wanted = [
        doctor.Wanted(
            cell.run,
            len(cell.seeds),
            of_cell(cell.run, cell.overrides),
            sum((estimate(cell.run) or {}).values()) or None,
        )
        for cell in found
    ]
    questions = {}
    for sweep in dict.fromkeys(cell.sweep for cell in found):
        chosen = [f"sweep={sweep}", *(override for override in of_runs if override.startswith(("answers=", "data_root=")))]
        if resolve("run", chosen).get("answers"):
            chosen += [override for override in of_runs if override.startswith("answers.")]
            chosen += [f"answers.{override}" for override in of_judge if override.startswith("questions.")]
            source = checked(QuestionSource, resolve("run", chosen)["answers"]["questions"], "questions")
            questions[source.name] = source
    judge = checked(JudgeSettings, resolve("judge", of_judge)["judge"], "judge")
    return doctor.examine(wanted, list(questions.values()), judge, ROOT / "constraints.txt")


def show(lines) -> int:
    """Print the lines and their sum; the exit status."""
    from vera.checks.doctor import describe, verdict

    table = Table()
    for column in ("", "Check", "Found", "What to do"):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(line.status, line.what, redacted(line.found), redacted(line.remedy), style=STYLE[line.status])
    console().print(table)
    print(", ".join(f"{count} {status}" for status, count in describe(lines).items() if count))
    return verdict(lines)
