"""Python's resource tracker: a process that removes the semaphores of one that was killed."""

from __future__ import annotations

import os
from multiprocessing import resource_tracker

VARIABLE = "PYTHONWARNINGS"
QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"


def start_quietly() -> None:
    """Start the resource tracker of this process with its leaked-semaphore warnings silenced.

    Libraries create semaphores. The tracker of a killed run removes them, and would otherwise print a warning for each
    after the run's last line.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ",".join(filter(None, (before, QUIET)))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
