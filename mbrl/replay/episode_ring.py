"""Ring buffer of whole episodes: writing, storage and checkpoints. The oldest episodes are dropped first.

An episode of L steps is stored as L + 1 *records*: row t holds the observation o_t, `action` a_t and the resulting
`reward`, `success`, `terminated` and `truncated`. The last row holds the final observation only, so every frame is
stored once. The unfinished episode is stored behind the others. N episodes, R records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer

from mbrl.data.episodes import LATENT
from mbrl.errors import UserError
from mbrl.replay.episode_table import Episode, EpisodeTable, check_table
from mbrl.replay.latents import Latents
from mbrl.replay.mirror import CPU, Fields, Placement, gather, mirror_for
from mbrl.replay.storage import InMemory, MemoryMaps, refuse_non_finite, ring_of
from mbrl.run_folder.schema import Maybe, Schema, SchemaError, TensorType


class EpisodeRing:
    """A ring of records of whole episodes.

    Args:
        capacity: records that may be drawn from at any time.
        reserve: records beyond the capacity, so that those of the last checkpoint are kept until the next is written.
        directory: where the memory maps lie; None keeps the records in memory.
        fields: type and shape of what a record holds: memory maps are opened by them, a saved state is held against
            them. None: whatever the first episode holds.
        latents: type and shape of what `latents` keeps of a record.
        read_only: map existing files privately, so that nothing reaches them.
        device: where batches are drawn, see `mirror_for`. run_device: of the networks that learn from them.

    Attributes:
        head: records of finished episodes ever written; record g lies in row g % size.
        unfinished: number of records of the unfinished episode, behind the head; 0 without one.

    Raises:
        UserError: memory maps or a copy on a GPU are asked for without fields.
    """

    def __init__(
        self,
        capacity: int,
        *,
        reserve: int = 0,
        directory: Path | None = None,
        fields: Fields | None = None,
        latents: Mapping[str, TensorType] | None = None,
        read_only: bool = False,
        device: Placement = "auto",
        run_device: torch.device = CPU,
    ) -> None:
        self.capacity, self.size = capacity, capacity + reserve
        self.storage: InMemory | MemoryMaps = InMemory(self.size, fields)
        if directory is not None:
            self.storage = MemoryMaps(directory, self.size, fields, read_only=read_only)
        self.head = self.unfinished = 0
        self._buffer: ReplayBuffer | None = None
        self._read_only = read_only
        self.latents = Latents(self.size, latents)
        self.placement, self._mirror = device, mirror_for(device, run_device, fields, self.size, self.latents.room)
        self.device = self.latents.device = CPU if self._mirror is None else run_device  # of batches
        self.pinned = run_device.type == "cuda" and self._mirror is None
        self._table = EpisodeTable()

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        _, bounds = self._table.counts()
        return int(bounds[-1]) if len(bounds) else 0

    @property
    def episodes(self) -> list[Episode]:
        """Episodes that can be drawn from, oldest first; the unfinished one is the last."""
        return self._table.episodes

    @property
    def finished(self) -> int:
        """Episodes that can be drawn from and are finished."""
        return len(self._table.finished)

    @property
    def records(self) -> TensorDictBase:
        """All rows of the ring, [size], on the CPU; rows outside `episodes` are undefined."""
        if self._buffer is None:
            raise UserError("replay: it is empty; collect an episode first")
        return self._buffer.storage._storage

    # ---------------------------------------------------------------- writing
    def extend(self, records: TensorDictBase, first: int = 0, lengths: Sequence[int] | Tensor | None = None) -> None:
        """Append N finished episodes of R rows each: records [N, R]; rows before `first` serve as history only.

        lengths: rows of each episode that count, where they are cut short; None for all R.
        """
        count, length = records.batch_size
        written = self._write(self.head, records.reshape(-1))
        starts = self.head + torch.arange(count) * length
        rows = torch.full((count,), length) if lengths is None else torch.as_tensor(lengths)
        self._table.append(starts, rows, first, self.storage.checksums(written.reshape(count, length)))
        self.head += count * length
        self._table.drop_before(self.head - self.capacity)

    def grow(self, records: TensorDictBase) -> None:
        """Append steps to the unfinished episode, or begin it: records [R], whose first row replaces its last one.

        They can be drawn from at once.
        """
        offset = max(self.unfinished - 1, 0)
        self._write(self.head + offset, records, behind=offset)
        self.unfinished = offset + len(records)
        self._table.grow(self.head, self.unfinished)
        self._table.drop_before(self.head + self.unfinished - self.capacity)

    def finish(self, records: TensorDictBase) -> None:
        """Finish the unfinished episode, whose records are [R]; ValueError if their number differs."""
        if len(records) != self.unfinished:
            raise ValueError(
                f"replay: an episode of {len(records)} records ends, and {self.unfinished} were written of it"
            )
        self._table.finish(self.storage.checksums(records[None].exclude(LATENT).cpu()))
        self.head, self.unfinished = self.head + self.unfinished, 0

    def _write(self, number: int, records: TensorDictBase, behind: int = 0) -> TensorDictBase:
        """Write records [N] from this number on; returns them as they were written, on the CPU and without latents.

        behind: records of the same episode that lie before them.
        """
        if behind + len(records) > self.capacity:
            fits = f"do not fit into a capacity of {self.capacity}; raise replay.capacity"
            raise UserError(f"replay: {behind + len(records)} records {fits}")
        latents, given = records.get(LATENT, None), records.exclude(LATENT)
        records = given if given.device == CPU else given.cpu()
        refuse_non_finite(records)
        if self._buffer is None:
            self._buffer = ring_of(self.storage.create(records[0]))
        self._buffer.writer._cursor = number % self.size
        self._buffer.extend(records)
        if self._mirror:
            self._mirror.write(number, given)
        if latents is not None:
            self.latents.write((number + torch.arange(len(records))) % self.size, latents)
        return records

    # ---------------------------------------------------------------- reading
    def _of_rows(self, key: str, episode: Tensor, row: Tensor) -> Tensor:
        """A field of one number, flat, of rows of episodes, all on the CPU."""
        return self.records[key][(self._table.starts[episode] + row) % self.size].flatten()

    def _rows(self, episode: Tensor, offset: Tensor) -> Tensor:
        return (self._table.on(self.device).starts[episode] + offset) % self.size

    def _send(self, *places: Tensor) -> tuple[Tensor, ...]:
        """Indices of one shape on the device of batches."""
        return self._mirror.send(*places) if self._mirror else places

    def _gather(self, key: str, rows: Tensor) -> Tensor:
        records = self._mirror.data if self._mirror else self.records
        of = self.latents.values if key in self.latents.observed else records
        assert of is not None
        return gather(of.get(key), rows, pinned=self.pinned)

    # ------------------------------------------------------------- checkpoint
    def state_dict(self) -> dict[str, Any]:
        """Where the finished episodes lie, their latents, and the records themselves where they are in memory."""
        state: dict[str, Any] = {"head": self.head, "size": self.size, "episodes": self._table.finished}
        state["latents"] = self.latents.state_dict()
        return state if self._buffer is None else {**state, **self.storage.state_dict(self.records)}

    def schema(self) -> dict[str, Schema]:
        episodes = TensorType(torch.int64, (None, len(Episode._fields)))
        of_table = {"head": int, "size": int, "episodes": episodes, "latents": Maybe(self.latents.schema())}
        return {**of_table, **self.storage.schema()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a state that fits `schema`. A smaller saved ring that has not wrapped around is enlarged.

        A saved ring with a smaller reserve (earlier versions) keeps its size if it has wrapped around or is read only.

        Raises:
            SchemaError: the state is of a larger buffer, or its capacity is smaller and its first records were
                replaced; or its episodes lie nowhere.
            DamagedFile: the files are not what the state refers to; nothing was changed.
        """
        head, table, buffer = state["head"], state["episodes"].clone(), None
        if self.capacity <= state["size"] < self.size and (head >= state["size"] or self._read_only):
            self._shrink(state["size"])
        if state["size"] > self.size or (state["size"] < self.size and head >= state["size"]):
            raise SchemaError(f"the replay held {state['size']} records, and this configuration's holds {self.size}")
        check_table(table, head, self.size)
        if head:
            buffer = ring_of(self.storage.restore(state, map(Episode._make, table.tolist())))
        self.latents.load_state_dict(state.get("latents", {}), state["size"])
        self.head, self.unfinished, self._table, self._buffer = head, 0, EpisodeTable(table), buffer
        if self._mirror and head:
            self._mirror.fill(self.records, self.episodes)

    def _shrink(self, size: int) -> None:
        self.size = self.storage.size = self.latents.size = size
        if self._mirror:
            self._mirror.size = size
