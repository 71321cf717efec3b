"""One run from its config to its record. The only module that sees all the others."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import platform
import subprocess
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from vera.config import CONF_DIR, RunConfig, build, check_modality, group_marks
from vera.errors import LONGEST, Claimed, OutOfStep, RecordError, TrainingError, VeraError, one_line
from vera.io.files import remove_temporaries
from vera.methods.base import Method, count
from vera.models import reuse
from vera.models.base import Backbone, Model
from vera.records import interrupt, screen, sources, workers
from vera.records import record as records
from vera.records.record import LOCAL, Failure, Record, now
from vera.records.store import Store, output_path
from vera.seeds import seed_everything
from vera.tasks.base import Data, Task
from vera.tasks.split import split
from vera.train.loop import Loop, best_epoch
from vera.train.processes import Processes, together
from vera.train.state import FILE as STATE_FILE
from vera.train.tracker import NoTracker

log = logging.getLogger(__name__)
gc.freeze()  # what is imported is no garbage; each run looks for some (vera.train.loop), which took 0.28 s of it

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "evaluate",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "bitsandbytes",
    "sacrebleu",
    "pycocoevalcap",
)


def execute(run: RunConfig) -> Record:
    """The record of a run. A finished run is never repeated, an unfinished one goes on; what killed workers left is removed.

    Any failure is written to results_dir/failed and raised as a VeraError; only Claimed (another worker has the run), and an
    interruption (vera.records.interrupt), leave nothing there.

    Several processes (vera.train.processes) call this together and return the same record; the main one claims the run, decides
    what is done and writes it. A failure that the others have not had as well is raised as OutOfStep: they can then only be
    ended.
    """
    processes = together(run.device)
    processes.runs += 1
    store, name = Store(run.results_dir), run.run_name
    work = Path(run.work_dir) / name
    claim: workers.Claim | None = None

    def done(found: Record) -> dict[str, str]:
        check_sources(run, found)
        return {"record": found.to_json()}

    def begin() -> dict[str, str] | None:
        """The record of a finished run, or who else has it; None when it is now this process's."""
        nonlocal claim
        found = store.find(name)
        if found is not None and not workers.remains(store.root, name):
            return done(found)
        try:
            claim = workers.acquire(store.root, name, run.claim_timeout)
        except Claimed as other:  # if it is done, its worker has not left yet
            return {"claimed": str(other)} if found is None else done(found)
        try:
            store.check_writable(name)
            if claim.generation > 1:
                store.remove_temporaries(name)
            remove_temporaries(work)
            found = store.find(name)
            if found is None:
                return None
            (work / STATE_FILE).unlink(missing_ok=True)
        except BaseException:
            claim.release()
            raise
        claim.release()
        return done(found)

    answer = processes.on_main(begin)
    if answer is None:
        with claim or nullcontext():
            return _compute(run, store, work, claim, processes)
    if "claimed" in answer:
        raise Claimed(answer["claimed"])
    return records.parse(answer["record"], name)


def _compute(run: RunConfig, store: Store, work: Path, claim: workers.Claim | None, processes: Processes) -> Record:
    """Train, and write the record or the failure, as long as the claim holds (the main process's; the others have none)."""

    def keep() -> None:
        claim.check()
        store.write(record, files)
        (work / STATE_FILE).unlink(missing_ok=True)

    try:
        work.mkdir(parents=True, exist_ok=True)
        with interrupt.deferred():  # what is trained is written
            record, files = _train(run, work, claim, processes)
            processes.on_main(keep)
        return record
    except Claimed:
        raise
    except Exception as error:
        log.debug("run %s failed", run.run_name, exc_info=True)
        reason = one_line(error, LONGEST)
        reports, in_step = processes.failure()
        if reports:
            if claim is not None:
                with suppress(OSError):
                    claim.check()
            failure = Failure(schema=records.SCHEMA, status="failed", run=_identity(run), error=reason, finished=now())
            with suppress(RecordError):  # the disk may be full: what is said is the first error
                store.write_failure(failure)
        if not in_step:
            raise OutOfStep(reason[:500], reports) from error
        if isinstance(error, VeraError):
            raise
        raise TrainingError(f"{type(error).__name__}: {reason[:500]}") from error


def check_sources(run: RunConfig, record: Record) -> None:
    """Raises RecordError when a record of this run was made from other local data or weights than lie there now.

    What cache_dir does not remember of them is read again, as a run would.
    """
    missing = sources.unknown(run, record)
    if not missing:
        return
    screen.doing("loading the backbone")
    backbone, task = _load(run)
    found = _prints(backbone, task.load(backbone, run.seed))
    for source in missing:
        sources.remember(run, source, found[source.group])
        sources.compare(record, source.group, found[source.group], source.named)


def prepare(run: RunConfig, shared: bool = False) -> tuple[Backbone, Method, Task, Data]:
    """Load the backbone with its seeded head, attach the method, prepare the data. What can be wrong with the data is found
    before the backbone is loaded. shared: frozen weights may be those of the last run (vera.models.reuse). Raises VeraError."""
    method: Method = build(run.method, "method")
    read = sources.local(run)
    backbone, task = _load(run, shared)
    method.attach(backbone, build(run.model, "model"))
    if shared:
        reuse.own(backbone.model)
    screen.doing("preparing the data")
    data = split(task, task.load(backbone, run.seed))
    for source in read.values():
        sources.remember(run, source, _prints(backbone, data)[source.group])
    return backbone, method, task, data


