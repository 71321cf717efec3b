"""What a user can do something about. The entry points print these as one line and exit with a non-zero status."""

from __future__ import annotations

import os
import re

from vera.nn.errors import AdapterError as AdapterError
from vera.nn.errors import VeraError
from vera.nn.errors import one_line as one_line

HIDDEN = "[hidden]"
LONGEST = 2000  # characters of a message
SECRET_LENGTH = 8  # a shorter value is taken for a stand-in such as "none", which is a word of other texts too

_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE)S?(?:_|$)", re.I)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_IN_QUERY = re.compile(r"(?i)([?&](?:[\w-]*(?:token|key|secret|signature|password|credential))=)[^&\s'\"]+")
_BY_SHAPE = re.compile(r"\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}")  # tokens of the hub and of OpenAI


def redacted(text: str) -> str:
    """The text without values of environment variables that are called a token, key, secret or password, without user and
    password in an address, without signed queries, and without anything that has the shape of a token."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= SECRET_LENGTH:
            text = text.replace(value, HIDDEN)
    text = _IN_ADDRESS.sub(f"{HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return _BY_SHAPE.sub(HIDDEN, text)


def _shown(message: str) -> str:
    """Rid of secrets, and cut where a file was quoted at length: whoever prints or keeps it need not think of either."""
    text = redacted(message)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 200]} ... {text[-195:]}"


VeraError.shown = staticmethod(_shown)


class ConfigError(VeraError):
    """A configuration key or value that is unknown, of the wrong type or outside its range."""


class DataError(VeraError):
    """A data set that is missing, malformed or not what the task expects; the message names the file and the row."""


class ModelError(VeraError):
    """A backbone that cannot be loaded or does not fit the task or the method."""


class RecordError(VeraError):
    """A record, or a folder of records, that cannot be read or written."""


class TrainingError(VeraError):
    """A run that cannot go on."""


class Collapsed(TrainingError):
    """A training whose loss, weights or predictions are no longer finite: a result, which leaves a record."""


class OutOfStep(TrainingError):
    """A failure in one of the processes that compute a run together, while the others are still at work: all have to end.

    reported: whether this process is the one that tells of it.
    """

    def __init__(self, message: str, reported: bool):
        super().__init__(message)
        self.reported = reported


class Claimed(VeraError):
    """A run that another worker is computing."""


class ClaimLost(Claimed):
    """A run that another worker has taken over, because this process gave no sign of life for too long."""


class JudgeError(VeraError):
    """A judge that cannot be asked or whose verdicts cannot be read; what it has said so far is kept."""
