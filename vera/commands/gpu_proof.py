"""What a GPU shows in one go: tests marked gpu, the bench at full size, Table 12, a whole epoch against Trainer + PEFT.

python scripts/gpu_proof.py              on a GPU: below 25 minutes on an H100, results to results/bench
python scripts/gpu_proof.py --toy        the same with tiny models anywhere, for typing errors; written where --out says

Needs a checkout and the packages below; without Hydra, datasets, evaluate, wandb and bitsandbytes it says so and does without.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vera.commands import ROOT
from vera.errors import VeraError

NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "pydantic", "psutil", "rich", "yaml", "numpy", "scipy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="tests, a to h, table12, epoch, step (default: all)")
    parser.add_argument("--toy", action="store_true", help="tiny models, on the CPU where there is no GPU")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results (default: results/bench; --toy: none)")
    parser.add_argument("--minutes", type=float, default=25.0, help="no part is begun after so many minutes (25)")
    options = parser.parse_args()
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
    report = Report("cuda" if gpu else "cpu", options.toy, out)
    parts = report.parts()
    unknown = set(options.parts) - parts.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    began = time.monotonic()
    for name in options.parts or parts:
        if time.monotonic() - began > 60 * options.minutes:
            report.leave_out(name, f"more than {options.minutes:g} minutes")
            continue
        since = time.monotonic()
        report.run(name, parts[name])
        print(f"{name}: {time.monotonic() - since:.0f} s", flush=True)
    if report.path is not None:
        print(f"written to {report.path}; `make tables` renders it")
    return 1 if report.failed else 0


class Report:
    """What is measured, written after each part so that nothing is lost."""

    def __init__(self, device: str, toy: bool, out: Path | None):
        from bench.measure import code, machine
        from vera.commands.bench import file_of

        self.device, self.toy, self.failed = device, toy, False
        self.machine, self.code = machine(device), code()
        self.path = None if out is None else out / file_of(self.machine)
        self.out = out
        self.content: dict[str, Any] = {"machine": self.machine, "cases": [], "left_out": [], "proof": {}}
        if self.path is not None and self.path.exists():
            self.content |= json.loads(self.path.read_text(encoding="utf-8"))

    def parts(self) -> dict[str, Callable[[], None]]:
        cases = {name: lambda name=name: self.case(name) for name in "abcdegh"}  # f is of real data; `epoch` is its like
        return {"tests": self.tests, **cases, "table12": self.table12, "epoch": self.epoch, "step": self.step}

    def run(self, name: str, part: Callable[[], None]) -> None:
        """One part; what goes wrong in it is said and kept, and the others go on."""
        from bench.cases import NeedsMore

        self.content["left_out"] = [entry for entry in self.content["left_out"] if entry["case"] != name]
        try:
            part()
        except NeedsMore as error:
            self.leave_out(name, str(error))
        except Exception as error:
            self.failed = True
            self.leave_out(name, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        self.write()

    def leave_out(self, name: str, why: str) -> None:
        print(f"({name}) not measured: {why}", file=sys.stderr, flush=True)
        self.content["left_out"].append({"case": name, "why": why})

    def rows(self, case: str, found: list[dict[str, Any]]) -> None:
        """New rows of a case in the place of the old, which they count with where they are of the same code."""
        from bench.measure import accumulated, now

        before = [row for row in self.content["cases"] if row["case"] == case]
        rest = [row for row in self.content["cases"] if row["case"] != case]
        made = accumulated(before, found, now(), self.code)
        self.content["cases"] = sorted([*rest, *made], key=lambda row: row["case"])
        for row in made:
            print(f"({case}) {row['what']}: {row['ratio']['median']:.3f}   {row['shapes']}", flush=True)

    def write(self) -> None:
        from vera.io.files import write_atomic

        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self.content, indent=1) + "\n")

    def tests(self) -> None:
        from bench.proof import tests

        said = tests()
        print(said, flush=True)
        self.content["proof"]["tests"] = said

    def case(self, name: str) -> None:
        from bench.cases import measure_case

        banks = (4, 6) if self.toy else (1_000, 10_000)
        self.rows(name, measure_case(name, self.device, None, banks, self.toy))

    def table12(self) -> None:
        from bench.table12 import compare

        names = {"steps": 1, "warmup": 0, "rounds": 1, "length": 8} if self.toy else {"steps": 3, "warmup": 1, "rounds": 6}
        measured = compare(argparse.Namespace(**{"length": 512, **names}, tiny=self.toy))
        for row in measured["cases"]:
            print(f"({row['case']}) VeRA / LoRA, {row['what']}: {row['ratio']['median']:.3f}   {row['shapes']}", flush=True)
        if self.out is not None:
            from vera.io.files import write_atomic

            write_atomic(self.out / "table12.json", json.dumps(measured, indent=1) + "\n")

    def epoch(self) -> None:
        from bench.proof import whole_epoch

        found, looked = whole_epoch(self.device, 1 if self.toy else 3, self.toy)
        self.rows("p", found)
        self.content["proof"]["epoch"] = looked
        print(f"idle in an epoch: {looked['idle']}", flush=True)

    def step(self) -> None:
        from bench.proof import step_profile

        self.content["proof"]["step"] = found = step_profile(self.device, self.toy)
        for name, seconds in found["kernels"].items():
            print(f"{1000 * seconds:9.3f} ms  {name}", flush=True)
