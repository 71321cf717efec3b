"""Time, memory and file size against PEFT, as ratios of alternating runs in one process; results go to results/bench.

python scripts/bench.py              all cases, on the GPU if there is one, else on the CPU (minutes)
python scripts/bench.py a b          some: a RoBERTa-base, b RoBERTa-large, c Llama, d mixed batches, e files, f an epoch,
                                     g inference after merging, h banks of 10,000 and 100,000 adapters
python scripts/bench.py h --banks 200,500                            case h with fewer adapters

A case measured again by the same code counts as another occasion beside those before: a goal for a time wants three.
"""

import argparse
import json
import os
import re
from pathlib import Path

from vera.commands import ROOT
from vera.errors import VeraError
from vera.io.files import write_atomic

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CASES = list("abcdefgh")


def file_of(described: dict) -> str:
    """The name of a machine's file in results/bench."""
    return re.sub(r"[^a-z0-9]+", "-", f"{described['device']} {described['threads']} threads".lower()).strip("-") + ".json"


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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

    from bench.cases import NeedsMore, measure_case
    from bench.measure import accumulated, code, machine, now

    if options.device == "cuda" and not torch.cuda.is_available():
        raise VeraError("--device cuda: this machine has no CUDA GPU that torch can use")
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("On a CPU: fewer layers and a smaller Llama. The full-size cases need a GPU.")
    described = machine(device)
    print(f"{described['device']}, {described['threads']} threads")
    path = options.out / file_of(described)
    kept: dict = {}
    rows, left_out = [], []
    if path.exists():  # cases that are not measured now stay as they are
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows, left_out = kept["cases"], kept["left_out"]
    made_by = code()
    for name in sorted(set(options.cases)) or CASES:
        before = [row for row in rows if row["case"] == name]
        rows, left_out = ([entry for entry in entries if entry["case"] != name] for entries in (rows, left_out))
        try:
            found = measure_case(name, device, options.data, options.banks)
        except NeedsMore as error:
            found = []
            left_out = [*left_out, {"case": name, "why": str(error)}]
            print(f"({name}) not measured, needs {error}")
        except VeraError as error:
            raise VeraError(f"case {name}: {error}") from None
        found = accumulated(before, found, now(), made_by)
        for row in found:
            goal = "" if row["goal"] is None else f"   goal {row['goal']:.2f}"
            low, high = row["interval"]
            ratio = f"{row['ratio']['median']:.3f} [{low:.3f}, {high:.3f}] on {len(row['occasions'])} occasions{goal}"
            print(f"({name}) {row['what']}: {ratio}   {row['shapes']}", flush=True)
        rows = sorted([*rows, *found], key=lambda row: row["case"])
        content = {**kept, "machine": described, "cases": rows, "left_out": left_out}
        write_atomic(path, json.dumps(content, indent=1) + "\n")  # after each case: what is measured is kept
    print(f"written to {path}; `make tables` renders it")
    return 0
