"""What a user can do something about. The entry points print these as one line and exit with a non-zero status."""


class VeraError(Exception):
    """Base of every error this project raises on purpose: bad input, an unreachable source, a run that cannot go on."""


class ConfigError(VeraError):
    """A configuration key or value that is unknown, of the wrong type or outside its range."""


class DataError(VeraError):
    """A data set that is missing, malformed or not what the task expects; the message names the file and the row."""


class ModelError(VeraError):
    """A backbone that cannot be loaded or does not fit the task or the method."""


class AdapterError(VeraError, ValueError):
    """An adapter that cannot be attached, or a file that does not belong to this model."""


class RecordError(VeraError):
    """A record, or a folder of records, that cannot be read or written."""


class TrainingError(VeraError):
    """A run that cannot go on, such as one whose loss is no longer finite."""


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
