"""How much processor time a run takes, that of its worker processes included, and how much memory."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
TIMES_OF_A_PROCESS = slice(11, 13)  # user and system time among the fields of /proc/PID/stat that follow its name
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: processor time and the period that it is of, in microseconds


class BusyCores:
    """Cores that a run keeps busy on average, from when this is made: processor time over wall time."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), processor_seconds()

    def __call__(self) -> float:
        """0 or more; nan at the very first moment."""
        elapsed = time.monotonic() - self._began
        return max(0.0, processor_seconds() - self._before) / elapsed if elapsed > 0 else float("nan")


def usable_cores() -> int:
    """Cores that this process may use, 1 or more; `taskset`, a batch system or a container can limit them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # There is no quota, or its file says "max".
        quota, period = map(int, QUOTA.read_text(encoding="ascii").split())
        cores = min(cores, math.ceil(quota / period))
    return cores


def processor_seconds() -> float:
    """Processor time in seconds of this process and of all processes that it has started.

    Workers that still run are counted on Linux alone; elsewhere a process counts when it has ended.
    """
    times = os.times()
    running = (child.pid for child in multiprocessing.active_children())
    return times.user + times.system + times.children_user + times.children_system + sum(map(_of_process, running))


def _of_process(pid: int | None) -> float:
    """Processor time in seconds of one running process; 0 where it cannot be seen."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return 0.0
    return sum(map(int, after_name.split()[TIMES_OF_A_PROCESS])) / os.sysconf("SC_CLK_TCK")


def peak_memory(device: torch.device) -> int:
    """The most bytes of memory that this process has held: of the GPU for a GPU, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, KeyError):  # On Linux ru_maxrss can be that of the process that started this one.
        lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
