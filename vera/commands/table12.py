"""Table 12 on random weights: LoRA and VeRA, both at rank 64, on a 4-bit model of Llama 7B's shape (bench/table12.py).

python scripts/table12.py                on a GPU: times training steps, writes results/bench/table12.json
python scripts/table12.py --tiny         the same steps on a tiny model anywhere; writes nothing

Both print ours beside the paper's; without a GPU ours are dashes.
"""

import json

from bench.table12 import compare, table
from experiments.artefacts.bench import ROUNDS
from experiments.engine.render import show
from vera.commands import ROOT, parser_of, whole
from vera.io.files import write_atomic


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU; writes nothing")
    parser.add_argument("--steps", type=whole(1), default=10, help="timed steps (default: 10)")
    parser.add_argument("--warmup", type=whole(0), default=3, help="steps before them (default: 3)")
    rounds = f"times that both methods run, in turns (default: {ROUNDS}, the fewest that decide the claim of time)"
    parser.add_argument("--rounds", type=whole(1), default=ROUNDS, help=rounds)
    parser.add_argument("--length", type=whole(1), default=512, help="tokens a row (default: 512)")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        show(table(None))
        print("this machine has no GPU that torch can use; on one that has: python scripts/table12.py")
        return 0
    measured = compare(options)
    show(table(measured))
    if not options.tiny:
        path = ROOT / "results" / "bench" / "table12.json"
        write_atomic(path, json.dumps(measured, indent=1) + "\n")
        print(f"written to {path.relative_to(ROOT)}")
    return 0
