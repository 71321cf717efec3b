"""The model and data set hub: one quick question decides whether it is there, and which commit a revision stands for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from vera.errors import DataError

if TYPE_CHECKING:
    import datasets

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

TIMEOUT_SECONDS = 10
_SHA = re.compile(r"[0-9a-f]{40}")
_known: dict[tuple[str, str, str], str] = {}


def commit(repository: str, revision: str, kind: Literal["model", "dataset"]) -> tuple[str | None, bool]:
    """The commit that a revision stands for now, and whether the hub answered.

    (None, True) when it refuses (unknown or gated repository): the loader's own message says why. (None, False) without a
    network; whoever loads then reads the local cache only, at once instead of after many retries.
    """
    key = (repository, revision, kind)
    if key in _known:
        return _known[key], True
    for _ in range(2):
        try:
            _known[key] = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=TIMEOUT_SECONDS).sha
            return _known[key], True
        except HfHubHTTPError:
            return None, True
        except Exception as error:  # the HTTP libraries' errors for "no connection" have no base in common
            if "Timeout" not in type(error).__name__:
                break
    return None, False


def cached_commit(repository: str, revision: str, filename: str = "config.json") -> str | None:
    """The commit of a model in the local cache, read off the path of one of its files; None when it is not there."""
    try:
        path = try_to_load_from_cache(repository, filename, revision=revision)
    except Exception:
        return None
    return commit_in(str(path))


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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        name = f"{repository} ({subset})" if subset else repository
        raise DataError(f"data set {name} cannot be loaded from the hub ({reason}); {instead}") from None
    files = next(iter(loaded.values())).info.download_checksums or {}
    return loaded, sha or commit_in(" ".join(files))
