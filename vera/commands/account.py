"""Count what every row of the paper trains, on the adapted full-size models themselves (no weights, no hub).

python scripts/account.py                  writes results/accounting.json and prints how every printed count comes out
python scripts/account.py --show table1    prints Table 1 beside ours, from that file
"""

import json

from experiments.artefacts import accounting as counted
from experiments.artefacts import table1
from experiments.engine import accounting, published
from experiments.engine.render import show
from experiments.engine.rows import Asked
from vera.commands import parser_of
from vera.io.files import write_atomic


def count_rows() -> dict[str, dict[str, int]]:
    """{adapter, head, total, adapter_bytes, backbone} of every row in results/paper that names a run, and of Table 1."""
    from vera.checks.counts import account  # brings torch

    counted = {}
    for name in published.names():
        table = published.load(name)
        for row in table.rows:
            if row.method is not None and accounting.key(row) not in counted:
                counted[accounting.key(row)] = account(published.run_of(name, row, table.tasks()[0]))
    for model, method, rank in table1.runs():
        counted[table1.key(model, method, rank)] = account(table1.run(model, method, rank))
    return counted


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--show", choices=["table1", "counts"], help="count nothing; print what the last count gave")
    options = parser.parse_args()
    if options.show is None:
        write_atomic(accounting.COUNTS, json.dumps(count_rows(), indent=1, sort_keys=True) + "\n")
        accounting.counts.cache_clear()
    for table in (table1 if options.show == "table1" else counted).build(Asked({})):
        show(table)
    return 0
