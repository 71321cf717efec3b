"""Every setting of a table's rows with its value, its source, and what other sources print.

python scripts/protocol.py table2           one table, key by key
python scripts/protocol.py --write          docs/protocol.md
"""

from experiments.engine import protocol
from experiments.engine.published import names
from experiments.engine.render import show
from vera.commands import ROOT, parser_of
from vera.io.files import write_atomic


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("artefact", nargs="?", choices=names(), metavar="TABLE", help=f"one of {', '.join(names())}")
    parser.add_argument("--write", action="store_true", help="write docs/protocol.md, which has Tables 2 to 5")
    options = parser.parse_args()
    if options.write == (options.artefact is not None):
        parser.error("name a table, or give --write")
    if options.write:
        print(write_atomic(ROOT / "docs" / "protocol.md", protocol.page()))
    else:
        show(protocol.table(options.artefact))
    return 0
