"""One process at a time in a run's folder, and whether there is one."""

from __future__ import annotations

import fcntl
import socket
import time
from pathlib import Path
from typing import IO

from mbrl.errors import UserError

LOCK = ".lock"  # holds the name of the machine; what says that a process runs is the lock on it, which dies with it
TRIES, PAUSE = 10, 0.1  # who only looks holds the lock for a moment; seconds


class FolderInUse(UserError):
    """Another process is at work in the folder."""


class FolderLock:
    """Keeps a folder to this process until `release`, or until the process ends, whatever ends it.

    A POSIX record lock: processes forked from this one, such as environments, do not inherit it.

    Args:
        folder: made where there is none.

    Raises:
        FolderInUse: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / LOCK).open("a+", encoding="utf-8")
        for _ in range(TRIES):
            if _take(self._file):
                break
            time.sleep(PAUSE)
        else:
            self._file.close()
            host = (folder / LOCK).read_text(encoding="utf-8")
            raise FolderInUse(f"{folder}: another process, on {host}, is training there: wait for it, or stop it")
        self._file.truncate(0)
        self._file.write(socket.gethostname())
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def is_locked(folder: Path) -> bool | None:
    """Whether a process of this machine is at work in the folder; None where that cannot be told.

    Not to be asked by that process itself: looking gives its lock away.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            if file.read() != socket.gethostname():
                return None
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # never locked, or a file system without locks
        return None


def _take(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of the two, POSIX leaves open
        return False
    except OSError:  # a file system without locks: go on as if there were one
        pass
    return True
