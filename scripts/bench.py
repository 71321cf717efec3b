"""Time, memory and file size against PEFT, as ratios of alternating runs in one process; results go to results/bench.

python scripts/bench.py              all cases, on the GPU if there is one, else on the CPU (minutes)
python scripts/bench.py a b          some: a RoBERTa-base, b RoBERTa-large, c Llama, d mixed batches, e files, f an epoch
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="a to f (default: all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "glue", help="GLUE's official files")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench", help="folder for <machine>.json")
    options = parser.parse_args()
    unknown = set(options.cases) - set("abcdef")
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are a, b, c, d, e, f")
    import torch  # not before the arguments are known to be right: these take seconds

    from bench.cases import run
    from bench.measure import load_average, machine
    from vera.files import write_atomic

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: this machine has no CUDA GPU that torch can use", file=sys.stderr)
        return 1
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("On a CPU: fewer layers and a smaller Llama. The full-size cases need a GPU.")
    described = {**machine(device), "load_average_before": load_average()}
    print(f"{described['device']}, {described['threads']} threads, load average {described['load_average_before']}")
    names = sorted(set(options.cases)) or list("abcdef")
    rows, left_out = run(names, device, options.data, lambda line: print(line, flush=True))
    described["load_average_after"] = load_average()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{described['device']} {described['threads']} threads".lower()).strip("-")
    path = options.out / f"{slug}.json"
    if options.cases and path.exists():  # the other cases stay as they were measured
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows = sorted([row for row in kept["cases"] if row["case"] not in names] + rows, key=lambda row: row["case"])
    write_atomic(path, json.dumps({"machine": described, "cases": rows, "left_out": left_out}, indent=1) + "\n")
    print(f"written to {path}; `make tables` renders it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
