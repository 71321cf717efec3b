"""Starts workers as forks of a process that has imported everything, so that kills hit the work and not the imports.

A request is a JSON line on stdin: args, fault_at, stderr. The answers are two lines: the process id, and later the exit status.
"""
# ruff: noqa: E402

import json
import os
import sys
import tempfile
from pathlib import Path

code = Path(sys.argv[1])
sys.path[:0] = [str(code), str(Path(__file__).resolve().parent)]

import sitecustomize as faults
from hydra.core.global_hydra import GlobalHydra

from vera.commands import train
from vera.config import compose
from vera.run import prepare


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for method in sys.argv[2].split(","):
            prepare(compose([f"method={method}", "scale=rehearsal", "device=cpu", f"cache_dir={scratch}"]))
    GlobalHydra.instance().clear()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            errors = os.open(request["stderr"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            if request["fault_at"] is not None:
                faults.arm(request["fault_at"])
            sys.argv = ["train.py", *request["args"]]
            os._exit(train.main())
        print(pid, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)


if __name__ == "__main__":
    main()
