"""Replay of a run: a buffer of collected episodes and one of demonstrations. B batch, T time, R records."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.data.episodes import to_records
from mbrl.replay.episode_buffer import EpisodeBuffer
from mbrl.replay.mirror import pinned_room
from mbrl.replay.storage import MemoryMaps
from mbrl.run_folder.schema import Maybe, Schema
from mbrl.settings.annotations import forwards_to
from policies.ranges import PositiveCount, Share

NEWEST = 0.1  # share of the collected episodes, the newest ones, that `recent` draws from
TRAJECTORY = ("collector", "traj_ids")


class Replay:
    """Replay of a run: collected episodes (`online`) and demonstrations (`demos`), each in an `EpisodeBuffer`.

    Args:
        capacity: maximum number of collected records; the oldest episodes are dropped first. Demonstrations are kept.
        grows: whether a step can be drawn before its episode has ended. Needs one worker, because only one unfinished
            episode can be stored. False: an episode is stored when it ends.
        demo_share: share of every batch that is drawn from the demonstrations.
        directory: as in EpisodeBuffer.
        options: the other keyword arguments of EpisodeBuffer.

    Attributes:
        unseen: the episodes that the last call of `extend` finished and that could not be drawn from before.
    """

    @forwards_to(EpisodeBuffer)
    def __init__(
        self,
        capacity: PositiveCount,
        *,
        demo_share: Share = 0.0,
        directory: Path | None = None,
        grows: bool = False,
        **options: Any,
    ) -> None:
        self.online = EpisodeBuffer(capacity, directory=directory, **options)
        self.demos: EpisodeBuffer | None = None
        self.demo_share = demo_share
        self._options = options
        self.grows = grows
        self._unfinished: dict[int, list[TensorDictBase]] = {}
        self._held_back: set[int] = set()
        self.unseen: list[TensorDictBase] = []

    def __len__(self) -> int:
        return len(self.online) + (len(self.demos) if self.demos else 0)

    def extend(self, batch: TensorDictBase, hold_back: bool = False) -> list[TensorDictBase]:
        """Take steps as the collector hands them over, [T] or [workers, T]; returns the episodes that this finished.

        Args:
            batch: the steps.
            hold_back: whether the episodes that begin in them are not to be drawn from before they are finished.

        Raises:
            ValueError: steps of several workers, with `grows`.
        """
        batch = batch.reshape(-1)
        ids, counts = torch.unique_consecutive(batch[TRAJECTORY], return_counts=True)
        finished, self.unseen = [], []
        for trajectory, part in zip(ids.tolist(), batch.split(counts.tolist()), strict=True):
            if hold_back and trajectory not in self._unfinished:
                self._held_back.add(trajectory)
            self._unfinished.setdefault(trajectory, []).append(part)
            if self.grows and len(self._unfinished) > 1:
                raise ValueError("replay: grows=True takes the steps of one worker, and these are of several")
            grows = self.grows and trajectory not in self._held_back
            if grows:
                self.online.grow(to_records(part))
            if part["next", "done"][-1]:
                finished.append(self._finish(trajectory, grows))
        return finished

    def _finish(self, trajectory: int, grown: bool) -> TensorDictBase:
        """The records of an episode that is finished."""
        episode = to_records(torch.cat(self._unfinished.pop(trajectory)))
        self._held_back.discard(trajectory)
        if grown:
            self.online.finish(episode)
        else:
            self.online.extend(episode[None])
            self.unseen.append(episode)
        return episode

    def add_demos(self, episodes: list[TensorDictBase]) -> None:
        """Keep demonstrations (record episodes [R]) for good."""
        total = sum(len(episode) for episode in episodes)
        beside = {} if self.online.device.type == "cuda" else {"device": "cpu"}  # batches of both are joined
        self.demos = EpisodeBuffer(total, **{**self._options, "reserve": 0, **beside})
        for episode in episodes:
            self.demos.extend(episode[None])
        logging.getLogger(__name__).info("%d demonstrations, %d steps", len(episodes), total - len(episodes))

    def transitions(self, batch_size: int) -> TensorDict:
        """See EpisodeBuffer.transitions; `demo_share` of the batch comes from the demonstrations.

        Where there are demonstrations, `demonstrated` bool [B, 1] says which rows are theirs.
        """
        return self._mixed(batch_size, self._transitions)

    def _transitions(self, buffer: EpisodeBuffer, batch_size: int) -> TensorDict:
        batch = buffer.transitions(batch_size)
        if self.demos is not None:
            batch["demonstrated"] = torch.full((batch_size, 1), buffer is self.demos, device=buffer.device)
        return batch

    def sequences(
        self,
        batch_size: int,
        length: int,
        before: int = 0,
        *,
        initial: bool = False,
        recent: float = 0.0,
        past_end: bool = False,
    ) -> TensorDict:
        """See EpisodeBuffer.sequences; `demo_share` of the batch comes from the demonstrations.

        Their `index` is negative. `recent` of the batch, rounded, is drawn from the newest tenth of the collected
        episodes.
        """
        newest, options = round(batch_size * recent), {"initial": initial, "past_end": past_end}
        if newest == 0:
            return self._mixed(batch_size, lambda buffer, n: self._sequences(buffer, n, length, before, **options))
        drawn = self.online.sequences(newest, length, before, newest=NEWEST, **options)
        if newest == batch_size:
            return drawn
        return self._joined(drawn, self.sequences(batch_size - newest, length, before, **options))

    def demo_sequences(self, batch_size: int, length: int, before: int = 0) -> TensorDict:
        """As `sequences`, from the demonstrations alone."""
        assert self.demos is not None
        return self._sequences(self.demos, batch_size, length, before)

    def _sequences(
        self, buffer: EpisodeBuffer, batch_size: int, length: int, before: int, **options: bool
    ) -> TensorDict:
        batch = buffer.sequences(batch_size, length, before, **options)
        if before and buffer is self.demos:
            batch["index"] = -1 - batch["index"]
        return batch

    def read_latents(self, index: Tensor, unknown: TensorDictBase) -> TensorDictBase:
        """The latents [N] of records by their `index` [N] of `sequences`; `unknown` [] for those without latents."""
        latents = unknown.expand(len(index)).clone()
        for buffer, chosen, rows in self._owners(index):
            latents[chosen] = buffer.latents.read(rows, unknown)
        return latents

    def write_latents(self, index: Tensor, latents: TensorDictBase) -> None:
        """Note the latents [N] of records by their `index` [N] of `sequences`."""
        for buffer, chosen, rows in self._owners(index):
            buffer.latents.write(rows, latents[chosen])

    def note_latents(self, first: int, note: Callable[[TensorDictBase, int], TensorDictBase]) -> None:
        """Note the latents of records.

        Args:
            first: number of a collected record, among all ever written; those before it are left out. 0 includes the
                demonstrations, which are otherwise left out once they have latents.
            note: makes the latents [R - n] of the rows of a record episode [R] but the first n.
        """
        for buffer in (self.online, self.demos) if self.demos is not None else (self.online,):
            anew = buffer.latents.values is None or first == 0
            start = 0 if anew else first if buffer is self.online else buffer.head
            for number, episode in enumerate(buffer.episodes):
                begin, end = max(episode.start, start), episode.start + episode.length
                if begin < end:
                    latents = note(record_episode(buffer, number), begin - episode.start)
                    buffer.latents.write(torch.arange(begin, end) % buffer.size, latents)

    def _owners(self, index: Tensor) -> Iterator[tuple[EpisodeBuffer, Tensor | slice, Tensor]]:
        """Each buffer, which of the numbers are its own, and the rows that they mean."""
        if self.demos is None:  # a mask would wait for a GPU
            yield self.online, slice(None), index
            return
        of_demos = index < 0
        if not of_demos.all():
            yield self.online, ~of_demos, index[~of_demos]
        if of_demos.any():
            yield self.demos, of_demos, -1 - index[of_demos]

    def starts(self, batch_size: int, length: int, *, together: int = 1, **how: Any) -> TensorDict:
        """Real histories [B, length] to branch imagined rollouts from: their last row is the state to branch at.

        Args:
            batch_size: B.
            length: rows of a history, see `EpisodeBuffer.starts`.
            together: see `EpisodeBuffer.starts`; of each kind of state as many are drawn as this divides.
            how: `last` and `initial`, see `EpisodeBuffer.starts`.
        """
        return self._mixed(batch_size, lambda buffer, n: buffer.starts(n, length, together=together, **how), together)

    def steps(self, *observations: str) -> TensorDict:
        """See EpisodeBuffer.steps; those of demonstrations come first, with negative numbers."""
        steps = [self.online.steps(*observations)]
        if self.demos:
            steps.insert(0, self.demos.steps(*observations))
            steps[0]["index"] = -1 - steps[0]["index"]
        return torch.cat(steps)

    def _mixed(self, batch_size: int, draw: Any, together: int = 1) -> TensorDict:
        # rounded at random, so that a small share of a small batch is right on average
        drawn = batch_size // together * self.demo_share + float(torch.rand(())) if self.demos else 0.0
        from_demos = int(drawn) * together
        parts = []
        if from_demos:
            parts.append(draw(self.demos, from_demos))
        if from_demos < batch_size:
            parts.append(draw(self.online, batch_size - from_demos))
        if len(parts) == 1:
            return parts[0]
        return self._joined(*(part.to(self.online.device) for part in parts))

    def _joined(self, *parts: TensorDict) -> TensorDict:
        """The rows of batches, with the keys that all have: published demonstrations have no state."""
        common = set.intersection(*(set(part.keys(True, True)) for part in parts))
        alike = [part.select(*common) for part in parts]
        return torch.cat(alike, out=pinned_room(alike) if self.online.pinned else None)

    def require_disk_space(self) -> None:
        """Log the disk space that the records will take; UserError if the disk has less."""
        if isinstance(self.online.storage, MemoryMaps):
            self.online.storage.require_disk_space()

    @property
    def room(self) -> int:
        """Bytes of the files that the records are kept in; 0 for records in memory."""
        return self.online.storage.room if isinstance(self.online.storage, MemoryMaps) else 0

    def flush(self) -> None:
        """Write records to the disk that the system still holds in memory."""
        if isinstance(self.online.storage, MemoryMaps) and self.online.head:
            self.online.storage.flush()

    @property
    def has_episode(self) -> bool:
        """Whether an episode has ended; before that there may be too few records for a segment."""
        return self.online.finished > 0

    @property
    def between_episodes(self) -> bool:
        """Whether no episode is unfinished, so that a checkpoint loses no step."""
        return not self._unfinished

    def state_dict(self) -> dict[str, Any]:
        state = self.online.state_dict()
        if self.demos is not None:
            state["demo_latents"] = self.demos.latents.state_dict()
        return state

    def schema(self) -> dict[str, Schema]:
        schema = self.online.schema()
        schema["demo_latents"] = Maybe(self.online.latents.schema())  # left out where the demonstrations are
        return schema

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a state that fits `schema`.

        Raises:
            DamagedFile: the replay's files are not what the state refers to; nothing was changed.
        """
        self.online.load_state_dict(state)
        if self.demos is not None:
            self.demos.latents.load_state_dict(state.get("demo_latents", {}), self.demos.size)


def record_episode(buffer: EpisodeBuffer, number: int) -> TensorDictBase:
    """The record episode [R] (see `mbrl.data.episodes`) of a number in a buffer, counted from its oldest."""
    found = buffer.episodes[number]
    return buffer.records[torch.arange(found.start, found.start + found.length) % buffer.size]
