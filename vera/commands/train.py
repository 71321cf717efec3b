"""One run, or a sweep of runs, each leaving one record.

python scripts/train.py model=digits_vit task=digits method=vera seed=0
python scripts/train.py -m method=lora,vera seed=0,1,2,3,4
python scripts/train.py sweep=glue_large
python scripts/train.py sweep=glue_large workers=auto     a worker on each GPU of this machine, or workers=4
"""

import logging
import os
import shutil
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vera.commands import ROOT
from vera.config import CONF_DIR, RunConfig, choices, explain, from_hydra, refuse_secrets
from vera.config.paths import readable
from vera.errors import Claimed, ConfigError, OutOfStep, VeraError, one_line, redacted
from vera.io.files import write_atomic
from vera.records import crew, interrupt, screen, sources, sweep, workers
from vera.records.record import Record
from vera.records.store import Store

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach main() below, which prints one line instead of a traceback
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # a line a run, also where two runs end alike
warnings.filterwarnings("ignore", message="(?s).*validated against ConfigStore schema")  # conf/hydra/launcher/ray.yaml

log = logging.getLogger("vera")

MAIN_PROCESS = "VERA_MAIN_PROCESS"
POLL = 1.0  # seconds between two looks at runs of other workers
Work = Callable[[DictConfig, RunConfig], str]
failures: list[str] = []
elsewhere: list[tuple[DictConfig, RunConfig]] = []  # runs that other workers are computing


class RunFailed(Exception):
    """How a launcher's worker process tells this one that a run failed, after its line has been printed."""


def train(cfg: DictConfig | None, run: RunConfig, test: bool = True) -> str:
    """The run's record, computed when it is not there, as a `line`."""
    began = time.monotonic()
    store = Store(run.results_dir)
    record = None if workers.launched() > 1 else store.find(run.run_name)  # several processes decide together
    if record is not None and not workers.remains(store.root, run.run_name) and not sources.unknown(run, record):
        return line(run, record, already(run, record), test)
    done = store.path(run.run_name).exists()
    from vera.run import execute  # brings torch, which a finished run does not need

    if run.device != "cpu":
        say_of_other_gpus()
    with screen.shown(label(run), run.progress if speaks() else False):
        record = execute(run)
    return line(run, record, already(run, record) if done else f"{time.monotonic() - began:.1f} s", test)


@lru_cache(maxsize=1)
def say_of_other_gpus() -> None:
    """Once: that a machine has more GPUs than this command uses."""
    from vera.train.processes import gpus

    alone = crew.WORKER not in os.environ and workers.launched() == 1 and in_main_process()
    if alone and len(gpus()) > 1:
        log.info("this machine has %d GPUs and this command uses one: workers=auto (make: WORKERS=auto) uses all", len(gpus()))


def already(run: RunConfig, record: Record) -> str:
    """That a run is done, and whether there was anything to compare its record with."""
    told = []
    if local := sources.not_given(run, record):
        told.append(f"from a local {', '.join(local)}, not given now and so not compared")
    if changed := sources.other_code(run, record):
        told.append(
            f"by other code of its {' and '.join(changed)}: raise `version` in its yaml where it computes something else"
        )
    return f"already done ({'; '.join(told)})" if told else "already done"


def skip(overrides: list[str]) -> bool:
    """Whether a job of a sweep has its record; then its line is printed."""
    found = sweep.finished(overrides)
    if found is not None:
        run, record = found
        log.info("%s", line(run, record, already(run, record)))
    return found is not None


def line(run: RunConfig, record: Record, remark: str, test: bool = True) -> str:
    """A record as one line, with or without the score of a test set."""
    if record.collapsed is not None:
        return f"{label(run)}  collapsed: {record.collapsed}  {remark}"
    best, last = record.scores.best, record.scores.last
    primary = record.scores.primary
    outcome = f"{primary} {best.metrics[primary]:.4f} (best, epoch {best.epoch}) {last.metrics[primary]:.4f} (last)"
    if test and record.scores.test is not None:
        outcome += f" {record.scores.test.metrics[primary]:.4f} (test, epoch {best.epoch})"
    return f"{label(run)}  {outcome}  {remark}"