def _prints(backbone: Backbone, data: Data) -> dict[str, dict[str, str]]:
    read = {"model": (backbone.fingerprint, backbone.notes), "task": (data.fingerprint, data.notes)}
    return {group: sources.prints(group, fingerprint, notes) for group, (fingerprint, notes) in read.items()}


def _load(run: RunConfig, shared: bool = False) -> tuple[Backbone, Task]:
    """The backbone with its seeded head, and the task."""
    check_modality(run.model, run.task)
    model_config: Model = build(run.model, "model")
    task: Task = build(run.task, "task")
    task.check_primary()
    task.inspect()
    seed_everything(run.seed, "head")
    load = reuse.load if shared else Model.load
    return load(model_config, task.outputs, Path(run.cache_dir)), task


def _train(run: RunConfig, work: Path, claim: workers.Claim | None, processes: Processes) -> tuple[Record, dict[str, str]]:
    """The record, and the texts of the files that it names."""
    ran = {"started": now(), **code(), "own_code": sources.own_code(run)}  # as it is now: commits may come while it trains
    tracker = build(run.tracker, "tracker") if processes.main else NoTracker()
    tracker.check()
    with interrupt.immediate():
        if processes.count > 1:  # a backbone that is made here is made by main: transformers saves nothing in the others
            processes.on_main(lambda: build(run.model, "model").source(Path(run.cache_dir)))
        backbone, method, task, data = prepare(run, shared=True)
    parameters = count(method.parameter_groups(backbone), backbone.model)
    tracker.start(run.run_name, _identity(run), run.results_dir)
    try:

        def on_progress(step: int, total: int, loss: float | None) -> None:
            if claim is not None:
                claim.progress(step, total)
            screen.trained(step, total, loss)

        before_write = (lambda: None) if claim is None else claim.check
        loop = Loop(run, backbone, method, task, data, work, on_progress, tracker.log, before_write, ran)
        loop.fit()
    finally:
        tracker.finish()
    scores, collapsed = _scores(loop.history, task.primary, loop.test, loop.collapsed)
    files = {output_path(run.run_name, suffix): text for suffix, text in loop.final.files.items()}
    record = Record(
        schema=records.SCHEMA,
        status="done",
        run=_identity(run),
        parameters=parameters,
        scores=scores,
        cost=loop.cost(),
        provenance={
            **ran,
            "started": (loop.earlier or [ran])[0].get("started", ran["started"]),
            "finished": now(),
            "model_source": backbone.source,
            "model_commit": backbone.commit,
            "model_fingerprint": backbone.fingerprint,
            "data_source": data.source,
            "data_commit": data.commit,
            "data_fingerprint": data.fingerprint,
            "train_rows": len(data.train),
            "eval_rows": len(data.evaluation),
            "test_rows": None if data.test is None else len(data.test),
            "notes": {**backbone.notes, **data.notes, **loop.final.notes, **loop.notes()},
        },
        outputs={path: records.text_hash(text) for path, text in files.items()},
        weights=loop.weights,
        collapsed=collapsed,
    )
    return record, files


def _identity(run: RunConfig) -> dict[str, Any]:
    config = run.scientific
    for group in ("model", "task", "method"):  # a record shows no path of the machine it was made on
        paths = [key for key, mark in group_marks(config[group], group).items() if mark in ("place", "source")]
        config[group] = {**config[group], **{key: LOCAL for key in paths if config[group].get(key) is not None}}
    return {
        "model": run.model["name"],
        "task": run.task["name"],
        "method": run.method["name"],
        "seed": run.seed,
        "cell_id": run.cell_id,
        "follows_seed": run.follows_seed,
        "unhashed": run.unhashed,
        "config": config,
    }


def _scores(
    history: list[dict[str, Any]], primary: str, test: dict[str, float | None] | None, collapsed: str | None
) -> tuple[dict[str, Any], str | None]:
    """The record's scores, and why the run has collapsed: what the loop says, or a metric that is undefined."""
    by_epoch = {entry["epoch"]: entry["metrics"] for entry in history}
    last = max(by_epoch, default=0)
    best = best_epoch(history, primary) or last
    for when, metrics in (
        ("after the last epoch", by_epoch.get(last, {})),
        (f"at epoch {best}, the best one by {primary}", by_epoch.get(best, {})),
        (f"on the test set at epoch {best}", test or {}),
    ):
        undefined = [metric for metric, value in metrics.items() if value is None]
        if undefined and collapsed is None:
            collapsed = f"{undefined[0]} is undefined {when}: every prediction is the same, or every label"

    def selected(epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "metrics": {primary: None, **by_epoch.get(epoch, {})}}

    each = {metric: best_epoch(history, metric) for metric in by_epoch.get(last, {})}
    scores = {
        "primary": primary,
        "best": selected(best),
        "last": selected(last),
        "test": None if test is None else {"epoch": best, "metrics": test},
        "best_each": {m: {"epoch": e, "metrics": {m: by_epoch[e][m]}} for m, e in each.items() if e is not None},
        "history": history,
    }
    return scores, collapsed


@lru_cache(maxsize=1)
def code() -> dict[str, Any]:
    """Which code ran: commit, whether tracked code differs from it, and package versions."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=CONF_DIR.parent, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", "vera", "conf", "scripts", "pyproject.toml") if sha else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"git_sha": sha, "git_dirty": None if changed is None else bool(changed), "versions": versions}
