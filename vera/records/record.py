"""What one run leaves behind: typed, complete, finite. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from vera.config import Name, Strict, cell_id, dotted, of_all_seeds, run_name
from vera.errors import RecordError

SCHEMA = 1
LOCAL = "local"  # what a record says in place of a path


def output_path(name: str, suffix: str) -> str:
    """Where a run's output file is, as its record says it: relative to the results folder."""
    return f"outputs/{name}.{suffix}"


def is_output(name: str, path: str) -> bool:
    """Whether a path is one that `output_path` gives for this run, and so lies in the results folder."""
    return re.fullmatch(re.escape(output_path(name, "")) + "[a-z0-9]+", path) is not None


def now() -> str:
    """The time as records have it, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def text_hash(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values that come back as they are: numbers that are not finite would not. Raises ValueError."""
    json.dumps(values, allow_nan=False)
    return values


Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Run(Strict):
    """Which run this is. `config` is resolved; `cell_id` follows from it, `follows_seed` and `unhashed` (RunConfig) alone."""

    model: Name
    task: Name
    method: Name
    seed: int = Field(ge=0, lt=2**31)
    cell_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    follows_seed: list[str]
    unhashed: list[str] = []
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return run_name(self.model, self.task, self.method, self.cell_id, self.seed)

    @property
    def of_all_seeds(self) -> dict[str, Any]:
        """The cell's config, with ${seed} where each run of it has its own seed."""
        return of_all_seeds(self.config, self.follows_seed)


class Parameters(Strict):
    """adapter: trained and not in the head (what the paper prints). head: trained in the task head. total: every parameter of
    the model, frozen ones included. adapter_bytes: the adapter's tensors as stored, without file headers."""

    adapter: Count
    head: Count
    total: Count
    adapter_bytes: Count


class Epoch(Strict):
    """One evaluation. A metric that is undefined at this point (a correlation with a constant) is null."""

    epoch: Count
    step: Count
    train_loss: Finite
    metrics: dict[str, Finite | None]


class Selected(Strict):
    """The metrics of one epoch; null where a collapsed run has none, and then epoch 0 when it ended before its first."""

    epoch: Count
    metrics: dict[str, Finite | None]


class Scores(Strict):
    """All metrics are fractions or raw values, never percent; higher is better for every one in `history`.

    best       the metrics at the first epoch with the highest primary metric.
    last       the metrics after the last epoch.
    test       the metrics of the test set at the best epoch, where the rows that chose it are others (task.validation); the
               rest of these scores, `history` too, are then of the validation set. Left out where it is one set.
    best_each  every metric at its own best epoch.
    """

    primary: str
    best: Selected
    last: Selected
    test: Selected | None = None
    best_each: dict[str, Selected]
    history: list[Epoch]

    @model_validator(mode="after")
    def _primary_is_scored(self):
        for where, selected in self.chosen().items():
            if self.primary not in selected.metrics:
                raise ValueError(f"{where} lacks the primary metric {self.primary!r}")
        return self

    @model_validator(mode="after")
    def _selected_from_the_history(self):
        by_epoch = {entry.epoch: entry.metrics for entry in self.history}
        for where, selected in (("best", self.best), ("last", self.last)):
            if self.history and selected.metrics != {self.primary: None, **by_epoch.get(selected.epoch, {})}:
                raise ValueError(f"{where} has other metrics than epoch {selected.epoch} in history")
        return self

    def chosen(self) -> dict[str, Selected]:
        """best and last, and test where there is one."""
        return {"best": self.best, "last": self.last, **({"test": self.test} if self.test else {})}


class Cost(Strict):
    """seconds: training and evaluation, over all starts of the run. tokens: processed in training, padding included (0 for
    images). peak_memory_bytes: the allocator's peak on the GPU that needed most; null on a CPU (where only a whole process can
    be measured) and with train.cuda_graphs. processes: how many computed the run together, each on a device of its own; left
    out when it is one."""

    seconds: Finite
    steps: Count
    examples: Count
    tokens: Count
    peak_memory_bytes: Count | None
    device: str
    precision: str
    threads: Count
    restarts: Count
    processes: int = Field(default=1, ge=1)


class Provenance(Strict):
    """Where the numbers come from: code, versions and machine of the last start. started: of the first; notes.resumed: what of
    them earlier starts had that differs, and at which step they began. Hashes are null where there is nothing to hash (no git,
    a local folder). eval_rows: on which each epoch was scored; test_rows: of scores.test, left out where there is none.
    own_code: of a project's classes of model, task and method, the hash of their files (vera.project.code_of); left out where
    none is a project's."""

    started: str
    finished: str
    git_sha: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    own_code: dict[str, str] = {}
    model_source: str
    model_commit: str | None
    model_fingerprint: str
    data_source: str
    data_commit: str | None
    data_fingerprint: str
    train_rows: Count
    eval_rows: Count
    test_rows: Count | None = None
    notes: Annotated[dict[str, Any], AfterValidator(_plain_values)] = {}

    @property
    def starts(self) -> list[dict[str, Any]]:
        """git_sha and git_dirty of every start, the last one first."""
        last = {"git_sha": self.git_sha, "git_dirty": self.git_dirty}
        earlier = self.notes.get("resumed", [])  # each notes what it had otherwise
        return [last, *({key: start.get(key, last[key]) for key in last} for start in earlier)]


