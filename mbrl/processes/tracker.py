"""Python's resource tracker: a process that removes the semaphores of one that was killed."""

from __future__ import annotations

import os
from multiprocessing import resource_tracker

VARIABLE = "PYTHONWARNINGS"
QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"


def start_quietly() -> None:
    """Start the tracker of this process such that it says nothing of what it removes.

    Libraries make semaphores. The tracker of a run that was killed removes them, which is all that is to be done, and
    would warn of each of them after the run's last line.
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
