"""Every sweep at scale=rehearsal: tiny random models, synthetic data, two steps, and the answers of
those that answer questions; then every table from those records.

python scripts/rehearse.py                     all sweeps, two at a time
python scripts/rehearse.py glue_base demo      some of them
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from experiments.engine import arguments
from experiments.engine.plan import REHEARSAL
from experiments.engine.sweeps import read_sweep, sweeps
from vera.commands import ROOT, parser_of, whole
from vera.config import choices, resolve
from vera.project import project


def rehearse(sweep: str, added: list[str], answering: bool, results: str, overrides: list[str]) -> tuple[str, int, float, str]:
    """(sweep, exit status, seconds, what it wrote to stderr); one thread, since two sweeps run at a time."""
    began = time.monotonic()
    keys = [f"sweep={sweep}", *added, *REHEARSAL, f"results_dir={results}", "device=cpu", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for script in ("train.py", "answer.py") if answering else ("train.py",):
        command = [sys.executable, str(ROOT / "scripts" / script), *keys]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            break
    return " ".join([sweep, *added]), done.returncode, time.monotonic() - began, done.stderr


def rehearsed(sweep: str) -> list[list[str]]:
    """What to add to a sweep for each of its rehearsals: nothing, and the model and task of another scale that it has."""
    stand_ins = []
    for scale in read_sweep(sweep).scales:
        chosen = resolve("run", [f"scale={scale}"])
        stand_ins.append([f"{axis}={chosen[axis]['name']}" for axis in ("model", "task")])
    return [[], *stand_ins]


def answers(sweep: str) -> bool:
    """Whether its runs answer questions."""
    return "questions" in (resolve("run", [f"sweep={sweep}"]).get("answers") or {})


def main() -> int:
    parser = parser_of(__doc__)
    said = f"which of {', '.join(choices('sweep'))}; or KEY=VALUE, a key of every run"
    parser.add_argument("words", nargs="*", metavar="SWEEP", help=said)
    parser.add_argument("--results", default="results/scratch", help="folder for the records (default: results/scratch)")
    parser.add_argument("--jobs", type=whole(1), default=2, help="sweeps at a time (default: 2)")
    arguments.overrides(parser)
    options = parser.parse_intermixed_args()
    named, keys = arguments.parted(options.words)
    overrides = arguments.keys_of(parser, options, [*keys, *options.overrides])
    unknown = set(named) - set(choices("sweep"))
    if unknown:
        parser.error(f"no such sweep: {', '.join(sorted(unknown))}; there are {', '.join(choices('sweep'))}")
    began = time.monotonic()
    errors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        own = [sweep.name for sweep in sweeps()] if project() else choices("sweep")
        every = [(s, added, answers(s)) for s in named or dict.fromkeys(own) for added in rehearsed(s)]
        for job in [pool.submit(rehearse, *one, options.results, overrides) for one in every]:
            sweep, status, seconds, stderr = job.result()
            print(f"{'done' if status == 0 else 'FAILED':12}{sweep:44}{seconds:6.0f} s", flush=True)
            if status:
                errors += 1
                print("\n".join(line for line in stderr.splitlines() if line.startswith("error")), file=sys.stderr)
    tables = [str(ROOT / "scripts" / "tables.py"), "--results", options.results, "--out", options.results]
    given = [part for override in (*REHEARSAL, *overrides) for part in ("--with", override)]
    made = subprocess.run([sys.executable, *tables, *given])
    print(f"{time.monotonic() - began:.0f} s; records in {options.results}/runs, tables in {options.results}/tables")
    return 1 if errors or made.returncode else 0
