"""What happened: finished episodes in one TorchRL buffer, and the three ways of drawing from them.

An episode of L steps is stored as L + 1 *records*: row t holds the observation at t and what the action taken
there brought (`action`, `reward`, `success`, `terminated`, `truncated`); the last row holds the final
observation only. So every frame is stored once; frame stacks, next observations and n-step returns are made
when sampling. B batch, T time, K frame stack, R records of an episode.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer, RoundRobinWriter, TensorStorage

from mbrl.episodes import to_records
from policies.returns import n_step

TRAJECTORY = ("collector", "traj_ids")


class Episode(NamedTuple):
    """Where an episode lies: `start` counts all records ever written, `first` is its first row to learn from."""

    start: int
    length: int
    first: int


class EpisodeBuffer:
    """Whole episodes in a ring of records; the oldest episodes leave first.

    Args:
        capacity: records that may be drawn from at any time.
        frame_stack: K, how many frames make one `frames` observation.
        n_step: rewards summed in a transition. gamma: discount of one agent step.
        reserve: further records of room, so that those which the last checkpoint refers to are not overwritten
            before the next one is written.
        directory: where the memory maps lie; None keeps the records in memory.
    """

    def __init__(
        self,
        capacity: int,
        *,
        frame_stack: int = 3,
        n_step: int = 3,
        gamma: float = 0.99,
        reserve: int = 0,
        directory: Path | None = None,
    ) -> None:
        if capacity < 2 or n_step < 1 or frame_stack < 1:
            raise ValueError(
                f"replay: capacity ({capacity}) must be 2 or more, "
                f"n_step ({n_step}) and frame_stack ({frame_stack}) 1 or more"
            )
        self.capacity, self.size = capacity, capacity + reserve
        self.frame_stack, self.n_step, self.gamma = frame_stack, n_step, gamma
        self.directory = directory
        self.episodes: deque[Episode] = deque()
        self.head = 0  # records ever written; record g lies in row g % size
        self._buffer: ReplayBuffer | None = None
        self._starts = self._lengths = self._firsts = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return int((self._lengths - 1 - self._firsts).sum())

    # ---------------------------------------------------------------- writing
    def extend(self, records: TensorDictBase, first: int = 0) -> None:
        """Append N finished episodes of R rows each: records [N, R]; rows before `first` serve as history only."""
        count, length = records.batch_size
        if count * length > self.capacity:
            raise ValueError(
                f"replay: {count * length} records do not fit into a capacity of {self.capacity}; raise replay.capacity"
            )
        refuse_non_finite(records)
        if self._buffer is None:
            self._buffer = self._allocate(records[0, 0])
        self._buffer.extend(records.reshape(-1))
        self.episodes.extend(Episode(self.head + i * length, length, first) for i in range(count))
        self.head += count * length
        while self.head - self.episodes[0].start > self.capacity:
            self.episodes.popleft()
        self._index_episodes()

    def _allocate(self, record: TensorDictBase) -> ReplayBuffer:
        data = record.to_tensordict().expand(self.size)
        if self.directory is None:
            data = data.clone()
        else:
            data = data.memmap_like(str(self.directory), existsok=True)
            for file in self.directory.glob("*.memmap"):
                with file.open("r+b") as handle:  # a full disk must be an error now, not a SIGBUS later
                    os.posix_fallocate(handle.fileno(), 0, max(1, file.stat().st_size))
        return self._wrap(data)

    def _wrap(self, data: TensorDictBase) -> ReplayBuffer:
        return ReplayBuffer(storage=TensorStorage(data), writer=RoundRobinWriter(), batch_size=1)

    def _index_episodes(self) -> None:
        table = torch.tensor(list(self.episodes), dtype=torch.int64).reshape(-1, 3)
        self._starts, self._lengths, self._firsts = table.unbind(1)

    # ---------------------------------------------------------------- drawing
    def transitions(self, batch_size: int) -> TensorDict:
        """Draw n-step transitions, uniformly over all of them.

        Returns: [B] of `frames` uint8 [3K, R, R] (where there are pixels), other observations, `action`, their
        counterparts under "next" n steps later, ("next", "reward") [1] = Σ γ^i r_i over the m ≤ n steps that lie
        within the episode, ("next", "terminated") [1], and `gamma` [1] = γ^m for the bootstrapped value.
        """
        episode, offset = self._draw(self._lengths - 1 - self._firsts, batch_size)
        offset = offset + self._firsts[episode]
        final = self._lengths[episode] - 2  # the offset of the episode's last action
        steps = offset[:, None] + torch.arange(self.n_step)
        rows = self._rows(episode[:, None], steps.minimum(final[:, None]))
        returns = n_step(self._gather("reward", rows).squeeze(-1), steps >= final[:, None], self.gamma)
        last = offset + returns.steps.squeeze(-1) - 1
        terminated = self._gather("terminated", self._rows(episode, last))
        done = terminated.clone()
        after = TensorDict(reward=returns.reward, terminated=terminated, done=done, batch_size=[batch_size])
        batch = TensorDict(gamma=returns.gamma, next=after, batch_size=[batch_size])
        batch["action"] = self._gather("action", rows[:, 0])
        for key in self._observation_keys():
            out = "frames" if key == "pixels" else key
            batch[out] = self._observe(key, episode, offset)
            batch["next", out] = self._observe(key, episode, last + 1)
        return batch

    def sequences(self, batch_size: int, length: int) -> TensorDict:
        """Draw segments of `length` rows within one episode, uniformly over all of them: [B, T] of single frames.

        action[t] leads to frame t + 1 and earns ("next", "reward")[t]; the last row's are not to be used.
        """
        episode, offset = self._draw((self._lengths - length + 1).clamp(min=0), batch_size, what=length)
        rows = self._rows(episode[:, None], offset[:, None] + torch.arange(length))
        names = [*self._observation_keys(), "action"]
        batch = TensorDict({key: self._gather(key, rows) for key in names}, batch_size=[batch_size, length])
        after = {key: self._gather(key, rows) for key in ("reward", "success", "terminated")}
        batch["next"] = TensorDict(after, batch_size=[batch_size, length])
        return batch

    def _draw(self, weights: Tensor, batch_size: int, what: int = 2) -> tuple[Tensor, Tensor]:
        """An episode and a place in it, uniform over the sum of `weights` places."""
        bounds = weights.cumsum(0)
        if not len(bounds) or bounds[-1] == 0:
            raise ValueError(f"replay: no episode has {what} records or more to draw from; collect more first")
        place = torch.randint(int(bounds[-1]), (batch_size,))
        episode = torch.searchsorted(bounds, place, right=True)
        return episode, place - (bounds - weights)[episode]

    def _rows(self, episode: Tensor, offset: Tensor) -> Tensor:
        return (self._starts[episode] + offset) % self.size

    def _observation_keys(self) -> list[str]:
        return [key for key in ("pixels", "state") if key in self.records.keys()]

    def _observe(self, key: str, episode: Tensor, offset: Tensor) -> Tensor:
        if key != "pixels":
            return self._gather(key, self._rows(episode, offset))
        # the frames before an episode's first are copies of it, as CatFrames has it in the environment
        back = torch.arange(1 - self.frame_stack, 1)
        frames = self._gather(key, self._rows(episode[:, None], (offset[:, None] + back).clamp(min=0)))
        return frames.flatten(1, 2)

    def _gather(self, key: str, rows: Tensor) -> Tensor:
        # index_select copies whole rows; fancy indexing of uint8 was measured 20 times slower
        flat = self.records.get(key).index_select(0, rows.reshape(-1))
        return flat.reshape(*rows.shape, *flat.shape[1:])

    @property
    def records(self) -> TensorDictBase:
        """All rows of the ring, [size]; what lies outside `episodes` means nothing."""
        if self._buffer is None:
            raise ValueError("replay: it is empty; collect an episode first")
        return self._buffer.storage._storage

    # ------------------------------------------------------------- checkpoint
    def state_dict(self) -> dict[str, Any]:
        """Where the episodes lie; and the records themselves where they are not memory-mapped."""
        state: dict[str, Any] = {"head": self.head, "size": self.size, "episodes": [list(e) for e in self.episodes]}
        if self.directory is None and self._buffer is not None:
            state["data"] = self.records.to_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["size"] != self.size:
            raise ValueError(f"replay: the checkpoint holds {state['size']} records, this configuration {self.size}")
        self.head = state["head"]
        self.episodes = deque(Episode(*row) for row in state["episodes"])
        self._index_episodes()
        if self.directory is not None and self.head:
            self._buffer = self._wrap(TensorDict.load_memmap(str(self.directory)))
        elif "data" in state:
            self._buffer = self._wrap(TensorDict(state["data"], batch_size=[self.size]).clone())
        if self._buffer is not None:
            self._buffer.writer._cursor = self.head % self.size


class Replay:
    """The run's memory: episodes as the collector finishes them, and demonstrations beside them.

    Args:
        capacity: records kept; the oldest episodes leave first, demonstrations never do.
        demo_share: share of every batch that is drawn from the demonstrations.
        Other arguments: see EpisodeBuffer.
    """

    def __init__(
        self, capacity: int, *, demo_share: float = 0.0, directory: Path | None = None, **options: Any
    ) -> None:
        if not 0 <= demo_share <= 1:
            raise ValueError(f"replay.demo_share must lie in [0, 1], not {demo_share}")
        self.online = EpisodeBuffer(capacity, directory=directory, **options)
        self.demos: EpisodeBuffer | None = None
        self.demo_share = demo_share
        self._options = options
        self._open: dict[int, list[TensorDictBase]] = {}

    def __len__(self) -> int:
        return len(self.online) + (len(self.demos) if self.demos else 0)

    def extend(self, batch: TensorDictBase) -> list[TensorDictBase]:
        """Take steps as the collector hands them over, [T] or [workers, T]; returns the episodes that this finished."""
        batch = batch.reshape(-1)
        ids, counts = torch.unique_consecutive(batch[TRAJECTORY], return_counts=True)
        finished = []
        for trajectory, part in zip(ids.tolist(), batch.split(counts.tolist()), strict=True):
            self._open.setdefault(trajectory, []).append(part)
            if part["next", "done"][-1]:
                finished.append(to_records(torch.cat(self._open.pop(trajectory))))
                self.online.extend(finished[-1][None])
        return finished

    def add_demos(self, episodes: list[TensorDictBase]) -> None:
        """Keep demonstrations (record episodes [R]) for good."""
        total = sum(len(episode) for episode in episodes)
        self.demos = EpisodeBuffer(total, **{**self._options, "reserve": 0})
        for episode in episodes:
            self.demos.extend(episode[None])
        logging.getLogger(__name__).info("%d demonstrations, %d steps", len(episodes), total - len(episodes))

    def transitions(self, batch_size: int) -> TensorDict:
        """See EpisodeBuffer.transitions; `demo_share` of the batch comes from the demonstrations."""
        return self._mixed(batch_size, lambda buffer, n: buffer.transitions(n))

    def sequences(self, batch_size: int, length: int) -> TensorDict:
        """See EpisodeBuffer.sequences; `demo_share` of the batch comes from the demonstrations."""
        return self._mixed(batch_size, lambda buffer, n: buffer.sequences(n, length))

    def starts(self, batch_size: int, length: int) -> TensorDict:
        """Real histories [B, length] to branch imagined rollouts from: their last row is the state to branch at."""
        return self.sequences(batch_size, length)

    def _mixed(self, batch_size: int, draw: Any) -> TensorDict:
        # rounded at random, so that a small share of a small batch is right on average
        from_demos = int(batch_size * self.demo_share + float(torch.rand(()))) if self.demos else 0
        parts = []
        if from_demos:
            parts.append(draw(self.demos, from_demos))
        if from_demos < batch_size:
            parts.append(draw(self.online, batch_size - from_demos))
        if len(parts) == 1:
            return parts[0]
        common = set(parts[0].keys(True, True)) & set(parts[1].keys(True, True))  # published ones have no state
        return torch.cat([part.select(*common) for part in parts])

    @property
    def between_episodes(self) -> bool:
        """Whether no episode is under way: the moments at which a run can be cut without losing a step."""
        return not self._open

    def state_dict(self) -> dict[str, Any]:
        return self.online.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.online.load_state_dict(state)


def refuse_non_finite(records: TensorDictBase) -> None:
    """Raise FloatingPointError where a float entry is NaN or infinite: such data must never be learned from."""
    for key, value in records.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FloatingPointError(f"replay: '{key}' holds NaN or infinite values; this episode is refused")
