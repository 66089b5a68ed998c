"""The replay's records on disk: one memory-mapped file for each entry of a record."""

from __future__ import annotations

import logging
import math
import os
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase

from mbrl.run_folder.checkpoint import Damaged
from mbrl.run_folder.files import naming
from mbrl.run_folder.schema import TensorType
from mbrl.run_folder.tensors import bytes_of

SUFFIX = ".memmap"
SPARE = 64 * 2**20  # bytes that are left for checkpoints and logs
GIB = 2**30

_log = logging.getLogger(__name__)


class MemoryMaps:
    """Raw files of `size` records, opened by a table that the caller knows: nothing on disk says how to read them.

    Args:
        directory: made when the files are. size: records.
        fields: type and shape of each entry of a record; FIELD.memmap has size × shape numbers of that type.
    """

    def __init__(self, directory: Path, size: int, fields: Mapping[str, TensorType]) -> None:
        self.directory, self.size, self.fields = directory, size, dict(fields)
        self._shapes = {key: tuple(int(length or 0) for length in field.shape) for key, field in fields.items()}

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

    def _bytes(self, key: str) -> int:
        return self.size * math.prod(self._shapes[key]) * self.fields[key].dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(self._bytes(key) for key in self.fields)

    def require_room(self) -> None:
        """Say how much room the files will take, and refuse where the disk has less.

        Raises:
            ValueError: says what is needed, what there is and which settings decide it.
        """
        there = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        taken = sum(file.stat().st_blocks * 512 for file in self.directory.glob(f"*{SUFFIX}"))
        needed, free = self.nbytes - taken + SPARE, shutil.disk_usage(there).free
        if needed > free:
            raise ValueError(
                f"the replay of {self.size} records needs {needed / GIB:.1f} GiB in {self.directory}, and the disk has "
                f"{free / GIB:.1f} GiB: lower replay.capacity, total_env_steps or checkpoint_every"
            )
        if needed > SPARE:
            _log.info("the replay takes %.2f GiB in %s", self.nbytes / GIB, self.directory)

    def create(self) -> TensorDict:
        """Make the files, or take over what another run left, and map them: TensorDict [size].

        Raises:
            OSError: the disk has no room. It is noticed here; later it would be a SIGBUS.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            for key in self.fields:
                self._reserve(self._file(key), self._bytes(key))
        except OSError:
            for key in self.fields:
                with suppress(OSError):
                    self._file(key).unlink()
            raise
        return self.open()

    @staticmethod
    def _reserve(file: Path, size: int) -> None:
        with naming(file):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(file, flags, 0o666)
            try:
                os.ftruncate(descriptor, size)
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def open(self) -> TensorDict:
        """Map the files as they are: TensorDict [size].

        Raises:
            Damaged: a file is missing, a link, or not of the size that its field has.
        """
        data = {}
        for key, shape in self._shapes.items():
            file, expected = self._file(key), self._bytes(key)
            if file.is_symlink() or not file.is_file():
                raise Damaged(f"the replay's {file.name} is missing")
            if file.stat().st_size != expected:
                raise Damaged(f"the replay's {file.name} has {file.stat().st_size} bytes instead of {expected}")
            numbers, dtype = self.size * math.prod(shape), self.fields[key].dtype
            data[key] = torch.from_file(str(file), shared=True, size=numbers, dtype=dtype).view(self.size, *shape)
        return TensorDict(data, batch_size=[self.size])

    def flush(self) -> None:
        """Write to the disk what has been changed in memory."""
        for key in self.fields:
            with naming(self._file(key)):
                descriptor = os.open(self._file(key), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def verify(self, data: TensorDictBase, start: int, length: int, expected: int) -> None:
        """Check the records of an episode against the checksum that they were written with.

        Args:
            data: all records. start, length: of the episode; `start` counts all records ever written.

        Raises:
            Damaged: they are not as they were written.
        """
        rows = (start + torch.arange(length)) % self.size
        first, last = int(rows[0]), int(rows[-1])
        records = data[first : last + 1] if first < last else data[rows]  # a slice needs no copy
        if checksum(records) != expected:
            raise Damaged(f"the replay's records {start} to {start + length - 1} are altered")


def checksum(records: TensorDictBase) -> int:
    """CRC-32 of record entries in the order of their names."""
    value = 0
    for key in sorted(records.keys()):
        value = zlib.crc32(bytes_of(records[key]), value)
    return value
