"""What a results folder of many records costs: synthetic ones in a temporary folder, then tables, plan and a finished sweep.

python tests/system/scale.py                      100,000 records
python tests/system/scale.py --records 20000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import count, cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.engine.published import load, names
from experiments.engine.render import Table, show
from experiments.engine.sweeps import cells, prepare, read_sweep, sweeps
from vera.config import cell_id, run_name
from vera.records.record import parse

GOALS = {"tables": 20.0, "plan": 5.0, "skip": 0.05}


def write_records(folder: Path, wanted: int) -> tuple[int, int]:
    """`wanted` records: every run of the paper's sweeps, and further learning rates of the same cells with five seeds each.

    Every number in them is made up; their shape is that of this repository's own records. Returns the paper's runs and bytes.
    """
    template = json.loads(sorted((ROOT / "results" / "runs").glob("digits_vit--digits--vera--*.json"))[0].read_text())
    scores = _metrics()
    paper = {name: (cell.run, seed) for sweep in sweeps() for cell in cells(sweep) for name, seed in _runs(cell)}
    (folder / "runs").mkdir(parents=True)
    written = size = 0

    def write(config: dict, follows: list[str], named: tuple[str, str, str], seed: int, identity: str) -> None:
        nonlocal written, size
        metrics = {name: 0.5 + 0.4 * ((seed * 7919 + int(identity[:6], 16)) % 1000) / 1000 for name in scores[named[1]]}
        primary = sorted(metrics)[0]
        epochs = [{"epoch": e, "step": 10 * e, "train_loss": 1 / e, "metrics": metrics} for e in range(1, 11)]
        record = {
            **template,
            "run": dict(zip(("model", "task", "method"), named, strict=True))
            | {"seed": seed, "cell_id": identity, "follows_seed": follows, "config": config},
            "scores": {
                "primary": primary,
                "best": {"epoch": 1, "metrics": metrics},
                "last": {"epoch": 10, "metrics": metrics},
                "best_each": {name: {"epoch": 1, "metrics": {name: value}} for name, value in metrics.items()},
                "history": epochs,
            },
        }
        record.pop("outputs", None)
        text = json.dumps(record, indent=1)
        (folder / "runs" / f"{run_name(*named, identity, seed)}.json").write_text(text)
        written, size = written + 1, size + len(text)

    runs = {}
    for run, seed in paper.values():
        named = (run.model["name"], run.task["name"], run.method["name"])
        config = json.loads(json.dumps(run.scientific))
        runs[run.cell_id] = (config, run.follows_seed, named)
        write(config, run.follows_seed, named, seed, run.cell_id)
    own = written
    for number, (config, follows, named) in zip(count(1), cycle(runs.values()), strict=False):
        config = {**config, "train": {**config["train"], "lr": 1e-6 * number + 1e-9}}
        identity = cell_id(config, follows)
        for seed in islice(range(5), max(0, wanted - written)):
            write(config, follows, named, seed, identity)
        if written >= wanted:
            return own, size
    raise AssertionError("the sweeps of the paper have no cells")


def _runs(cell) -> zip:
    return zip(cell.names(), cell.seeds, strict=True)


def _metrics() -> dict[str, set[str]]:
    """The metrics that the published tables ask of each task, those of single rows included, beside the usual ones."""
    found = defaultdict(lambda: {"accuracy", "f1", "matthews_correlation", "pearson"})
    for name in names():
        for column in load(name).columns.values():
            found[column.task] |= {column.score, *column.also} - {None}
    return found


def measure(command: list[str], times: int = 1) -> tuple[float, float]:
    """Shortest seconds of a command over some runs, and the largest memory in MiB that a process of it took."""
    seconds = []
    peak = 0.0
    for _ in range(times):
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"error: {' '.join(command)}: {output.decode()[-2000:]}")
        seconds.append(time.perf_counter() - began)
        peak = max(peak, usage.ru_maxrss / 1024)
    return min(seconds), peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000, help="how many (default: 100000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        prepare()
        began = time.perf_counter()
        own, size = write_records(results, options.records)
        print(f"{options.records:,} records, {size / 2**30:.2f} GiB, {own:,} of them in the paper's tables")
        print(f"written in {time.perf_counter() - began:.0f} s to a temporary folder")
        tables = ["scripts/tables.py", "--results", str(results), "--out", f"{folder}/out"]
        train = ["scripts/train.py", "sweep=glue_large", "method=vera", f"results_dir={results}", f"work_dir={folder}/work"]
        for command in (tables, ["scripts/plan.py"], train):  # what is compiled and composed once
            measure(command)
        rows = []
        for label, goal, command in (
            ("make tables", GOALS["tables"], tables),
            ("make plan", GOALS["plan"], ["scripts/plan.py", "--results", str(results)]),
            ("make status", None, ["scripts/status.py", "--results", str(results), "--once"]),
        ):
            seconds, memory = measure(command, 2)
            rows.append([label, f"{seconds:.1f} s", f"{goal:g} s" if goal else "-", f"{memory:.0f} MiB"])
        seconds, memory = measure(train, 3)
        runs = sum(len(cell.seeds) for cell in cells(read_sweep("glue_large"), ["method=vera"]))
        what = f"a finished run in a sweep of {runs}, start of Python included"
        rows.append([what, f"{1000 * seconds / runs:.0f} ms", f"{1000 * GOALS['skip']:g} ms", f"{memory:.0f} MiB"])
        texts = [path.read_bytes() for path in islice((results / "runs").iterdir(), 2000)]
        began = time.perf_counter()
        for text in texts:
            parse(text, "a record")
        each = (time.perf_counter() - began) / len(texts)
        rows.append(["checking one record", f"{1000 * each:.2f} ms", "-", "-"])
        show(Table("scale", "A large results folder", ["What", "Time", "Goal", "Peak memory"], rows, [], []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
