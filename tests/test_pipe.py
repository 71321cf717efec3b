"""Whoever stops reading a script's output ends it in silence."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vera.io.pipe import CLOSED

PRINTS = """
import sys
sys.path.insert(0, sys.argv[1])
from vera.io.pipe import ended
def main():
    try:
        for line in range(20_000):
            print("line", line, flush=line < 3)
    except OSError as error:  # as many a script has it
        print("error:", error, file=sys.stderr)
        return 1
    return 0
sys.exit(ended(main))
"""


@pytest.mark.parametrize("lines", [0, 1])
def test_a_closed_pipe_is_no_error(lines):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == CLOSED


def test_what_is_read_to_the_end_has_the_scripts_own_status():
    done = subprocess.run([sys.executable, "-c", PRINTS, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("line 19999\n")
