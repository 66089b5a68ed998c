"""Reading files that others wrote: whatever is wrong with one becomes one line that names it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mbrl.errors import UserError, is_out_of_memory
from mbrl.settings import memory
from mbrl.settings.memory import GIB

POINTER = b"version https://git-lfs.github.com/"
MACHINE_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of this process: the file may be whole
LARGE, MAX_RATIO = GIB, 100  # bytes, and how many of them a byte of a file stands for: more are no recorded frames
MAX_MESSAGE = 200  # characters quoted from another library


class Malformed(Exception):
    """A file does not hold what an episode needs. `reading` adds the file's name."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error inside the block into a UserError that begins with the file's path.

    A stranger's file can make the libraries that decode it fail in any way, which is no defect of this project.

    Raises:
        UserError: the file cannot be read. MemoryError, OSError: memory or file descriptors ran out.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe may wait for ever
        raise UserError(f"{path}: a pipe, a socket or a device, and no file")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: {error}") from error
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise
        raise UserError(f"{path}: {_problem(path, error)}") from error


def _problem(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
    if _is_pointer(path):
        return "a Git LFS pointer: fetch the file itself with `git lfs pull`"
    return str(error) if isinstance(error, Malformed) else f"torn, or of another kind ({described(error)})"


def described(error: BaseException) -> str:
    """Class and text of another library's error, on one line."""
    text = " ".join(str(error).split())[:MAX_MESSAGE]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_pointer(path: Path) -> bool:
    """Whether Git LFS left a pointer where the file belongs."""
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def require_memory(size: int, stored: int, what: str) -> None:
    """Refuse what would not fit into memory, before any is taken.

    Args:
        size: bytes in memory.
        stored: bytes in the file.
        what: is read, for the message.

    Raises:
        Malformed: there is less memory, or a small file unpacks to a large array.
    """
    if size > LARGE and size > MAX_RATIO * stored:
        raise Malformed(f"{what} unpacks from {stored} bytes to {size / GIB:.1f} GiB, which no recorded frames do")
    free = memory.free_memory(torch.device("cpu"))
    if size > free:
        raise Malformed(f"{what} takes {size / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free")
