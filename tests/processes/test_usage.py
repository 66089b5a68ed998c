"""Processor time of a run and of the processes that it starts."""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.synchronize import Event

import pytest

from mbrl.processes.usage import BusyCores, processor_seconds

WORK = 0.3  # seconds of processor time


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def work_and_wait(seconds: float, done: Event, seen: Event) -> None:
    work(seconds)
    done.set()
    seen.wait()


def test_work_counts_and_waiting_does_not() -> None:
    before = processor_seconds()
    work(WORK)
    worked = processor_seconds()
    time.sleep(WORK)
    assert worked - before == pytest.approx(WORK, abs=0.1)
    assert processor_seconds() - worked < 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="a running process is counted on Linux alone")
def test_a_worker_counts_once_while_it_runs_and_when_it_has_ended() -> None:
    context = multiprocessing.get_context("fork")
    done, seen = context.Event(), context.Event()
    before = processor_seconds()
    worker = context.Process(target=work_and_wait, args=(WORK, done, seen))
    worker.start()
    done.wait()
    assert processor_seconds() - before == pytest.approx(WORK, abs=0.15)
    seen.set()
    worker.join()
    assert processor_seconds() - before == pytest.approx(WORK, abs=0.2)


def test_a_process_that_waits_keeps_no_core_busy() -> None:
    busy = BusyCores()
    time.sleep(WORK)
    assert 0 <= busy() < 0.5
