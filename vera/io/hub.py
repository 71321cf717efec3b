"""The model and data set hub: one quick question decides whether it is there, and which commit a revision stands for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import HfApi, HfFileSystem, constants, get_session, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vera.errors import DataError, VeraError, one_line
from vera.io import tables

if TYPE_CHECKING:
    import datasets

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10
QUICK_SECONDS = 5  # for a first look, not for a run
_SHA = re.compile(r"[0-9a-f]{40}")
Kind = Literal["model", "dataset"]
_known: dict[tuple[str, str, str], str] = {}
_mute = False  # whether the network let this process wait in vain: it is not asked again


def commit(repository: str, revision: str, kind: Kind) -> tuple[str | None, bool]:
    """The commit that a revision stands for now, and whether the hub answered.

    (None, True) when it refuses (unknown or gated repository): the loader's own message says why. (None, False) without a
    network; whoever loads then reads the local cache only, at once instead of after many retries. A network that does not
    answer is asked once in a process: a sweep would wait again for each of its runs.
    """
    global _mute
    key = (repository, revision, kind)
    if key in _known:
        return _known[key], True
    if _mute:
        return None, False
    for _ in range(2):
        try:
            found = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=TIMEOUT_SECONDS)
            _known[key] = str(found.sha)
            return _known[key], True
        except HfHubHTTPError:
            return None, True
        except Exception as error:  # the HTTP libraries' errors for "no connection" have no base in common
            if "Timeout" not in type(error).__name__:
                return None, False
    _mute = True
    log.warning("%s does not answer; the rest of this process reads local copies only", constants.ENDPOINT)
    return None, False


class HubProblem(VeraError):
    """Why a repository cannot be had. kind: network, login, gated, missing or other."""

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository without loading it: commit, files with their bytes (0: unknown), the card's head."""

    commit: str
    files: dict[str, int]
    card: dict[str, Any]


@dataclass(frozen=True)
class HubData:
    """What is read of a data set on the hub. subset: its configuration there, if it has several; files: what the file of all
    its rows may be called, where it is not called after its split."""

    repository: str
    revision: str
    subset: str | None
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    files: tuple[str, ...] = ()

    def local(self, folder: Path) -> dict[str, list[Path]]:
        """The files of each split in a copy; none where it has none of it. Raises DataError."""
        return {split: tables.split_files(folder, split, self.subset, named=self.files) for split in self.splits}


def silent() -> str | None:
    """Why the hub cannot be asked, by one quick question; None when it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1"
    try:
        get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=QUICK_SECONDS)
    except Exception as error:  # the HTTP libraries' errors have no base in common
        return f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
    return None


def look_up(repository: str, revision: str, kind: Kind) -> Repository:
    """A repository's commit, files and card, after asking whether its files may be read. Raises HubProblem."""
    api = HfApi()
    try:
        info = api.repo_info(repository, revision=revision, repo_type=kind, timeout=QUICK_SECONDS, files_metadata=True)
        if info.gated:
            api.auth_check(repository, repo_type=kind)
    except GatedRepoError:
        raise HubProblem("gated", f"{repository} is gated, and this account has no access") from None
    except RevisionNotFoundError:
        raise HubProblem("missing", f"{repository} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise HubProblem("missing", f"{repository} does not exist, or is private") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise HubProblem("login", "the hub refuses the login (HTTP 401)") from None
        raise HubProblem("gated" if status == 403 else "other", f"{repository}: HTTP {status}") from None
    except Exception as error:
        raise HubProblem("network", f"{repository}: no answer ({type(error).__name__})") from None
    card = info.card_data.to_dict() if info.card_data is not None else {}
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return Repository(info.sha, files, card)


def columns(repository: str, found: Repository, subset: str | None, splits: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """Column names by split: from the card where it lists them, else from the end of each split's first parquet file.

    None where neither says. Raises HubProblem when a file cannot be read.
    """
    configs = found.card.get("dataset_info") or []
    for config in [configs] if isinstance(configs, dict) else configs:
        names = tuple(str(feature.get("name")) for feature in config.get("features") or ())
        if names and (subset is None or config.get("config_name") == subset):
            return {str(split.get("name")): names for split in config.get("splits") or ()}
    files = [
        name for name in sorted(found.files) if name.endswith(".parquet") and (subset is None or subset in name.split("/"))
    ]
    first: dict[str, str] = {}
    for split in splits:
        of_split = [n for n in files if Path(n).stem.split("-")[0] == split or Path(n).parent.name == split]
        first |= {split: of_split[0]} if of_split else {}
    try:
        return {split: _parquet_columns(repository, found.commit, name) for split, name in first.items()} or None
    except Exception as error:
        raise HubProblem(
            "other", f"{repository}: {next(iter(first.values()))} cannot be read ({type(error).__name__})"
        ) from None


def _parquet_columns(repository: str, commit: str, name: str) -> tuple[str, ...]:
    import pyarrow.parquet

    with HfFileSystem(endpoint=constants.ENDPOINT).open(f"datasets/{repository}@{commit}/{name}", "rb") as file:
        return tuple(pyarrow.parquet.read_schema(file).names)


def cached_commit(repository: str, revision: str) -> str | None:
    """The commit of a model in the local cache, read off its folder's path; None when it is not there."""
    folder = model_snapshot(repository, revision)
    return None if folder is None else commit_in(folder.name)


def model_snapshot(repository: str, revision: str) -> Path | None:
    """The folder of a model's files in the local cache, which may lack some; None when its configuration is not there. Raises
    DataError for a cache that cannot be read."""
    try:
        path = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError:  # a name that no repository has
        return None
    except (OSError, ValueError) as error:
        raise _broken(repository, error) from None
    return Path(path).parent if isinstance(path, str) else None


def commit_in(text: str) -> str | None:
    """The first full commit hash in a path or address."""
    found = _SHA.search(text)
    return found.group() if found else None


@contextmanager
def offline(when: bool) -> Iterator[None]:
    """Make the hub's libraries read their caches only, without asking (and waiting for) the network."""
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if when:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def snapshot(repository: str, revision: str = "main") -> Path | None:
    """The folder of a data set's files in the hub's cache (`hf download` fills it); None when it is not there. Raises DataError
    for a cache that cannot be read."""
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True))
    except (FileNotFoundError, HFValidationError):
        return None
    except (OSError, ValueError) as error:
        raise _broken(repository, error) from None


