"""The model and data set hub: one question decides quickly whether it is there, and pins what is read."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

TIMEOUT_SECONDS = 10


@lru_cache(maxsize=256)
def commit(repository: str, revision: str, kind: Literal["model", "dataset"]) -> tuple[str | None, bool]:
    """The commit that a revision stands for now, and whether the hub answered.

    (None, False) without a network: this process then reads its local cache only, at once instead of after many retries.
    (None, True) when the hub refuses (unknown or gated repository): the loader's own message says why.
    """
    try:
        return HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=TIMEOUT_SECONDS).sha, True
    except HfHubHTTPError:
        return None, True
    except Exception as error:  # the HTTP libraries' errors for "no connection" share no base with each other
        no_network = isinstance(error, (OSError, OfflineModeIsEnabled)) or "Connect" in type(error).__name__
        if not no_network and "Timeout" not in type(error).__name__:
            raise
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return None, False
