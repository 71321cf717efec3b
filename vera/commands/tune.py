"""Search a method's settings on validation rows, and write what is found into its recipe.

python scripts/tune.py model=minilm task=stsb method=vera train.lr=1e-4..1e-1:log:7 train.head_lr=1e-3,4e-3 --seeds 100,101
    low..high[:log][:points] is a range, a,b a list; any other KEY=VALUE holds for every trial. The runs are records in
    results/tune: the same command goes on where it was, and started several times its workers share them.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from experiments.engine import tuning
from experiments.engine.render import show
from vera.commands import parser_of
from vera.commands import train as training
from vera.config import RunConfig, own_conf
from vera.config.paths import readable
from vera.errors import Claimed, ConfigError
from vera.io.files import locked, write_atomic
from vera.records import interrupt

ERROR = 2
log = logging.getLogger("vera")


def numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 100,101") from None


def validation(text: str) -> str:
    if text != "validation":
        raise argparse.ArgumentTypeError(
            f"{text}: settings are chosen on validation rows (task.validation); test rows choose nothing"
        )
    return text


def trial(cfg: DictConfig | None, run: RunConfig) -> str:
    """As `train`, but whoever looks on does not choose by the test set either: its score stays in the record."""
    return training.train(cfg, run, test=False)


def compute(runs: Sequence[RunConfig]) -> None:
    """Make the records that are missing; what another worker computes is waited for. Raises ConfigError when runs fail."""
    for run in runs:
        try:
            training.attempt(trial, None, run)
        except Claimed:
            training.elsewhere.append((None, run))
    training.wait(trial)
    if training.failures:
        raise ConfigError(f"{len(training.failures)} runs failed, so that nothing is chosen; the same command tries them again")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="model=, task=, method=, what is searched, what is fixed")
    parser.add_argument("--seeds", type=numbers, default=[100, 101], help="of every trial (default: 100,101)")
    parser.add_argument("--search", choices=["grid", "random", "tpe"], help="default: the grid, or tpe where --trials is fewer")
    parser.add_argument("--trials", type=int, help="how many to try")
    parser.add_argument("--steps", type=numbers, default=[], help="of training; several: successive halving, a third goes on")
    parser.add_argument("--on", type=validation, help="the rows that choose: validation")
    parser.add_argument(
        "--dry-run", action="store_true", help="compute and write nothing; show what there is and would be written"
    )
    parser.add_argument(
        "--replace", action="store_true", help="write the recipe although there are records of the method on the task"
    )
    options = parser.parse_intermixed_args()
    os.environ[training.MAIN_PROCESS] = str(os.getpid())
    training.set_up_logging()
    training.failures.clear()
    training.check_arguments(options.words)
    stray = [word for word in options.words if "=" not in word]
    if stray:
        raise ConfigError(f"{stray[0]!r} is not KEY=VALUE")
    search = tuning.read(readable(options.words), options.seeds, options.search, options.trials, options.steps)
    held, why = tuning.in_use(search), tuning.stays(search)
    if why and not options.dry_run:
        log.info("%s: no recipe will be written, the best trial is told at the end", why)
    elif held and not (options.replace or options.dry_run):
        log.info("results/runs holds %d records of this method on this task: no recipe will be written without --replace", held)
    try:
        with interrupt.handled():
            tried = tuning.carry_out(search, (lambda runs: None) if options.dry_run else compute)
    except interrupt.Interrupted as left:
        print(left, file=sys.stderr)
        return left.status
    show(tuning.table(tried, search))
    if options.dry_run and tuning.missing(tried, search):
        return 0
    if options.dry_run:
        path, text = tuning.recipe_of(tried, search)
        print(f"{path} would be:\n\n{text}", end="")
        return 0
    busy = ConfigError("another search is writing a recipe just now; the same command goes on from here")
    with locked(own_conf() / "recipe", "tune", busy):
        path, text = tuning.recipe_of(tried, search)
        used = tuning.in_use(search)
        if used and not options.replace:
            raise ConfigError(
                f"results/runs holds {used} records of this method on this task, and tables would lose "
                f"those that the present recipe made; {path.name} is not written (--dry-run shows it, --replace writes it)"
            )
        write_atomic(path, text)
    print(f"written: {path}")
    return 0
