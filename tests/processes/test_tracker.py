"""A run that was killed leaves semaphores, which are removed without a word."""

import os
import subprocess
import sys

import pytest

KILLED = """
import multiprocessing, os, signal
from mbrl.processes.tracker import start_quietly
start_quietly()
lock = multiprocessing.get_context("spawn").Lock()
print(os.environ.get("PYTHONWARNINGS"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("given", [None, "default"])
def test_nothing_is_said_of_what_a_killed_process_left(given: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    environment |= {"PYTHONWARNINGS": given} if given else {}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{given}\n", ""), "and the variable is as it was"
