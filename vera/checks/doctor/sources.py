"""Where models and data come from, and whether they are what is read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import datasets

from vera.checks.doctor.lines import NETWORK, NOTE, OFFLINE, OK, TODO, UNUSED, Line, distinct, gb
from vera.config import RunConfig, build
from vera.errors import DataError, VeraError
from vera.io import hub, tables
from vera.io.hub import HubData, HubProblem
from vera.models.base import Model
from vera.tasks.base import Task


def model_line(run: RunConfig, silence: str | None, sizes: dict[str, int]) -> Line:
    """Where one model comes from, and whether its files are those that are read. Puts what is to be fetched into `sizes`."""
    model: Model = build(run.model, "model")
    what = f"model: {model.name}"
    if model.source_kind != "hub":
        if model.source_kind == "made here":
            return Line(UNUSED, what, "made on this machine")
        try:
            folder = Path(model.source(Path(run.cache_dir)))
        except VeraError as error:
            return Line(TODO, what, str(error), "model.path=/path/to/a/folder in transformers' format")
        problem = model.unreadable(folder)
        if problem:
            return Line(TODO, what, f"{folder}: {problem}", "fetch or write it again, or model.path=/path/to/another folder")
        return Line(OK, what, f"{folder}")
    try:
        hub.model_snapshot(model.checkpoint, model.revision)
    except DataError as error:
        return Line(TODO, what, str(error), "remove its folder there and fetch it again, or model.path=")
    cached = in_cache(model)
    if cached is not None:
        problem = model.unreadable(cached)
        if problem:
            return Line(TODO, what, f"{cached}: {problem}", f"remove {cached.parents[1]} and fetch it again, or model.path=")
        return Line(OK, what, f"{model.checkpoint} is in the cache")
    if silence:
        return Line(NETWORK, what, model.checkpoint, f"or model.path=/path/to/{model.checkpoint.rpartition('/')[2]}")
    try:
        found = hub.look_up(model.checkpoint, model.revision, "model")
    except HubProblem as problem:
        return _refused(what, problem, model.checkpoint, "model.path=")
    size = sizes[str(model.checkpoint)] = sum(size for name, size in found.files.items() if name.endswith(".safetensors"))
    missing = model.lacking(set(found.files))
    if missing:
        return Line(
            TODO, what, f"{model.checkpoint}: {missing}", "another revision, or save_pretrained() to a folder and model.path="
        )
    return Line(OK, what, f"{model.checkpoint}@{found.commit[:8]}, {gb(size)}")


def in_cache(model: Model) -> Path | None:
    """Its folder in the hub's cache, where that can be read and lacks nothing."""
    with suppress(DataError):  # which `model_line` tells
        folder = hub.model_snapshot(model.checkpoint, model.revision)
        return None if folder is None or model.lacking_in(folder) else folder
    return None


def data_line(data: HubData, silence: str | None, sizes: dict[str, int]) -> Line:
    """Whether a data set is there with the splits and columns that its task reads."""
    name = f"{data.repository} {data.subset}" if data.subset else data.repository
    what = f"data: {name}"
    try:
        local = hub.snapshot(data.repository, data.revision)
    except DataError as error:
        return Line(TODO, what, str(error), "remove its folder there and fetch it again, or task.data_dir=")
    try:
        if local is not None and all(data.local(local).values()):
            return Line(OK, what, f"in the cache ({local.name[:8]})")
    except DataError as error:  # what a run without a network would say
        if silence:
            return Line(TODO, what, str(error), "task.data_dir=/path/to/the/official/files")
    if prepared(data):
        return Line(OK, what, "in the cache")
    if silence:
        return Line(NETWORK, what, f"columns {', '.join(data.columns)}", "or task.data_dir=/path/to/the/official/files")
    try:
        found = hub.look_up(data.repository, data.revision, "dataset")
        columns = hub.columns(data.repository, found, data.subset, data.splits)
    except HubProblem as problem:
        return _refused(what, problem, data.repository, "task.data_dir=")
    files = {n: size for n, size in found.files.items() if data.subset is None or data.subset in n.split("/")}
    sizes[name] = 2 * sum(size for n, size in files.items() if n.endswith(".parquet"))  # the files, and the copy that is read
    if columns is None:
        return Line(
            NOTE, what, f"@{found.commit[:8]}; neither card nor files name columns", "they are checked when a run starts"
        )
    for split in data.splits:
        missing = set(data.columns) - set(columns.get(split, ()))
        if split not in columns:
            return Line(TODO, what, f"no split {split!r}; it has {', '.join(columns)}", "task.data_dir=, or another revision")
        if missing:
            found_columns = ", ".join(columns[split])
            return Line(TODO, what, f"{split} has no column {min(missing)!r}; it has {found_columns}", "task.data_dir=")
    return Line(OK, what, f"@{found.commit[:8]}, {', '.join(data.columns)}")


def prepared(data: HubData) -> bool:
    """Whether the datasets library's cache holds a finished copy with every split that is read. It describes a copy and renames
    its folder last."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / data.repository.replace("/", "___")
    found = folder.glob(f"{data.subset or '*'}/*/*/dataset_info.json")
    copies = [path.parent for path in found if path.parent.suffix != ".incomplete"]
    return any(all(_rows_of(copy, split) for split in data.splits) for copy in copies)


def _rows_of(copy: Path, split: str) -> bool:
    """Whether all files of a split's rows are there, one or several in order."""
    files = [*copy.glob(f"*-{split}.arrow"), *copy.glob(f"*-{split}-?????-of-?????.arrow")]
    return bool(files) and len(files) >= tables.shards(files[0])


def _refused(what: str, problem: HubProblem, repository: str, instead: str) -> Line:
    remedies = {
        "gated": f"ask for access at https://huggingface.co/{repository} and log in with `hf auth login`, or {instead}",
        "login": "`hf auth login` again, or unset HF_TOKEN",
        "missing": f"is the name right, and may this account see it (`hf auth whoami`)? Or {instead}",
        "network": OFFLINE,
        "other": f"try again later, or {instead}",
    }
    return Line(NETWORK if problem.kind == "network" else TODO, what, str(problem), remedies[problem.kind])


def local_data(runs: Sequence[RunConfig]) -> list[Line]:
    """Tasks that read this machine's files: whether these are the expected ones, row by row where that takes seconds."""
    lines = []
    for run in distinct(runs, "task"):
        task: Task = build(run.task, "task")
        if task.hub_data() is not None:
            continue
        if task.synthetic or not hasattr(task, "data_dir"):
            lines.append(Line(UNUSED, f"data: {task.name}", "made on this machine"))
            continue
        try:
            task.inspect()  # also where no folder is given: what is not on the hub has to be
            lines.append(Line(OK, f"data: {task.name}", str(getattr(task, "data_dir", None))))
        except (VeraError, OSError) as error:
            lines.append(Line(TODO, f"data: {task.name}", str(error), "task.data_dir=/path/to/the/official/files"))
    return list(dict.fromkeys(lines))  # several settings of one task read one folder
