"""Kill this process with SIGKILL at its n-th file operation. Python imports this module by itself where the folder is on
PYTHONPATH; VERA_FAULT_AT=n arms it, so that the code under test knows nothing of it."""

import functools
import os
import signal

OPERATIONS = ("replace", "link", "unlink", "rename", "mkdir", "fsync")


def arm(at: int) -> None:
    """Die at the `at`-th call (from 1) of one of OPERATIONS: before it when `at` is odd, after it when `at` is even."""
    calls = 0

    def counted(operation):
        @functools.wraps(operation)
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            here = calls
            if here == at and at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(*args, **kwargs)
            finally:
                if here == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


if "VERA_FAULT_AT" in os.environ:
    arm(int(os.environ["VERA_FAULT_AT"]))
