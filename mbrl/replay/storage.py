"""Where a buffer's records are kept: in memory, or in memory-mapped files."""

from __future__ import annotations

import logging
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer, RoundRobinWriter, TensorStorage

from mbrl.errors import UserError
from mbrl.replay.episode_table import Episode
from mbrl.run_folder.checkpoint import DamagedFile
from mbrl.run_folder.files import name_in_errors
from mbrl.run_folder.schema import Maybe, Schema, SchemaError, TensorType, require
from mbrl.run_folder.tensors import bytes_of

SUFFIX = ".memmap"
SPARE = 64 * 2**20  # bytes that are left for checkpoints and logs
GIB = 2**30

_log = logging.getLogger(__name__)


class InMemory:
    """Records that are saved with every checkpoint.

    Args:
        size: records. fields: type and shape of each entry of a record; None: whatever the first record holds.
    """

    def __init__(self, size: int, fields: Mapping[str, TensorType | Maybe] | None) -> None:
        self.size, self._fields = size, fields

    def create(self, record: TensorDictBase) -> TensorDictBase:
        """Room for `size` records like this one: TensorDict [size]."""
        if self._fields is None:
            self._fields = {key: TensorType.of(value) for key, value in record.items()}
        return record.to_tensordict().expand(self.size).clone()

    def checksums(self, episodes: TensorDictBase) -> Tensor:
        """Of episodes [N, R]: 0 for each, because the checksum of the checkpoint's file covers them."""
        return torch.zeros(len(episodes), dtype=torch.int64)

    def state_dict(self, data: TensorDictBase) -> dict[str, Any]:
        return {"data": data.to_dict()}

    def schema(self) -> dict[str, Schema]:
        return {"data": Maybe({key: self._of_ring(field) for key, field in (self._fields or {}).items()})}

    def _of_ring(self, field: TensorType | Maybe) -> Schema:
        if isinstance(field, Maybe):
            return Maybe(self._of_ring(field.schema))
        return TensorType(field.dtype, (None, *field.shape))

    def restore(self, state: Mapping[str, Any], episodes: Iterable[Episode]) -> TensorDictBase:
        """The records of a state that fits `schema`, of a ring of `state["size"]` records, which may be smaller.

        Raises:
            SchemaError: it has not that many records.
        """
        if "data" not in state:
            raise SchemaError("a buffer has episodes and no records")
        return enlarged(state["data"], state["size"], self.size)


