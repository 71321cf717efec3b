"""Time, memory and file size against PEFT, as ratios of alternating runs in one process; results go to results/bench.

python scripts/bench.py              all cases, on the GPU if there is one, else on the CPU (minutes)
python scripts/bench.py a b          some: a RoBERTa-base, b RoBERTa-large, c Llama, d mixed batches, e files, f an epoch,
                                     g inference after merging, h banks of 10,000 and 100,000 adapters
python scripts/bench.py h --banks 200,500                            case h with fewer adapters

A case measured again by the same code counts as another occasion beside those before: a goal for a time wants three.
"""

import os
from pathlib import Path

from vera.commands import ROOT, parser_of, whole
from vera.errors import VeraError

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CASES = list("abcdefgh")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(whole(1), text.split(",")))


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="a to h (default: all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", type=Path, default=None, help="GLUE's official files, for case f")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench", help="folder for <machine>.json")
    parser.add_argument("--banks", type=_counts, default=None, metavar="N,N", help="adapters in the banks of case h")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    import torch  # not before the arguments are known to be right: these take seconds

    from bench.cases import measure_case
    from bench.report import Report

    if options.device == "cuda" and not torch.cuda.is_available():
        raise VeraError("--device cuda: this machine has no CUDA GPU that torch can use")
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("On a CPU: fewer layers and a smaller Llama. The full-size cases need a GPU.")
    report = Report(device, options.out)
    print(f"{report.machine['device']}, {report.machine['threads']} threads")
    for name in sorted(set(options.cases)) or CASES:
        try:
            report.part(name, lambda name=name: report.rows(name, measure_case(name, device, options.data, options.banks)))
        except VeraError as error:
            raise VeraError(f"case {name}: {error}") from None
    print(f"written to {report.path}; `make tables` renders it")
    return 0
