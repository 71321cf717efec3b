"""What a GPU shows in one go: tests marked gpu, the bench at full size, Table 12, a whole epoch against Trainer + PEFT.

python scripts/gpu_proof.py              on a GPU: below 25 minutes on an H100, results to results/bench
python scripts/gpu_proof.py --toy        the same with tiny models anywhere, for typing errors; written where --out says

Needs a checkout and the packages below; without Hydra, datasets, evaluate, wandb and bitsandbytes it says so and does without.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vera.commands import ROOT, parser_of
from vera.errors import VeraError, one_line

NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "pydantic", "psutil", "rich", "yaml", "numpy", "scipy")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="tests, a to h, table12, epoch, step (default: all)")
    parser.add_argument("--toy", action="store_true", help="tiny models, on the CPU where there is no GPU")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results (default: results/bench; --toy: none)")
    parser.add_argument("--minutes", type=float, default=25.0, help="no part is begun after so many minutes (25)")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: it must be positive")
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise VeraError(f"missing: {', '.join(lacking)} (pip install {' '.join(lacking).replace('yaml', 'pyyaml')})")
    import torch

    from bench import proof

    gpu = torch.cuda.is_available()
    if not gpu and not options.toy:
        raise VeraError("this machine has no GPU that torch can use; --toy runs the same with tiny models on a CPU")
    lacking = proof.missing(proof.OPTIONAL)
    print(f"not installed, and done without: {', '.join(lacking) or 'nothing'}", flush=True)
    out = options.out or (None if options.toy else ROOT / "results" / "bench")
    made = Proof("cuda" if gpu else "cpu", options.toy, out)
    parts, report = made.parts(), made.report
    unknown = set(options.parts) - parts.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    began = time.monotonic()
    for name in options.parts or parts:
        if time.monotonic() - began > 60 * options.minutes:
            report.lacks(name, f"more than {options.minutes:g} minutes")
            continue
        since = time.monotonic()
        made.run(name, parts[name])
        print(f"{name}: {time.monotonic() - since:.0f} s", flush=True)
    if report.path is not None:
        print(f"written to {report.path}; `make tables` renders it")
    return 1 if made.failed else 0


class Proof:
    """Its parts, and the report that they go to."""

    def __init__(self, device: str, toy: bool, out: Path | None):
        from bench.report import Report

        self.device, self.toy, self.out, self.failed = device, toy, out, False
        self.report = Report(device, out)

    def parts(self) -> dict[str, Callable[[], None]]:
        cases = {name: lambda name=name: self.case(name) for name in "abcdegh"}  # f is of real data; `epoch` is its like
        return {"tests": self.tests, **cases, "table12": self.table12, "epoch": self.epoch, "step": self.step}

    def run(self, name: str, part: Callable[[], None]) -> None:
        """One part; what goes wrong in it is said and kept, and the others go on."""
        try:
            self.report.part(name, part)
        except Exception as error:
            self.failed = True
            self.report.left_out(name, f"{type(error).__name__}: {one_line(error, 500)}")
            self.report.write()

    def found(self, name: str, value: Any) -> None:
        """Keep what is no ratio, with the versions that it was found with."""
        kept = self.report.content.setdefault("proof", {})
        kept[name] = value
        kept["versions"] = {**kept.get("versions", {}), name: self.report.machine["versions"]}

    def tests(self) -> None:
        from bench.proof import tests

        said = tests()
        print(said, flush=True)
        self.found("tests", said)

    def case(self, name: str) -> None:
        from bench.cases import measure_case

        banks = (4, 6) if self.toy else (1_000, 10_000)
        self.report.rows(name, measure_case(name, self.device, None, banks, self.toy))

    def table12(self) -> None:
        from bench.table12 import compare

        names = {"steps": 1, "warmup": 0, "rounds": 1, "length": 8} if self.toy else {"steps": 3, "warmup": 1, "rounds": 6}
        measured = compare(argparse.Namespace(**{"length": 512, **names}, tiny=self.toy))
        for row in measured["cases"]:
            print(f"({row['case']}) VeRA / LoRA, {row['what']}: {row['ratio']['median']:.3f}   {row['shapes']}", flush=True)
        if self.out is not None:
            from vera.io.files import write_atomic

            write_atomic(self.out / "table12.json", json.dumps(measured, indent=1) + "\n")
        self.found("table12", "table12.json")

    def epoch(self) -> None:
        from bench.proof import whole_epoch

        found, looked = whole_epoch(self.device, 1 if self.toy else 3, self.toy)
        self.report.rows("p", found)
        self.found("epoch", looked)
        print(f"idle in an epoch: {looked['idle']}", flush=True)
        if "cuda_graphs" in looked:
            print(f"idle in one with train.cuda_graphs: {looked['cuda_graphs']['idle']}", flush=True)

    def step(self) -> None:
        from bench.proof import step_profile

        found = step_profile(self.device, self.toy)
        self.found("step", found)
        for name, seconds in found["kernels"].items():
            print(f"{1000 * seconds:9.3f} ms  {name}", flush=True)
