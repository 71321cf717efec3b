"""What the processes of tests/test_processes.py do: python launched.py WHAT KEY=VALUE ...

run         scripts/train.py with these keys.
kill        the same, and process 1 kills itself before its sixth step.
fail        the same, and process 1 alone raises an error there.
"""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import train

from vera.train import loop, processes

AT = 5


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
    if what != "run":
        loop.Loop._step = stopped(what)
        processes.GRACE = 1.0
    sys.exit(train.main())
