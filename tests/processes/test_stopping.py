"""SIGTERM asks a run to stop where nothing is lost, and interrupts it where that takes too long."""

import os
import signal
import threading
import time

import pytest

from mbrl.processes import stopping
from mbrl.processes.stopping import StopRequest


def test_sigterm_asks_and_the_run_leaves_where_it_likes():
    stop, before = StopRequest(), signal.getsignal(signal.SIGTERM)
    with stop.on_sigterm():
        stop.leave()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            stop.leave()
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_run_that_does_not_leave_is_interrupted(monkeypatch):
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.05)
    with pytest.raises(KeyboardInterrupt), StopRequest().on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)


def test_outside_the_main_thread_nothing_changes():
    seen = []

    def work() -> None:
        with StopRequest().on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
