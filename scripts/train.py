"""One run, or a sweep of runs, each leaving one record.

python scripts/train.py model=digits_vit task=digits method=vera seed=0
python scripts/train.py -m method=lora,vera seed=0,1,2,3,4
python scripts/train.py sweep=glue_large
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports; main() takes over
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach main() below, which prints one line instead of a traceback
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vera import claims, interrupt
from vera.config import CONF_DIR, RunConfig, explain, from_hydra
from vera.errors import Claimed, VeraError
from vera.store import Store

log = logging.getLogger("vera")

MAIN_PROCESS = "VERA_MAIN_PROCESS"
POLL = 1.0  # seconds between two looks at runs of other workers
Work = Callable[[DictConfig, RunConfig], str]
failures: list[str] = []
elsewhere: list[tuple[DictConfig, RunConfig]] = []  # runs that other workers are computing


class RunFailed(Exception):
    """How a launcher's worker process tells this one that a run failed, after its line has been printed."""


def train(cfg: DictConfig, run: RunConfig) -> str:
    """The run's record, computed when it is not there, as a line."""
    began = time.monotonic()
    store = Store(run.results_dir)
    record = store.find(run.run_name)
    computed = record is None
    if computed or claims.remains(store.root, run.run_name):
        from vera.run import execute  # brings torch, which a finished run does not need

        record = execute(run, sys.stderr.isatty() if run.progress == "auto" else run.progress)
    best, last = record.scores.best, record.scores.last
    primary = record.scores.primary
    outcome = f"{primary} {best.metrics[primary]:.4f} (best, epoch {best.epoch}) {last.metrics[primary]:.4f} (last)"
    return f"{record.name}  {outcome}  {f'{time.monotonic() - began:.1f} s' if computed else 'already done'}"


def each(work: Work) -> Callable[[], None]:
    """Hydra's entry point that does `work` for each composed run and logs its line, or the one line of its error.

    A run that another worker is computing is kept for the end of the sweep; a launcher's worker process waits for it.
    """

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="run")
    def one(cfg: DictConfig) -> None:
        set_up_logging()
        try:
            run = from_hydra(cfg)
        except VeraError as error:
            failed(str(error))
            return
        with interrupt.handled():
            try:
                attempt(work, cfg, run)
            except Claimed as other:
                log.info("%s: %s; comes back to it", run.run_name, other)
                elsewhere.append((cfg, run))
                if not in_main_process():
                    wait(work)

    return one


def attempt(work: Work, cfg: DictConfig, run: RunConfig) -> None:
    """Do one run's work and log its line. Raises Claimed when another worker has the run."""
    try:
        line = work(cfg, run)
    except Claimed:
        raise
    except VeraError as error:
        failed(f"{run.run_name}: {error}")
    else:
        log.info("%s", line)


def wait(work: Work) -> None:
    """Until the runs that other workers compute are done; those that they leave are computed here."""
    while elsewhere:
        for item in list(elsewhere):
            elsewhere.remove(item)
            try:
                attempt(work, *item)
            except Claimed:
                elsewhere.append(item)
        if elsewhere:
            time.sleep(POLL)


def failed(line: str) -> None:
    log.error("error: %s", line)
    if not in_main_process():
        raise RunFailed(line)
    failures.append(line)


def in_main_process() -> bool:
    """Whether this is the process of the command, not a launcher's worker."""
    return os.environ.get(MAIN_PROCESS) == str(os.getpid())


def set_up_logging() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def for_each_run(arguments: list[str]) -> list[str]:
    """Let keys of a swept group be set for all its runs: task=rte,cola task.data_dir=/glue.

    Hydra first composes a sweep without its swept groups, so task.data_dir would be looked for in the default task. A sweep
    over one value is set run by run instead.
    """
    multirun = {"-m", "--multirun"} & set(arguments) or any(a.startswith("sweep=") for a in arguments)
    if not multirun:
        return arguments
    rewritten = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if (
            equals
            and not key.startswith("-")
            and key.lstrip("+").partition(".")[0] in ("model", "task", "method", "answers")
            and "." in key
        ):
            override = OverridesParser.create().parse_override(argument)
            if not override.is_sweep_override() and override.value() is not None:
                argument = f"{key}=choice({override.get_value_element_as_str()})"
        rewritten.append(argument)
    return rewritten


def main(work: Work = train) -> int:
    set_up_logging()
    os.environ[MAIN_PROCESS] = str(os.getpid())
    try:
        with interrupt.handled():
            sys.argv[1:] = for_each_run(sys.argv[1:])
            each(work)()
            wait(work)
    except RunFailed:
        return 1
    except interrupt.Interrupted as left:
        log.error("%s", left)
        return left.status
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        log.error("error: %s", explain(error))
        return 2
    except OSError as error:  # Hydra's own folder on a full disk
        log.error("error: %s", error)
        return 1
    if len(failures) > 1:
        log.error("error: %d runs failed; see the lines above and results_dir/failed", len(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
