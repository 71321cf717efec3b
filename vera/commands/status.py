"""What is done, running (where, since when, how long yet), failed and missing. Refreshes in a terminal until all is done.

python scripts/status.py                        every sweep of the paper
python scripts/status.py table2                 the sweeps of one table, or one sweep, such as glue_large
python scripts/status.py demo                   in results/demo, where its yaml puts its runs (--results: elsewhere)
"""

import time

from rich.live import Live

from experiments.engine import arguments, status
from experiments.engine.render import console
from experiments.engine.sweeps import cells, looked_in, sweeps
from vera.commands import parser_of

REFRESH = 2.0  # seconds


def main() -> int:
    parser = parser_of(__doc__)
    arguments.artefact(parser)
    arguments.results(parser, None, arguments.OF_RUNS)
    arguments.overrides(parser)
    parser.add_argument("--once", action="store_true", help="print once, as when the output is not a terminal")
    options = arguments.parsed(parser)
    out = console()
    asked = sweeps(options.artefact)
    found = [(sweep, cells(sweep, options.overrides)) for sweep in asked]
    results = looked_in(options.results, found)
    wanted = {sweep.label: {run for cell in of_sweep for run in cell.names()} for sweep, of_sweep in found}
    every = set().union(*wanted.values())
    state = status.look(results)
    if options.once or not out.is_terminal:
        out.print(status.shown(state, wanted, results))
        return 0
    with Live(status.shown(state, wanted, results), console=out, auto_refresh=False, screen=False) as live:
        while not status.finished(state, every):
            time.sleep(REFRESH)
            state = status.look(results)
            live.update(status.shown(state, wanted, results), refresh=True)
    return 0
