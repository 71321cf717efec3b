"""What the processes of tests/test_processes.py do: python launched.py WHAT KEY=VALUE ...

run         scripts/train.py with these keys.
wide        the same, with a float32 Llama.
kill        the same as run, and process 1 kills itself before its sixth step.
fail        likewise, and process 1 alone raises an error there.
"""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from vera.commands import train  # noqa: E402
from vera.models.llama import Llama  # noqa: E402
from vera.train import loop, processes  # noqa: E402

AT = 5


def widen() -> None:
    """A Llama whose products do not depend on how a batch is cut into pieces as much as bf16's do."""
    settings = Llama.settings.fget
    Llama.settings = property(lambda self: settings(self) if self.quantisation == "nf4" else {"dtype": torch.float32})


def stopped(what: str):
    step = loop.Loop._step

    def instead(self, batches):
        if self.step == AT and self.processes.rank == 1:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this process alone cannot go on")
        step(self, batches)

    return instead


if __name__ == "__main__":
    what = sys.argv.pop(1)
    if what == "wide":
        widen()
    elif what != "run":
        loop.Loop._step = stopped(what)
        processes.GRACE = 1.0
    sys.exit(train.main())
