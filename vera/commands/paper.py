"""Tables, figures, claims and the report from records, in one process and without torch.

python scripts/paper.py                  results/tables, results/figures and results/report/index.html
python scripts/paper.py --report         the report alone
"""

from experiments.engine import arguments
from experiments.engine.paper import paper
from vera.commands import parser_of
from vera.records.store import Store


def main() -> int:
    parser = parser_of(__doc__)
    arguments.results(parser)
    arguments.out(parser, "tables/, figures/ and report/")
    parser.add_argument("--report", action="store_true", help="write report/index.html and nothing else")
    options = parser.parse_args()
    results = options.results
    out = arguments.target(parser, options.out, results)
    page = paper(results, out, page_alone=options.report)
    print(f"{len(Store(results).names())} records in {results}/runs; the report is {page} ({page.stat().st_size:,} bytes)")
    return 0
