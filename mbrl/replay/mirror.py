"""A copy of a buffer's records on the GPU: batches are drawn there, so that only their indices are copied to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.errors import UserError
from mbrl.replay.episode_table import Episode
from mbrl.run_folder.schema import Maybe, TensorType
from mbrl.settings import memory

Placement = Literal["auto", "cpu", "cuda"]
Fields = Mapping[str, TensorType | Maybe]
CPU = torch.device("cpu")
SHARE = 0.5  # of the free memory of a GPU, which `auto` leaves the rest of to networks and their updates

_log = logging.getLogger(__name__)


class Mirror:
    """A ring of records on a GPU, with the same rows as the one that it is a copy of. Nothing is ever read back.

    Args:
        fields: type and shape of each entry of a record.
        size: records of the ring.
        device: the GPU.

    Attributes:
        data: the records, [size]; rows that were never written hold anything.
    """

    def __init__(self, fields: Fields, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        rows = {key: torch.empty(size, *shape, dtype=kind, device=device) for key, (kind, shape) in _known(fields)}
        self.data = TensorDict(rows, batch_size=[size])

    def write(self, first: int, records: TensorDictBase) -> None:
        """Copy records [N] of either device; `first` is the number of the first of them among all ever written."""
        for rows, part in self._pieces(first, len(records)):
            for key, values in records.items():
                self.data[key][rows].copy_(values[part], non_blocking=True)

    def fill(self, records: TensorDictBase, episodes: Iterable[Episode]) -> None:
        """Copy these episodes of a ring of records [size] on the CPU."""
        for start, length, _, _ in episodes:
            for rows, _ in self._pieces(start, length):
                for key, values in records.items():
                    self.data[key][rows].copy_(values[rows], non_blocking=True)

    def send(self, *places: Tensor) -> tuple[Tensor, ...]:
        """Copy index tensors of one shape to the GPU, all in one copy that the CPU does not wait for."""
        return torch.stack(places).pin_memory().to(self.device, non_blocking=True).unbind(0)

    def _pieces(self, first: int, count: int) -> Iterator[tuple[slice, slice]]:
        """The rows of `count` records in the ring, and which of the records they are: two pieces where it turns."""
        begin = first % self.size
        whole = min(count, self.size - begin)
        yield slice(begin, begin + whole), slice(0, whole)
        if whole < count:
            yield slice(0, count - whole), slice(whole, count)


def mirror_for(
    placement: Placement, device: torch.device, fields: Fields | None, size: int, beside: int = 0
) -> Mirror | None:
    """The copy on the GPU of a ring of records; None where batches are drawn on the CPU.

    Args:
        placement: `cpu`: never a copy. `cuda`: a copy on the run's GPU. `auto`: the same if the run has a GPU, and the
            copy takes at most half of the memory that is free there.
        device: the device of the run.
        fields: type and shape of each entry of a record; None if they are not known yet.
        size: records.
        beside: bytes that are kept on the GPU beside the records.

    Raises:
        UserError: `cuda`, and the run has no GPU, or the records do not fit there.
        ValueError: a copy is wanted and the fields are not known.
    """
    require_gpu(placement, device)
    if placement == "cpu" or device.type != "cuda":
        return None
    if fields is None:
        raise ValueError("a copy of the replay on the GPU needs the fields of a record")
    needed = beside + size * sum(math.prod(shape) * kind.itemsize for _, (kind, shape) in _known(fields))
    if placement == "auto" and needed > SHARE * memory.free_memory(device):
        text = "the replay stays on the CPU: %d records take %.1f GiB, more than half of the GPU's free memory"
        _log.info(text, size, needed / memory.GIB)
        return None
    memory.require_memory(f"replay.device={placement}: a copy of {size} records", needed, device)
    return Mirror(fields, size, device)


def require_gpu(placement: Placement, device: torch.device) -> None:
    """UserError where records are wanted on the GPU of a run that has none."""
    if placement == "cuda" and device.type != "cuda":
        raise UserError(f"replay.device=cuda needs a run on a GPU, and its device is {device}: set replay.device=auto")


def gather(values: Tensor, rows: Tensor, *, pinned: bool = False) -> Tensor:
    """Rows int64 [*B] of values [N, *S] on the same device: [*B, *S].

    Args:
        values: one entry of records.
        rows: which of them.
        pinned: whether the result is in memory that a GPU reads by itself, without the CPU waiting for the copy.
    """
    shape = (rows.numel(), *values.shape[1:])
    room = torch.empty(shape, dtype=values.dtype, pin_memory=True) if pinned else None
    # index_select copies whole rows; fancy indexing of uint8 was measured 20 times slower
    return torch.index_select(values, 0, rows.reshape(-1), out=room).reshape(*rows.shape, *shape[1:])


def pinned_room(parts: Sequence[TensorDictBase]) -> TensorDictBase:
    """Pinned memory for the rows of all these batches, which have the same entries."""
    rows = sum(map(len, parts))

    def room(one: Tensor) -> Tensor:
        return torch.empty((rows, *one.shape[1:]), dtype=one.dtype, pin_memory=True)

    found: TensorDictBase = parts[0].apply(room, batch_size=[rows, *parts[0].batch_size[1:]])
    return found


def _known(fields: Fields) -> Iterator[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """Name, type and shape of each entry, also of those that may be absent."""
    for key, field in fields.items():
        kind = field.schema if isinstance(field, Maybe) else field
        yield key, (kind.dtype, tuple(int(length or 0) for length in kind.shape))