def label(run: RunConfig) -> str:
    """A run's name, and what tells it from other variants of its model, task and method."""
    return f"{run.run_name}  {run.variant}" if run.variant else run.run_name


def each(work: Work, lines: str | None = None) -> Callable[[], None]:
    """Hydra's entry point that does `work` for each composed run and logs its line, or the one line of its error.

    A run that another worker is computing is kept for the end of the sweep; a launcher's worker process waits for it.
    lines: a folder where a job of another machine leaves its line, for `passed_on`.
    """

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="run")
    def one(cfg: DictConfig) -> None:
        each_one(work, cfg, lines)  # launchers take this function with a copy of all it names, but a module's as it is there

    return one


def each_one(work: Work, cfg: DictConfig, lines: str | None) -> None:
    """What `each` does for one run."""
    set_up_logging()
    if HydraConfig.get().job.chdir:  # relative paths are meant from where the command was started
        os.chdir(HydraConfig.get().runtime.cwd)
    try:
        _check_sweep()
        run = from_hydra(cfg, HydraConfig.get().overrides.task)
    except VeraError as error:
        failed(str(error), lines)
        return
    with interrupt.handled():
        try:
            attempt(work, cfg, run, lines)
        except Claimed as other:
            log.info("%s: %s; comes back to it", run.run_name, other)
            elsewhere.append((cfg, run))
            if not in_main_process():
                wait(work, lines)


def _check_sweep() -> None:
    """Raises ConfigError for a sweep's yaml that is none, so that Hydra has taken it for one run's."""
    asked = HydraConfig.get()
    name = asked.runtime.choices.get("sweep")
    if asked.mode == RunMode.RUN and name in choices("sweep"):
        from experiments.engine.sweeps import read_sweep

        read_sweep(name)


def attempt(work: Work, cfg: DictConfig, run: RunConfig, lines: str | None = None) -> None:
    """Do one run's work and tell its line. Raises Claimed when another worker has the run."""
    try:
        said = work(cfg, run)
    except Claimed:
        raise
    except OutOfStep as error:
        if error.reported:
            log.critical("error: %s: %s", run.run_name, error)
        logging.shutdown()
        os._exit(1)  # the launcher ends the others, which wait for this process in the middle of the run
    except VeraError as error:
        failed(f"{run.run_name}: {error}", lines)
    else:
        log.info("%s", said)
        leave(said, lines)


def wait(work: Work, lines: str | None = None) -> None:
    """Until the runs that other workers compute are done; those that they leave are computed here."""
    while elsewhere:
        for item in list(elsewhere):
            elsewhere.remove(item)
            try:
                attempt(work, *item, lines)
            except Claimed:
                elsewhere.append(item)
        if elsewhere:
            time.sleep(POLL)


def failed(said: str, lines: str | None = None) -> None:
    log.error("error: %s", said)
    leave(f"error: {said}", lines)
    if not in_main_process():
        raise RunFailed(said)
    failures.append(said)


def leave(said: str, lines: str | None) -> None:
    """Leave a run's line for the process of the command, where there is a folder for it."""
    if lines is not None:
        write_atomic(Path(lines) / uuid.uuid4().hex, said)


def in_main_process() -> bool:
    """Whether this is the process of the command, not a launcher's worker."""
    return os.environ.get(MAIN_PROCESS) == str(os.getpid())


@contextmanager
def passed_on(arguments: list[str]) -> Iterator[str | None]:
    """Log what submitit's jobs, whose own output goes to files, leave in a folder; its value is that folder, or None."""
    if not any(argument.startswith(("hydra/launcher=slurm", "hydra/launcher=submitit")) for argument in arguments):
        yield None
        return
    cache = next((a.partition("=")[2] for a in arguments if a.startswith("cache_dir=")), ".cache")
    folder = Path(cache).absolute() / "hydra" / f"lines-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    end = threading.Event()

    def read() -> None:
        last = False
        while not last:
            last = end.wait(1.0)
            for path in sorted(folder.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime):
                log.info("%s", path.read_text())
                path.unlink()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield str(folder)
    finally:
        end.set()
        reader.join()
        shutil.rmtree(folder, ignore_errors=True)


