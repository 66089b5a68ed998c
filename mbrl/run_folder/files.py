"""Writing files such that a kill, a full disk or an I/O error never leaves a torn one under its own name."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
import shutil
import socket
import stat
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mbrl.errors import UserError

_log = logging.getLogger(__name__)

SKIPPED_FOLDERS = ("wandb",)
BLOCK_BYTES = 2**20  # bytes that are worth a write of their own
PARTIAL = ".partial"  # suffix of a file that is being written
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # of a folder that several share
PARTIAL_NAME = re.compile(rf"\.(?:(\w+)-)?(\d+)-\d+{re.escape(PARTIAL)}(\.\w+)?$")  # host and process that write it
LONGEST_WRITE = 86400.0  # seconds after which nobody on another host still writes a file


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Give an OSError from inside the block the path's name, where it has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file and flush it to the disk.

    Args:
        path: an older file of that name is overwritten.
        chunks: the content, piece by piece.

    Returns:
        The file's bytes, and their SHA-256 in hexadecimal.

    Raises:
        OSError: with the file's name; what was written so far stays.
    """
    digest, size = hashlib.sha256(), 0
    with name_in_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for block in _blocks(chunks):
                digest.update(block)
                size += block.nbytes
                while block:
                    block = block[os.write(descriptor, block) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return size, digest.hexdigest()


def _blocks(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same content in pieces of BLOCK_BYTES bytes or more: small chunks are joined, large ones are not copied."""
    small = bytearray()
    for chunk in chunks:
        if len(chunk) < BLOCK_BYTES:
            small += chunk
        if small and (len(chunk) >= BLOCK_BYTES or len(small) >= BLOCK_BYTES):
            yield memoryview(small)
            small = bytearray()
        if len(chunk) >= BLOCK_BYTES:
            yield memoryview(chunk)
    if small:
        yield memoryview(small)


def write_atomically(path: Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: an older one of that name is replaced in one step.

    Its folder is made where there is none. Several processes and threads may write the same file.

    Raises:
        OSError: with the file's name; an older file stays as it was.
    """
    chunks = [content.encode()] if isinstance(content, str) else [content] if isinstance(content, bytes) else content
    with replacing(path) as partial:
        write_new(partial, chunks)


def csv_text(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table as CSV, with a line feed after each row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Give a path to write a file to; at the end of the block, that file takes the place of `path` in one step.

    For writers that need a path. Whoever has the content uses `write_atomically`.

    Args:
        path: the file; its folder is made where there is none.
        suffix: with which the temporary name ends, for writers that choose a format by it.

    Raises:
        OSError: with the file's name; an older file stays as it was.
    """
    partial = path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{threading.get_ident()}{PARTIAL}{suffix}")
    try:
        with name_in_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, partial, str(partial)):
            error.filename, error.filename2 = str(path), None
        with suppress(OSError):
            partial.unlink()
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `write_atomically`: those of this machine, and of others after a day.

    A container, or a job on a cluster, has another host name each time.
    """
    for partial in folder.glob(f".*{PARTIAL}*"):
        if named := PARTIAL_NAME.search(partial.name):
            with suppress(OSError):
                old = time.time() - partial.stat().st_mtime > LONGEST_WRITE
                if old or (named[1] == HOST and not _is_running(int(named[2]))):
                    partial.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that a rename in it outlives a power cut."""
    with name_in_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder below (and at) `folder`, with the names of its folders and of its files, sorted.

    As `os.walk`, names that are removed from the list of folders are not visited. Links are followed, each folder is
    visited once, and what is hidden is left out: notebooks keep copies there.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=_tell):
            at = Path(place)
            status = at.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield at, folders, sorted(name for name in files if not name.startswith("."))
            waiting += [at / name for name in folders if (at / name).is_symlink()]


def _tell(error: OSError) -> None:
    _log.warning("left out %s: %s", error.filename, error.strerror)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_regular_files(folder: Path) -> None:
    """Refuse a run folder in which something is no file and no folder.

    A link could have this process write or delete what lies elsewhere, and a pipe would have it wait for ever. What
    other programs keep in a folder of their own (SKIPPED_FOLDERS) is let be.

    Raises:
        ValueError: names the first link, pipe, device or socket.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in (*folders, *files):
            mode = Path(place, name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "no file"
                raise UserError(f"{Path(place, name)} is {kind}: a run folder may hold files and folders alone")


def remove_folder(folder: Path, hidden: str) -> None:
    """Remove a folder, or a file in its place, such that no half of it is ever seen under its own name.

    Args:
        hidden: the name, beside it, that the folder has while it is being removed.
    """
    doomed = folder.with_name(hidden)
    _remove(doomed)
    folder.replace(doomed)
    _remove(doomed)  # what cannot be removed now is removed at the next start


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
