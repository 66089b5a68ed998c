"""Worker processes: they end with the process that started them, and one that dies is named."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from mbrl.errors import ProcessDied, UserError

SOCKET_PATH_BYTES = 104  # of the path of a Unix socket: 108 on Linux, 104 on macOS, with the zero at its end
SOCKET_NAME_BYTES = len("/pymp-xxxxxxxx/listener-xxxxxxxx") + 1  # what multiprocessing adds to the temporary folder
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
POLL_SECONDS = 1.0
PR_SET_PDEATHSIG = 1  # of prctl, from linux/prctl.h
LOADER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")


def end_with_parent() -> None:
    """Kill this process when the one that started it ends, however that ends.

    The kernel does it on Linux, also while this process is busy in compiled code; elsewhere a thread watches.
    """
    starter, parent = multiprocessing.parent_process(), os.getppid()
    # a fork server is the parent of processes that another one started, and outlives it
    if (starter is None or starter.pid == parent) and _killed_by_kernel() and os.getppid() == parent:
        return
    threading.Thread(target=_watch, args=(starter, parent), daemon=True).start()


def _killed_by_kernel() -> bool:
    return sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0


def _watch(starter: BaseProcess | None, parent: int) -> None:
    if starter is not None:
        starter.join()
    while os.getppid() == parent and starter is None:
        time.sleep(POLL_SECONDS)
    os._exit(1)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes inside this block.

    They ignore SIGINT and SIGTERM, which a terminal or a cluster sends to all processes of a run: the process that
    started them stops them. A signal to that process is handled at the end of the block. The sockets through which
    workers share tensors are in a folder whose path is short enough for them.

    Raises:
        UserError: no temporary folder has a path that is short enough.
    """
    _choose_socket_folder()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # inherited by the workers
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _choose_socket_folder() -> None:
    """Have multiprocessing, here and in the workers, make its folder where the path of a socket fits."""
    usual = tempfile.gettempdir()
    if _fits(usual):
        return
    short = next((folder for folder in SHORT_FOLDERS if _fits(folder) and os.access(folder, os.W_OK | os.X_OK)), None)
    if short is None:
        size = len(os.fsencode(usual))
        raise UserError(f"TMPDIR ({usual}) is too long ({size} bytes) for the sockets of workers: export TMPDIR=/tmp")
    tempfile.tempdir = short
    try:
        multiprocessing.util.get_temp_dir()  # makes the folder, and hands it on to every process that is started
    finally:
        tempfile.tempdir = usual


def _fits(folder: str) -> bool:
    return len(os.fsencode(folder)) + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES and Path(folder).is_dir()


class Watch:
    """Waits for a worker to die. Then the others, which may be waiting for it, are killed at once.

    A worker that ends with exit code 0 has been told to.

    Args:
        workers: processes that were started, in the order of their numbers.
        role: what they do, for the message, such as "collecting".

    Attributes:
        died: the error that names the first worker that died; None where all are at work.
    """

    def __init__(self, workers: Sequence[BaseProcess], role: str) -> None:
        self.died: ProcessDied | None = None
        self._workers, self._role = list(workers), role
        if workers:
            threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        alive = dict(enumerate(self._workers))
        while alive and self.died is None:
            wait([worker.sentinel for worker in alive.values()])
            for number in [number for number, worker in alive.items() if worker.exitcode is not None]:
                code = alive.pop(number).exitcode
                if code and self.died is None:
                    self.died = ProcessDied(f"{self._role} worker {number} of {len(self._workers)} {_how(code)}")
        if self.died is not None:
            end(self._workers)


def end(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that are still there."""
    for worker in workers:
        with suppress(ValueError):  # it has been closed
            worker.kill()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}, see its error above"
    return f"was killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"


@contextmanager
def naming_dead_loaders() -> Iterator[None]:
    """Turn torch's error for a data-loading worker that died, raised anywhere in the block, into ProcessDied."""
    try:
        yield
    except RuntimeError as error:
        found = LOADER_DIED.search(str(error))
        if found is None:
            raise
        how = f"was killed by a signal ({found[2].strip()})" if found[2] else "ended unexpectedly"
        raise ProcessDied(f"data-loading worker with process id {found[1]} {how}: out of memory?") from error
