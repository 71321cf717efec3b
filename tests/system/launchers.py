"""The digits sweep (LoRA and VeRA, two seeds) through every launcher: all end with the local sweep's table, byte for byte.

python tests/system/launchers.py                  all of them
python tests/system/launchers.py joblib ddp       some of them

Each sweep has a results folder of its own below a temporary one, two workers, and one thread a worker; only the pretrained
backbone is shared. Two processes on one run (ddp) add up in another order than one, so their losses differ by rounding, and a
prediction may tip over; there the losses, and the best and the last epoch's metrics, have to be within 1e-4.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vera.records.store import Store

SWEEP = ["sweep=demo", "method=lora,vera", "seed=0,1", "device=cpu"]
TOLERANCE = 1e-4
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
# The package that a launcher needs and its extra; what goes before the script, and its keys.
LAUNCHERS = {
    "local": (None, None, [], []),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib", [], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
    "submitit": (
        "hydra_plugins.hydra_submitit_launcher",
        "slurm",
        [],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"],
    ),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray", [], ["hydra/launcher=ray", "hydra.launcher.ray.remote.num_gpus=0"]),
    "ddp": (None, None, LAUNCH, []),
    "workers": (None, None, [], ["workers=2"]),
}


def installed(package: str | None) -> bool:
    try:
        return package is None or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def sweep(name: str, folder: Path, cache: str, environment: dict[str, str]) -> tuple[subprocess.CompletedProcess, float]:
    """The finished sweep and its seconds."""
    _, _, before, keys = LAUNCHERS[name]
    command = [sys.executable, *before, str(ROOT / "scripts" / "train.py"), *SWEEP, *keys]
    command += [f"results_dir={folder / name}", f"work_dir={folder / name / 'work'}", f"cache_dir={cache}"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    return done, time.monotonic() - began


def table(folder: Path) -> dict[str, bytes]:
    """The digits table of a results folder, by file name."""
    script = str(ROOT / "scripts" / "tables.py")
    command = [sys.executable, script, "digits", "--results", str(folder), "--out", str(folder / "made")]
    subprocess.run(command, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in sorted((folder / "made" / "tables").iterdir())}


def furthest(one: Path, other: Path) -> tuple[float, float, float]:
    """The largest difference between two folders with the same runs: of an epoch's loss, of the metrics of the best and the
    last epoch, of the metrics of any epoch."""
    losses, scores, metrics = [0.0], [0.0], [0.0]
    for a, b in zip(Store(one).records(), Store(other).records(), strict=True):
        for x, y in zip(a.scores.history, b.scores.history, strict=True):
            losses.append(abs(x.train_loss - y.train_loss))
            metrics += [abs(x.metrics[key] - y.metrics[key]) for key in x.metrics]
        for x, y in ((a.scores.best, b.scores.best), (a.scores.last, b.scores.last)):
            scores += [abs(x.metrics[key] - y.metrics[key]) for key in x.metrics]
    return max(losses), max(scores), max(metrics)


class Cluster:
    """A Ray cluster of two nodes with one CPU each on this machine, for as long as the block lasts."""

    def __enter__(self) -> dict[str, str]:
        from ray.cluster_utils import Cluster as RayCluster

        self.cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.cluster.add_node(num_cpus=1)
        return {"RAY_ADDRESS": self.cluster.address}

    def __exit__(self, *error):
        self.cluster.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(LAUNCHERS)}")
    parser.add_argument("--cache", default=".cache", help="where the pretrained backbone is kept (default: .cache)")
    options = parser.parse_args()
    unknown = set(options.names) - LAUNCHERS.keys()
    if unknown:
        parser.error(f"no such launcher: {', '.join(sorted(unknown))}; there are {', '.join(LAUNCHERS)}")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    cache = str(Path(options.cache).absolute())
    errors = 0
    with tempfile.TemporaryDirectory(prefix="vera-launchers-") as scratch:
        folder = Path(scratch)
        wanted: dict[str, bytes] = {}
        for name in LAUNCHERS:
            if name != "local" and options.names and name not in options.names:
                continue
            package, extra, _, _ = LAUNCHERS[name]
            if not installed(package):
                print(f"{name:10}SKIPPED: not installed; pip install -c constraints.txt -e '.[{extra}]'", flush=True)
                continue
            if name == "ray":
                with Cluster() as address:
                    done, seconds = sweep(name, folder, cache, {**environment, **address})
            else:
                done, seconds = sweep(name, folder, cache, environment)
            records = Store(folder / name).records()
            if done.returncode or len(records) != 4:
                errors += 1
                print(f"{name:10}FAILED: status {done.returncode}, {len(records)} records of 4\n{done.stderr}", flush=True)
                if name == "local":
                    break
                continue
            made = table(folder / name)
            wanted = wanted or made
            losses, scores, metrics = furthest(folder / name, folder / "local")
            same = made == wanted
            good = same and (max(losses, scores) <= TOLERANCE if name == "ddp" else max(losses, scores, metrics) == 0)
            errors += not good
            what = f"{'the same' if same else 'ANOTHER'} table ({sum(map(len, made.values()))} bytes in {len(made)} files)"
            what += f"; {len(records)} runs: losses within {losses:.1e}, "
            what += f"best and last metrics {scores:.1e}, any epoch's {metrics:.1e}"
            what += f"; processes a run: {records[0].cost.processes}, {seconds:.0f} s"
            print(f"{name:10}{what}{'' if good else '  DIFFERS'}", flush=True)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
