"""Arrays of .npz archives, whose types and sizes are checked before anything is unpacked. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mbrl.data.reading import Malformed, reading, require_memory

_SUFFIX = ".npy"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Archive:
    """The arrays of one .npz file by name.

    Attributes:
        keys: their names.
    """

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self.keys = sorted(name.removesuffix(_SUFFIX) for name in file.namelist() if name.endswith(_SUFFIX))

    def __getitem__(self, key: str) -> npt.NDArray[Any]:
        """The whole array.

        Raises:
            Malformed: there is none, it holds Python objects, is torn, or does not fit into memory.
        """
        if key not in self.keys:
            raise Malformed(f"it lacks {key}")
        member = self._file.getinfo(key + _SUFFIX)
        with self._file.open(member) as stream:
            require_memory(self._size(stream, member, key), member.compress_size, key)
        with self._file.open(member) as stream:
            array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array

    @staticmethod
    def _size(stream: IO[bytes], member: zipfile.ZipInfo, key: str) -> int:
        """Bytes of an array, as its header and the archive agree on them."""
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise Malformed(f"{key} is stored in numpy's format {version}, which is not read")
        shape, _, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise Malformed(f"{key} holds Python objects, which could be code and are never read")
        size = dtype.itemsize
        for side in shape:
            size *= side
        if size != member.file_size - stream.tell():
            raise Malformed(f"{key} is torn: {member.file_size - stream.tell()} bytes instead of {size}")
        return size


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an .npz file; an error inside the block names it.

    Raises:
        UserError: it is no archive, or an error came up inside the block. MemoryError: memory ran out.
    """
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise Malformed("torn, or no .npz archive")
        with zipfile.ZipFile(path) as file:
            yield Archive(file)
