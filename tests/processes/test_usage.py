"""Processor time of a run and of the processes that it starts."""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mbrl.processes.usage import BusyCores, peak_memory, processor_seconds, usable_cores

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
    assert processor_seconds() - before == pytest.approx(WORK, abs=0.25)  # the fork of a large process takes time too
    seen.set()
    worker.join()
    assert processor_seconds() - before == pytest.approx(WORK, abs=0.25)


def test_a_process_that_waits_keeps_no_core_busy() -> None:
    busy = BusyCores()
    time.sleep(WORK)
    assert 0 <= busy() < 0.5


@pytest.mark.parametrize(("quota", "cores"), [("250000 100000", 3), ("50000 100000", 1), ("max 100000", 64)])
def test_the_quota_of_a_container_limits_the_cores(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("mbrl.processes.usage.QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert usable_cores() == cores


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /proc")
def test_the_peak_of_memory_is_this_processs_and_not_that_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=2**20))  # KiB, of a large parent
    assert 2**20 < peak_memory(torch.device("cpu")) != 2**30
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2072 kB\n")
    monkeypatch.setattr("mbrl.processes.usage.STATUS", tmp_path / "status")
    assert peak_memory(torch.device("cpu")) == 2072 * 2**10
    (tmp_path / "status").write_text("Name:\tpython\n")  # as some containers show it
    assert peak_memory(torch.device("cpu")) == 2**30
