"""What the paper's tables and figures need, what is there, and what the rest would cost.

python scripts/plan.py                    every sweep of the paper, a line each
python scripts/plan.py table2             the sweeps of one table, cell by cell
python scripts/plan.py --commands         how to run what is missing
"""

import math
import shlex
from pathlib import Path

from experiments.engine import arguments, judging
from experiments.engine.plan import COLUMNS, TFLOPS, Plan, failure, figures
from experiments.engine.render import Table, show
from experiments.engine.sweeps import cells, folder, looked_in, sweeps
from vera.commands import parser_of
from vera.config.architecture import FIT, misfit_of_path
from vera.errors import ConfigError
from vera.project import called


def main() -> int:
    parser = parser_of(__doc__)
    arguments.artefact(parser)
    arguments.results(parser, None, arguments.OF_RUNS)
    parser.add_argument("--scratch", default="results/scratch", help="folder of rehearsals (default: results/scratch)")
    arguments.overrides(parser)
    parser.add_argument(
        "--tflops", type=float, default=TFLOPS, help=f"a GPU's sustained 10^12 operations a second ({TFLOPS:g})"
    )
    parser.add_argument("--commands", action="store_true", help="print the commands for what is missing")
    options = arguments.parsed(parser)
    if not 0 < options.tflops < math.inf:
        parser.error(f"--tflops {options.tflops:g}: it must be finite and positive")
    of_runs, _ = judging.split(options.overrides)
    wanted = [(sweep, cells(sweep, of_runs)) for sweep in sweeps(options.artefact)]
    results = looked_in(options.results, wanted)
    plan = Plan(results, Path(options.scratch), options.tflops)
    every = [cell for _, found in wanted for cell in found]
    misfits = sorted({problem for cell in every if (problem := misfit_of_path(cell.run.model)) is not None})
    if misfits:
        raise ConfigError("; ".join([*misfits, FIT]))
    whole = plan.status(every)
    fills = {artefact for sweep, _ in wanted for artefact in sweep.artefacts}
    judged = judging.wanted(fills, results, options.overrides)
    if options.commands:
        of_runs, of_judge = judging.split(options.given)
        for sweep, found in wanted:
            status = plan.status(found)
            if status.missing or status.failed:
                elsewhere = options.results and str(results) != folder(sweep, found)
                there = [f"results_dir={results}"] if elsewhere else []
                print(called("train"), shlex.join([f"sweep={sweep.name}", *sweep.given, *there, *of_runs]))
        for one in judged:
            print(*one.commands(str(results), of_judge), sep="\n")
        return 0
    if options.artefact is None:
        rows = [[", ".join(sweep.artefacts), sweep.label, *figures(plan.status(found))] for sweep, found in wanted]
        rows.sort()
        columns = ["Fills", "Sweep", *COLUMNS]
    else:
        rows = []
        for sweep, found in wanted:
            for cell in found:
                what = " ".join(part for part in cell.overrides[1:] if part not in options.overrides)
                rows.append([sweep.label, what, *figures(plan.status([cell]))])
        columns = ["Sweep", "Cell", *COLUMNS]
    notes = [
        "A run that several sweeps want is counted in each of them, and once in the last line.",
        "From: recorded seconds of the same cell, a GPU's where there are any, or operations at "
        f"{options.tflops:g} x 10^12 a second (--tflops): a lower bound. Padding is what random batches add to the training "
        "examples, where their lengths are known.",
    ]
    show(Table("plan", "The plan", columns, [*rows, ["all", "", *figures(whole)]], notes, [len(rows)]))
    if judged:
        show(judging.table(judged))
    for name in sorted(whole.failed):
        print(f"failed: {name}: {failure(plan.results, name)}")
    return 0
