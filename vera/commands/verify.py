"""Repeat a recorded run and compare it with its record, metric by metric. The record is never touched.

python scripts/verify.py results/runs/<name>.json
python scripts/verify.py results/runs/<name>.json task.data_dir=/data/glue --tolerance 1e-6
python scripts/verify.py FOLDER                             what scripts/publish.py has made, downloaded

Exit status: 0 every number equals the recorded one (or differs by at most the tolerance), 1 some do not, 2 the run could not
be repeated. Paths of the machine that made the record are not in it: give model.path= and task.data_dir=, or leave them to the
hub; whether weights and rows are the recorded ones, their fingerprints decide.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from experiments.engine.render import console
from vera.commands import parser_of, whole

if TYPE_CHECKING:
    from vera.checks.verify import Comparison

ERROR = 2


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("record", type=Path, metavar="RECORD")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="local paths, device, micro-batches")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest difference that counts as equal (default: 0)")
    parser.add_argument("--threads", type=whole(1), help="threads on a CPU (default: as recorded)")
    options = parser.parse_intermixed_args()
    if not 0 <= options.tolerance < math.inf:
        parser.error(f"--tolerance {options.tolerance:g}: it must be a finite number of at least 0")
    from vera.checks.verify import compare, read_record, repeat

    record = read_record(options.record)
    print(f"repeating {record.name} (recorded: {record.cost.seconds:.0f} s)", flush=True)
    found = compare(record, repeat(record, options.overrides, options.threads))
    return report(found, options.tolerance)


def report(found: "Comparison", tolerance: float) -> int:
    """Print what differs; the exit status."""
    differing = found.differing(tolerance)
    out = console()
    if differing:
        table = Table("Number", "Recorded", "Repeated", "Differs by")
        for value in differing:
            table.add_row(value.name, _shown(value.recorded), _shown(value.repeated), f"{value.difference:.3g}")
        out.print(table)
    if found.conditions:
        print("what differs around the run:" if differing else "equal although this differs:")
        for name, recorded, here in found.conditions:
            print(f"  {name}: recorded {recorded}, here {here}")
    within = f" within {tolerance:g}" if tolerance else ""
    if not differing:
        print(f"equal{within}: all {len(found.values)} numbers")
        return 0
    worst = max(differing, key=lambda value: value.difference)
    print(f"differs: {len(differing)} of {len(found.values)} numbers, most {worst.name} by {worst.difference:.3g}")
    other = [name.partition("_")[0] for name, *_ in found.conditions if name in ("model_fingerprint", "data_fingerprint")]
    if other:
        print(f"{' and '.join(other)} are not the recorded ones, so that equal numbers are not to be expected")
    if not found.conditions:
        print("nothing around the run differs: the computation itself is not deterministic on this machine")
    return 1


def _shown(value: float | str | None) -> str:
    if isinstance(value, str):
        return value if len(value) <= 60 else value[:57] + "..."
    return "-" if value is None else f"{value:.10g}"
