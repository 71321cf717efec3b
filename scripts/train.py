"""One run, or a sweep of runs, each leaving one record.

python scripts/train.py model=digits_vit task=digits method=vera seed=0
python scripts/train.py -m method=lora,vera seed=0,1,2,3,4
python scripts/train.py sweep=glue_large
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach main() below, which prints one line instead of a traceback
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vera.config import CONF_DIR, RunConfig, explain, from_hydra, refuse_secrets
from vera.errors import ConfigError, VeraError, redacted
from vera.store import Store

log = logging.getLogger("vera")


MAIN_PROCESS = "VERA_MAIN_PROCESS"
failures: list[str] = []


class RunFailed(Exception):
    """How a launcher's worker process tells this one that a run failed, after its line has been printed."""


def train(cfg: DictConfig, run: RunConfig) -> str:
    """The run's record, computed when it is not there, as a line."""
    began = time.monotonic()
    record = Store(run.results_dir).find(run.run_name)
    computed = record is None
    if computed:
        from vera.run import execute  # brings torch, which a finished run does not need

        record = execute(run, sys.stderr.isatty() if run.progress == "auto" else run.progress)
    best, last = record.scores.best, record.scores.last
    primary = record.scores.primary
    outcome = f"{primary} {best.metrics[primary]:.4f} (best, epoch {best.epoch}) {last.metrics[primary]:.4f} (last)"
    return f"{record.name}  {outcome}  {f'{time.monotonic() - began:.1f} s' if computed else 'already done'}"


def each(work: Callable[[DictConfig, RunConfig], str]) -> Callable[[], None]:
    """Hydra's entry point that does `work` for each composed run and logs its line, or the one line of its error."""

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="run")
    def one(cfg: DictConfig) -> None:
        set_up_logging()
        run = None
        try:
            run = from_hydra(cfg)
            line = work(cfg, run)
        except VeraError as error:
            log.error("error: %s%s", f"{run.run_name}: " if run else "", error)
            if os.environ.get(MAIN_PROCESS) != str(os.getpid()):
                raise RunFailed(str(error)) from None
            failures.append(str(error))
            return
        log.info("%s", line)

    return one


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


def check_arguments(arguments: list[str]) -> None:
    """Raises ConfigError for a secret, which Hydra would keep, and for a class given by name, which it would import."""
    refuse_secrets((f"argument {index} ({a.partition('=')[0]})", a) for index, a in enumerate(arguments, start=1))
    for argument in arguments:
        if "_target_" in argument:
            raise ConfigError(f"{argument}: classes are not given on the command line; choose a component such as method=lora")


def main(work: Callable[[DictConfig, RunConfig], str] = train) -> int:
    set_up_logging()
    os.environ[MAIN_PROCESS] = str(os.getpid())
    try:
        check_arguments(sys.argv[1:])
        sys.argv[1:] = for_each_run(sys.argv[1:])
        each(work)()
    except RunFailed:
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; the same command goes on from here")
        return 130
    except (HydraException, OmegaConfBaseException, ValueError, ConfigError) as error:
        log.error("error: %s", redacted(explain(error)))
        return 2
    if len(failures) > 1:
        log.error("error: %d runs failed; see the lines above and results_dir/failed", len(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
