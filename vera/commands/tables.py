"""Render tables and figures from records, without torch.

python scripts/tables.py                                  all of them, from results/runs to results/tables and results/figures
python scripts/tables.py table2 --show                    one of them, also printed
python scripts/tables.py table2 --stat last               another statistic than the paper's: printed, written only with --out
python scripts/tables.py table2 --with train.batch_size=32    the cells that these overrides make, likewise
python scripts/tables.py --rows method --columns task --metric accuracy --where model=minilm     any records, by their keys
"""

import argparse
from pathlib import Path

from experiments import RESULTS
from experiments.engine import arguments, published, registry
from experiments.engine.comparison import STATS
from experiments.engine.judged import PAPER_JUDGE
from experiments.engine.paper import ask, draw, heeding, tables, write
from experiments.engine.pivot import pivot
from experiments.engine.render import show
from vera.commands import parser_of
from vera.project import project
from vera.records.store import Store


def main() -> int:
    everything = registry.names()
    parser = parser_of(__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME | KEY=VALUE",
        help=f"which of {', '.join(everything)} (or how they begin); and keys, as given to train.py",
    )
    arguments.results(parser)
    arguments.out(parser, "tables/ and figures/")
    arguments.overrides(parser)
    parser.add_argument("--stat", choices=list(STATS), help="; ".join(f"{name}: {what}" for name, what in STATS.items()))
    parser.add_argument(
        "--judge",
        help=f"whose scores Tables 4 and 13 and their claims take, with commas between several (default: {PAPER_JUDGE})",
    )
    parser.add_argument("--show", action="store_true", help="print the tables as well")
    pivoted = parser.add_argument_group("any records, by their keys (model, task, method, or one such as method.rank)")
    pivoted.add_argument("--rows", metavar="KEY,...", help="what stands down the side")
    pivoted.add_argument("--columns", metavar="KEY,...", default="", help="what stands across the top")
    pivoted.add_argument("--metric", help="as records call it (default: each task's first)")
    pivoted.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="records that have it alone")
    pivoted.add_argument("--recipes", action="store_true", help="the cells that model, task and method alone make")
    options = parser.parse_intermixed_args()
    given = [*(name for name in options.names if "=" in name), *options.overrides]
    options.overrides = arguments.keys_of(parser, options, given)
    options.names = [name for name in options.names if "=" not in name]
    if options.rows or options.columns or options.metric or options.where or options.recipes:
        return by_keys(parser, options)
    shown = published.own_names() if project() and not options.names else everything
    chosen = [n for n in shown if not options.names or any(n.startswith(name) for name in options.names)]
    unknown = [name for name in options.names if not any(n.startswith(name) for n in everything)]
    if unknown:
        parser.error(f"no such table: {', '.join(unknown)}; there are {', '.join(everything)}")
    elsewhere = options.results.resolve() != RESULTS and str(options.results) != "results"
    bear = {"with": options.overrides, "stat": options.stat, "results": elsewhere, "judge": options.judge}
    usual = not options.overrides and options.stat is None and options.judge in (None, PAPER_JUDGE)
    writes = usual or options.out is not None
    out = arguments.target(parser, options.out, options.results) if writes else options.results
    heeded = heeding(chosen, [option for option, value in bear.items() if value], bool(options.names))
    if heeded != chosen:
        print(f"left out, since the options do not bear on them: {', '.join(n for n in chosen if n not in heeded)}")
    asked = ask(options.results, options.overrides, options.stat, options.judge or PAPER_JUDGE)
    made = tables(asked, heeded)
    if writes:
        write(made, out / "tables")
        if options.stat is None:
            draw(asked, out / "figures", heeded)
        else:
            print("figures show medians: none is drawn with --stat")
    if options.show or not writes:
        for table in (table for found in made.values() for table in found):
            show(table)
    written = f"; tables in {out / 'tables'}" if writes else ""
    print(f"{len(Store(options.results).names())} records in {options.results}/runs{written}")
    return 0


def by_keys(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """The table of --rows and --columns: printed, and written with --out."""
    if not options.rows or options.names or options.overrides or options.judge:
        parser.error("--rows says what stands down the side; names of tables, --with and --judge are not for such a table")
    down, across = ([key for key in text.split(",") if key] for text in (options.rows, options.columns))
    records = Store(options.results).records()
    made = pivot(records, down, across, options.metric, options.where, options.recipes, options.stat or "median")
    show(made)
    if options.out is not None:
        write({made.name: [made]}, Path(options.out) / "tables")
        print(f"written: {Path(options.out) / 'tables' / made.name}.md, .tex")
    return 0
