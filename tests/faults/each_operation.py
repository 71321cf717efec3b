"""Runs a small digits sweep in forked children that die at their n-th file operation, n = 1, 2, 3, ...; one import for all.

python tests/faults/each_operation.py FOLDER    prints one JSON object: how many died, and what they left when all was done.
"""
# ruff: noqa: E402

import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "faults")]

import sitecustomize as faults

from tests.system.faults import comparable, kept
from vera.config import RunConfig, compose
from vera.records.store import Store
from vera.run import execute, prepare

SETTINGS = ["scale=rehearsal", "device=cpu", "progress=false", "train.epochs=1", "train.max_steps=null", "train.batch_size=25"]


def runs(folder: Path) -> list[RunConfig]:
    where = [f"results_dir={folder / 'results'}", f"work_dir={folder / 'work'}", f"cache_dir={folder / 'cache'}"]
    settings = [*SETTINGS, "train.checkpoint_seconds=0", "train.save=true"]
    return [compose([*settings, f"method={method}", *where]) for method in ("vera", "lora")]


def child(folder: Path, at: int | None) -> int:
    """Compute in a fork what is missing; its exit status."""
    pid = os.fork()
    if pid == 0:
        if at is not None:
            faults.arm(at)
        for run in runs(folder):
            execute(run)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> None:
    whole, killed = folder / "whole", folder / "killed"
    died = at = 0
    for run in runs(whole):
        prepare(run)  # all that it imports is there for the children
    if child(whole, None) != 0:
        raise SystemExit("the uninterrupted runs failed")
    while True:
        at += 1
        # Every third start is one that comes far, so that later operations get their turn.
        status = child(killed, at if at % 3 else 3 * at)
        if status == 0:
            break
        if status != -signal.SIGKILL:
            raise SystemExit(f"a killed run did not go on: exit status {status}")
        died += 1
    first, second = ([comparable(json.loads(r.to_json())) for r in Store(f / "results").records()] for f in (whole, killed))
    same = first == second and kept(whole / "work") == kept(killed / "work")
    left = [
        str(path.relative_to(killed)) for path in killed.rglob("*") if path.name.startswith(".") or path.parent.name == "claims"
    ]
    print(json.dumps({"died": died, "same": same, "runs": len(second), "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