def _broken(repository: str, error: Exception) -> DataError:
    return DataError(f"the hub's cache of {repository} cannot be read: {one_line(error)}")


Rows = list[tuple[str, tuple[Any, ...]]]  # where it is, and the values of the columns that were asked for


def load_rows(data: HubData, instead: str) -> tuple[dict[str, Rows], str | None]:
    """The columns of each split at a revision's present commit, and that commit; without a network from the hub's cache or
    the datasets library's.

    Raises DataError with the reason and `instead`, what a user can give in place of the hub.
    """
    name = f"{data.repository} ({data.subset})" if data.subset else data.repository
    if not commit(data.repository, data.revision, "dataset")[1]:
        folder = snapshot(data.repository, data.revision)
        files = data.local(folder) if folder else {}
        if files and all(files.values()):
            found = {split: tables.read_columns(files[split], data.columns) for split in data.splits}
            return found, commit_in(str(folder))
    loaded, sha = load_dataset(data.repository, data.subset, instead, data.revision)
    rows = {}
    for split in data.splits:
        if split not in loaded:
            raise DataError(f"data set {name} has no split {split!r}; it has {', '.join(loaded)}")
        missing = [column for column in data.columns if column not in loaded[split].column_names]
        if missing:
            raise DataError(
                f"data set {name}, {split}: no column {missing[0]!r}; it has {', '.join(loaded[split].column_names)}"
            )
        classes = {column: getattr(loaded[split].features[column], "names", None) for column in data.columns}
        values = zip(*(tables.by_name(loaded[split][column], names) for column, names in classes.items()), strict=True)
        rows[split] = [(f"{name}, {split} row {index}", row) for index, row in enumerate(values)]
    return rows, sha


def load_dataset(
    repository: str, subset: str | None, instead: str, revision: str = "main"
) -> tuple[datasets.DatasetDict, str | None]:
    """All splits of a data set at a revision's present commit, or from the local cache without a network, and that commit.

    Raises DataError with the reason and `instead`, what a user can give in place of the hub.
    """
    import datasets

    sha, online = commit(repository, revision, "dataset")
    datasets.disable_progress_bars()
    try:
        with offline(not online):
            loaded = datasets.load_dataset(repository, subset, revision=sha or revision)
    except Exception as error:  # network, cache and format errors of several libraries
        name = f"{repository} ({subset})" if subset else repository
        raise DataError(f"data set {name} cannot be loaded from the hub ({one_line(error)}); {instead}") from None
    files = next(iter(loaded.values())).info.download_checksums or {}
    return loaded, sha or commit_in(" ".join(files))
