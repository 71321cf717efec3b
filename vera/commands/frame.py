"""The records of a results folder as one table for other programs: a row a run, or with --history a row an epoch.

python scripts/frame.py --format csv                       to results/frame.csv; parquet and latex likewise
python scripts/frame.py --columns model,task,method,seed,best_accuracy --out accuracies.csv
"""

from pathlib import Path

from experiments.engine import arguments
from vera.commands import parser_of
from vera.errors import ConfigError
from vera.io.files import write_atomic
from vera.records.frame import frame

ENDINGS = {"csv": "csv", "parquet": "parquet", "latex": "tex"}


def main() -> int:
    parser = parser_of(__doc__)
    arguments.results(parser)
    parser.add_argument("--format", choices=list(ENDINGS), default="csv")
    parser.add_argument("--history", action="store_true", help="a row an evaluated epoch")
    parser.add_argument("--columns", help="these alone, with commas between")
    parser.add_argument("--out", type=Path, help="the file (default: frame.<ending> in the results folder)")
    options = parser.parse_args()
    made = frame(options.results, options.history)
    if options.columns is not None:
        wanted = list(dict.fromkeys(options.columns.split(",")))
        unknown = [name for name in wanted if name not in made.columns]
        if unknown:
            raise ConfigError(f"--columns: no column {unknown[0]!r}; there are {', '.join(made.columns)}")
        made = made[wanted]
    name = "history" if options.history else "frame"
    path = options.out or options.results / f"{name}.{ENDINGS[options.format]}"
    if options.format == "csv":
        content = made.to_csv(index=False).encode()
    elif options.format == "parquet":
        content = made.to_parquet(index=False)
    else:
        content = made.to_latex(index=False, escape=True, longtable=True, na_rep="--").encode()
    write_atomic(path, content)
    print(f"{len(made)} rows, {len(made.columns)} columns: {path}")
    return 0