class Record(Strict):
    """A finished run. outputs: the texts that its scores were computed from, as paths in the results folder with the SHA-256
    of their content. weights: SHA-256 of the weights that were kept (vera.records.kept) of best and last epoch; left out
    when none were. collapsed: why training came to nothing, where it did (a loss that is not finite, a metric that is not
    defined)."""

    schema_: Literal[1] = Field(alias="schema")
    status: Literal["done"]
    run: Run
    parameters: Parameters
    scores: Scores
    cost: Cost
    provenance: Provenance
    outputs: dict[str, str] = {}
    collapsed: str | None = Field(default=None, min_length=1, max_length=2000)
    weights: dict[Literal["best", "last"], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}

    @model_validator(mode="after")
    def _scored_unless_collapsed(self):
        if self.collapsed is None:
            if not self.scores.history:
                raise ValueError("scores.history is empty, and the run has not collapsed")
            for where, selected in self.scores.chosen().items():
                for metric, value in selected.metrics.items():
                    if value is None:
                        raise ValueError(f"scores.{where}.metrics.{metric} is null, and the run has not collapsed")
        return self

    @model_validator(mode="after")
    def _identity_holds(self):
        try:
            expected = cell_id(self.run.config, self.run.follows_seed, self.run.unhashed)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"run.config is not the config of a run: {error}") from None
        _plain_values(self.run.config)  # what the hash leaves out comes back as it is, too
        if expected != self.run.cell_id:
            raise ValueError(f"run.cell_id is {self.run.cell_id[:8]}, but run.config hashes to {expected[:8]}")
        for group in ("model", "task", "method"):
            if getattr(self.run, group) != (name := self.run.config[group].get("name")):
                raise ValueError(f"run.{group} is {getattr(self.run, group)}, but run.config.{group}.name is {name!r}")
        for key in self.run.follows_seed:
            if (value := dotted.get(self.run.config, key)) != self.run.seed:
                raise ValueError(f"run.seed is {self.run.seed}, but run.config.{key}, which follows it, is {value!r}")
        return self

    @model_validator(mode="after")
    def _outputs_are_its_own(self):
        for path in self.outputs:
            if not is_output(self.name, path):
                raise ValueError(f"outputs names {path!r}; a run's outputs are called outputs/{self.name}.<suffix>")
        return self

    @property
    def name(self) -> str:
        return self.run.name

    def score(self, metric: str | None = None, select: str = "best") -> float:
        """One metric (default: the primary one) of the best or the last epoch, as `reported`; minus infinity, the worst of all,
        for a run that has collapsed. Raises RecordError for a metric that is not there."""
        if self.collapsed is not None:
            return -math.inf
        metrics = self.reported(select)
        name = metric or self.scores.primary
        if name not in metrics:
            has = ", ".join(metrics) or f"a test set, which is scored at the best epoch, not at the {select} one"
            raise RecordError(f"{self.name}.json: scores.{select}.metrics has no {name!r}; it has {has}")
        return metrics[name]

    def has(self, metric: str | None = None, select: str = "best") -> bool:
        """Whether `score` gives a number for these."""
        return self.collapsed is not None or (metric or self.scores.primary) in self.reported(select)

    def reported(self, select: str) -> dict[str, Any]:
        """The metrics that tables show of the best or the last epoch; where it was chosen on other rows, those of the test set,
        of which the last epoch has none."""
        if self.scores.test is None:
            return getattr(self.scores, select).metrics
        return self.scores.test.metrics if select == "best" else {}

    def to_json(self) -> str:
        left_out: dict[str, Any] = {key: True for key in ("outputs", "weights", "collapsed") if not getattr(self, key)}
        left_out["provenance"] = set() if self.provenance.own_code else {"own_code"}
        if self.scores.test is None:
            left_out["scores"] = {"test"}
            left_out["provenance"] |= {"test_rows"}
        if not self.run.unhashed:
            left_out["run"] = {"unhashed"}
        if self.cost.processes == 1:
            left_out["cost"] = {"processes"}
        return self.model_dump_json(by_alias=True, indent=1, exclude=left_out) + "\n"


class Failure(Strict):
    """A run that ended with an error; kept apart from records, and tried again at the next start."""

    schema_: Literal[1] = Field(alias="schema")
    status: Literal["failed"]
    run: Run
    error: str
    finished: str

    @property
    def name(self) -> str:
        return self.run.name

    def to_json(self) -> str:
        left_out = None if self.run.unhashed else {"run": {"unhashed"}}
        return self.model_dump_json(by_alias=True, indent=1, exclude=left_out) + "\n"


def parse(text: str | bytes, where: str) -> Record:
    """A record from its JSON text. Raises RecordError that names the file and the key."""
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "record"
        if key == "schema" and first["type"] == "literal_error":
            raise RecordError(f"{where}: schema is {first['input']!r}, this version reads {SCHEMA}") from None
        raise RecordError(f"{where}: {key}: {first['msg']}") from None