class MemoryMaps:
    """Memory-mapped raw files of `size` records; dtypes and shapes come from the caller, not from disk.

    Args:
        directory: made when the files are. size: records.
        fields: type and shape of each entry of a record; FIELD.memmap has size × shape numbers of that type.
        read_only: map existing files privately: what is written stays in this process.

    Raises:
        UserError: there are no fields.
    """

    def __init__(
        self,
        directory: Path,
        size: int,
        fields: Mapping[str, TensorType | Maybe] | None,
        *,
        read_only: bool = False,
    ) -> None:
        self.directory, self.size, self._read_only = directory, size, read_only
        self.fields = {key: field for key, field in (fields or {}).items() if isinstance(field, TensorType)}
        if not self.fields:
            raise UserError("replay: memory maps need the fields of a record")
        self._shapes = {key: tuple(int(length or 0) for length in field.shape) for key, field in self.fields.items()}

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

    def _bytes(self, key: str) -> int:
        return self.size * math.prod(self._shapes[key]) * self.fields[key].dtype.itemsize

    @property
    def room(self) -> int:
        """Bytes of the files."""
        return sum(self._bytes(key) for key in self.fields)

    def require_disk_space(self) -> None:
        """Log the disk space that the files will take, and check that the disk has it.

        Raises:
            UserError: says what is needed, what there is and which settings decide it.
        """
        existing = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        taken = sum(file.stat().st_blocks * 512 for file in self.directory.glob(f"*{SUFFIX}"))
        size = self.room
        needed, free = size - taken, shutil.disk_usage(existing).free - SPARE
        if needed > max(free, 0):
            raise UserError(
                f"the replay of {self.size} records needs {_room(needed)} in {self.directory}, and the disk has "
                f"{_room(max(free, 0))}: lower replay.capacity, total_env_steps or checkpoint_every"
            )
        if needed > 0:
            _log.info("the replay takes %s in %s", _room(size), self.directory)

    def create(self, record: TensorDictBase) -> TensorDictBase:
        """Make the files, or take over what another run left, and map them: TensorDict [size].

        Raises:
            SchemaError: records like this one do not have the fields.
            OSError: the disk has no room. It is noticed here; later it would be a SIGBUS.
        """
        if self._read_only:
            raise UserError(f"the replay in {self.directory} was opened for reading: nothing can be added to it")
        require(dict(record.items()), self.fields, "replay: a record")
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
        with name_in_errors(file):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(file, flags, 0o666)
            try:
                os.ftruncate(descriptor, size)
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def _enlarge(self, size: int) -> None:
        """Make room in files that have at least the length of a ring of `size` records, which is smaller.

        A start that was killed may have left any length between the two, with or without room on the disk.
        """
        for key in self.fields:
            file = self._file(key)
            shorter = self._bytes(key) // self.size * size
            if file.is_file() and not file.is_symlink() and shorter <= file.stat().st_size <= self._bytes(key):
                self._reserve(file, self._bytes(key))

    def open(self) -> TensorDict:
        """Map the files as they are: TensorDict [size].

        Raises:
            DamagedFile: a file is missing, a link, or shorter than its field. It may be longer: a start that was
                to make the run longer may have got no further.
        """
        data = {}
        for key, shape in self._shapes.items():
            file, expected = self._file(key), self._bytes(key)
            if file.is_symlink() or not file.is_file():
                raise DamagedFile(f"the replay's {file.name} is missing")
            if file.stat().st_size < expected:
                raise DamagedFile(f"the replay's {file.name} has {file.stat().st_size} bytes instead of {expected}")
            numbers, dtype = self.size * math.prod(shape), self.fields[key].dtype
            data[key] = torch.from_file(str(file), shared=not self._read_only, size=numbers, dtype=dtype).view(
                self.size, *shape
            )
        return TensorDict(data, batch_size=[self.size])

    def flush(self) -> None:
        """Write to the disk what has been changed in memory."""
        for key in self.fields:
            with name_in_errors(self._file(key)):
                descriptor = os.open(self._file(key), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def checksum(self, records: TensorDictBase) -> int:
        """CRC-32 of records' entries in the order of their names."""
        value = 0
        for key in sorted(records.keys()):
            value = zlib.crc32(bytes_of(records[key]), value)
        return value

    def checksums(self, episodes: TensorDictBase) -> Tensor:
        """The checksum of each of episodes [N, R], int64 [N]."""
        return torch.tensor([self.checksum(episode) for episode in episodes.unbind(0)])

    def state_dict(self, data: TensorDictBase) -> dict[str, Any]:
        return {}

    def schema(self) -> dict[str, Schema]:
        return {}

    def restore(self, state: Mapping[str, Any], episodes: Iterable[Episode]) -> TensorDictBase:
        """Map the files and check the records of these episodes against their checksums.

        Files of a ring of `state["size"]` records get room for all of this one's.

        Raises:
            DamagedFile: a file or an episode is not as it was written.
        """
        if state["size"] < self.size and not self._read_only:
            self._enlarge(state["size"])
        data = self.open()
        for start, length, _, expected in episodes:
            rows = (start + torch.arange(length)) % self.size
            first, last = int(rows[0]), int(rows[-1])
            records = data[first : last + 1] if first <= last else data[rows]  # a slice needs no copy
            if self.checksum(records) != expected:
                raise DamagedFile(f"the replay's records {start} to {start + length - 1} are altered")
        return data


def enlarged(values: Mapping[str, Any], size: int, larger: int) -> TensorDictBase:
    """A copy of what is kept of each record of a ring of `size`, for one that is at least as large.

    New rows are copies of the last row, which is still unwritten in a ring that may be enlarged.

    Raises:
        SchemaError: it is not of `size` records.
    """
    if any(value.shape[0] != size for value in TensorDict(values).values(True, True)):
        raise SchemaError(f"the replay held {size} records, and its entries are of another number")
    data = TensorDict(values, batch_size=[size])
    return torch.cat((data, data[-1:].expand(larger - size))) if larger > size else data.clone()


def ring_of(data: TensorDictBase) -> ReplayBuffer:
    """TorchRL's buffer around records [size]: new ones take the place of the oldest."""
    return ReplayBuffer(storage=TensorStorage(data), writer=RoundRobinWriter(), batch_size=1)


def _room(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def refuse_non_finite(records: TensorDictBase) -> None:
    """Raise FloatingPointError where a float entry is NaN or infinite: such data must never be learned from."""
    for key, value in records.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FloatingPointError(f"replay: '{key}' holds NaN or infinite values; this episode is refused")
