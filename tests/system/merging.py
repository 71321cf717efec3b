"""What evaluation with merged weights under autocast does to the scores of PEFT's methods: best epochs, merged and as trained.

python tests/system/merging.py --seeds 0,1,2 model=minilm method=lora task=cola task.data_dir=/path/to/glue

of runs whose weights are in work_dir (train.save=true).
"""

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vera.config import RunConfig, build, compose
from vera.errors import RecordError, VeraError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as given to train.py, without seed")
    parser.add_argument("--seeds", default="0", help="of the runs, with commas (default: 0)")
    options = parser.parse_args()
    changes = []
    try:
        for seed in options.seeds.split(","):
            merged, trained, apart = scores(compose([*options.overrides, f"seed={seed}"]))
            changes.append(100 * (trained - merged))
            print(f"seed {seed}: merged {100 * merged:.2f}, as trained {100 * trained:.2f}; logits at most {apart:.3f} apart")
    except VeraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"as trained - merged: mean {statistics.fmean(changes):+.2f}, from {min(changes):+.2f} to {max(changes):+.2f} points")
    return 0


def scores(run: RunConfig) -> tuple[float, float, float]:
    """The primary metric of a run's best epoch, evaluated both ways, and the largest difference of a logit."""
    from vera.records.kept import kept
    from vera.records.store import Store
    from vera.seeds import seed_everything
    from vera.tasks.split import split
    from vera.train.evaluate import predict
    from vera.train.numerics import make_accelerator
    from vera.train.processes import Processes

    record = Store(run.results_dir).find(run.run_name)
    if record is None:
        raise RecordError(f"{run.results_dir} has no record of {run.run_name}")
    folder, _ = kept(record, run.work_dir, "best")
    model, task, method = build(run.model, "model"), build(run.task, "task"), build(run.method, "method")
    seed_everything(run.seed, "head")
    backbone = model.load(task.outputs, Path(run.cache_dir))
    method.load(backbone, model, folder)
    data = split(task, task.load(backbone, run.seed))
    accelerator = make_accelerator(run.device, run.train.precision)
    backbone.model.to(accelerator.device)
    parts = (accelerator, Processes(), backbone, method, task, data, run.train.eval_batch_size)
    found = [predict(*parts)]
    with mock.patch.object(type(method), "merged", lambda method, backbone: contextlib.nullcontext()):
        found.append(predict(*parts))
    merged, trained = (task.score(*predictions)[record.scores.primary] for predictions in found)
    return merged, trained, float((found[0][0].float() - found[1][0].float()).abs().max())


if __name__ == "__main__":
    sys.exit(main())