def speaks() -> bool:
    """Whether this process prints: the only one, or the first of those that a launcher has started for one run."""
    return (os.environ.get("WORLD_SIZE") or "1") == "1" or (os.environ.get("RANK") or "0") == "0"


def set_up_logging() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO if speaks() else logging.CRITICAL)
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


def from_conf_alone(arguments: list[str]) -> bool:
    """Whether Hydra composes the runs of these arguments from conf/ and its entry alone, as what is remembered of runs was."""
    given = get_args_parser().parse_args(arguments)
    elsewhere = given.config_dir or given.config_name or given.config_path
    return not elsewhere and not any("hydra.searchpath" in override for override in given.overrides)


def places_of(asked: str, arguments: list[str]) -> list[str | None]:
    """Where the workers of workers=... compute. Raises ConfigError."""
    if workers.launched() > 1 or any(argument.startswith("hydra/launcher=") for argument in arguments):
        raise ConfigError("workers= starts workers of its own, and so does a launcher: leave one of them out")
    from vera.train.processes import gpus

    return crew.places(asked, [] if "device=cpu" in arguments else gpus())


def raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Whether an error comes out of one of these packages: what they make of overrides such as model=[[1]]."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] in packages


def main(work: Work = train) -> int:
    set_up_logging()
    os.environ[MAIN_PROCESS] = str(os.getpid())
    try:
        with interrupt.handled():
            check_arguments(sys.argv[1:])
            if {"-h", "--help"} & set(sys.argv[1:]):  # before what Hydra says of the keys
                print(sys.modules[work.__module__].__doc__, flush=True)
            asked, sys.argv[1:] = crew.parted(sys.argv[1:])
            if asked is not None and (places := places_of(asked, sys.argv[1:])) != [None]:
                log.info("%d workers: %s", len(places), ", ".join(f"GPU {p}" if p is not None else "CPU" for p in places))
                script = ROOT / "scripts" / f"{work.__name__}.py"  # wherever the command was started from (--project)
                return crew.Crew(log.info).run([sys.executable, str(script), *sys.argv[1:]], places)
            sys.argv[1:] = for_each_run(readable(sys.argv[1:]))
            if workers.launched() > 1 and any(argument.startswith("hydra/launcher=") for argument in sys.argv[1:]):
                raise ConfigError("under accelerate launch the runs of a sweep follow one another; leave hydra/launcher out")
            if work is train and workers.launched() == 1 and from_conf_alone(sys.argv[1:]):
                sweep.skip = skip
            with passed_on(sys.argv[1:]) as lines:
                each(work, lines)()
            wait(work)
    except RunFailed:
        return 1
    except interrupt.Interrupted as left:
        log.error("%s", left)
        return left.status
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, ConfigError) as error:
        log.error("error: %s", redacted(explain(error)))
        return 2
    except OSError as error:  # Hydra's own folder on a full disk
        log.error("error: %s", error)
        return 1
    except Exception as error:
        if "Unknown plugin class" in str(error) or raised_in(error, ("hydra", "omegaconf")):
            log.error("error: %s", redacted(explain(error)))
            return 2
        if raised_in(error, ("submitit",)) and "srun" in str(error):
            log.error("error: hydra/launcher=slurm: no SLURM here, srun is not found; workers=2 starts two on this machine")
            return 2
        if type(error).__module__.partition(".")[0] not in ("joblib", "ray", "submitit"):
            raise
        log.error("error: a worker has ended (%s); the same command goes on from here", one_line(error))
        return 1
    if len(failures) > 1:
        log.error("error: %d runs failed; see the lines above, and results_dir/failed for those that began", len(failures))
    return 1 if failures else 0
