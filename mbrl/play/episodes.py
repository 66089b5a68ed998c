"""Episodes to start from: those of a run's replay and of folders, put back into the simulator exactly.

L steps, A action, S state, R resolution.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.data.episodes import SNAPSHOT
from mbrl.data.segments import EpisodeData
from mbrl.envs.snapshots import SnapshotLayout
from mbrl.errors import UserError
from mbrl.play.session import Session
from mbrl.replay.episode_buffer import EpisodeBuffer
from mbrl.replay.replay import record_episode

MAX_RESETS = 200  # resets that are compared with an episode's first state; 30 ms each in Meta-World
TOLERANCE = 1e-4  # between a recorded state and the one that replayed actions lead to
_NUMBER = re.compile(r"(\d+)$")

Resets = Iterator[tuple[int, int, int]]  # seed, worker, number of the reset


class Source(ABC):
    """A list of episodes.

    Attributes:
        names: their names.
        lengths: number of frames of each.
    """

    names: list[str]
    lengths: list[int]

    @abstractmethod
    def read(self, episode: int) -> TensorDictBase:
        """The record episode [L + 1] (see `mbrl.data.episodes`), with `snapshot` where it was recorded."""

    @abstractmethod
    def resets(self, episode: int) -> Resets:
        """The resets of the environment that the episode may have started from, the likeliest first."""


class ReplaySource(Source):
    """The episodes of a run's replay.

    Args:
        buffer: holds them.
        seed: of the environments that they were collected in.
        workers: number of these.
    """

    def __init__(self, buffer: EpisodeBuffer, seed: int, workers: int) -> None:
        self._buffer, self._seed, self._workers = buffer, seed, workers
        self.names = [f"episode {number}" for number in range(len(buffer.episodes))]
        self.lengths = [episode.length for episode in buffer.episodes]

    def read(self, episode: int) -> TensorDictBase:
        return record_episode(self._buffer, episode)

    def resets(self, episode: int) -> Resets:
        for number in _outwards(episode // self._workers, MAX_RESETS // self._workers):
            yield from ((self._seed, worker, number) for worker in range(self._workers))


class FolderSource(Source):
    """The episodes of a folder, in any layout that is read.

    Args:
        folder: the folder.
        resolution: R, the side that frames are resized to.
        seeds: seeds of environments that they may be from, beside that in `dataset.json`.
    """

    def __init__(self, folder: Path, resolution: int, seeds: tuple[int, ...] = (0,)) -> None:
        self._data = EpisodeData(folder, resolution=resolution)
        self.names, self.lengths = self._data.names, self._data.lengths
        made = folder / "dataset.json"
        self._seeds = (_seed_in(made), *seeds) if made.is_file() else seeds
        missing = [key for key in ("action", "state") if key not in self._data.keys]
        if missing:
            raise UserError(f"{folder}: its episodes have no {missing[0]}, without which no step can be started from")

    def read(self, episode: int) -> TensorDictBase:
        return self._data.segment(episode, 0, self.lengths[episode])

    def resets(self, episode: int) -> Resets:
        match = _NUMBER.search(self.names[episode])
        number = int(match[1]) if match else 0
        likely = (3 * number, 3 * number + 1, 3 * number + 2)  # `mbrl collect` plays three policies
        for seed in dict.fromkeys(self._seeds):
            yield from ((seed, 0, reset) for reset in dict.fromkeys((number, *likely, *_outwards(number, MAX_RESETS))))


def _seed_in(path: Path) -> int:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no dataset.json of `mbrl collect`: it names no seed") from error


def _outwards(middle: int, count: int) -> Iterator[int]:
    """`count` numbers of 0 or more, the nearest to the middle first."""
    numbers = (middle + sign * distance for distance in range(count + middle) for sign in (1, -1)[: 1 + (distance > 0)])
    yield from (number for _, number in zip(range(count), (n for n in numbers if n >= 0), strict=False))


class Library:
    """Starts sessions from recorded episodes.

    Args:
        sources: by the name that the page shows.
        make_env: makes an environment like the session's, called with `seed`, `worker` and `pixels`.
    """

    def __init__(self, sources: dict[str, Source], make_env: Callable[..., EnvBase]) -> None:
        self.sources, self._make_env = sources, make_env
        self._found: dict[tuple[str, int], dict[str, Any]] = {}  # the snapshot at the start of an episode

    def source(self, name: str, episode: int) -> Source:
        """The source of a name, which must have the episode.

        Raises:
            UserError: it does not exist.
        """
        if name not in self.sources:
            raise UserError(f"there are no episodes {name!r}: there are {', '.join(self.sources) or 'none'}")
        if not 0 <= episode < len(self.sources[name].names):
            raise UserError(f"{name} has no episode {episode}: it has {len(self.sources[name].names)}")
        return self.sources[name]

    def pictures(self, name: str, episode: int, count: int) -> list[tuple[int, npt.NDArray[np.uint8]]]:
        """At most `count` evenly spaced frames [3, R, R] of an episode, each with its step."""
        records = self.source(name, episode).read(episode)
        steps = np.unique(np.linspace(0, len(records) - 1, count).round().astype(int))
        return [(int(step), records["pixels"][int(step)].numpy()) for step in steps]

    def start(self, session: Session, name: str, episode: int, step: int) -> None:
        """Start a session at a step of an episode, with the simulator in its exact state.

        It comes from the `snapshot` of the records, or from a reset that gives the first `state` and the recorded
        actions from there.

        Raises:
            UserError: the step does not exist, or the state cannot be reached.
        """
        records = self.source(name, episode).read(episode)
        if not 0 <= step < len(records) - 1:
            raise UserError(
                f"{name}, episode {episode}: there is no step {step} to start from, 0 to {len(records) - 2}"
            )
        first = max(0, step + 1 - session.model.context_length)
        actions = records["action"].numpy()
        env = session.borrow()
        if SNAPSHOT in records.keys():
            snapshot = SnapshotLayout.of(env).unpack(records[SNAPSHOT][first])
        else:
            snapshot = self._replayed(env, name, episode, records, first)
        session.start(snapshot, actions[first:step], records["pixels"][0].numpy())

    def _replayed(self, env: Any, name: str, episode: int, records: TensorDictBase, step: int) -> dict[str, Any]:
        """The snapshot at a step, reached by the recorded actions from the episode's reset."""
        if (name, episode) not in self._found:
            self._found[name, episode] = self._reset_of(name, episode, records["state"][0])
        env.restore(self._found[name, episode])
        observed, env.renders = None, False
        try:
            for action in records["action"][:step].numpy():
                observed = env.step(action)[0]["state"]
        finally:
            env.renders = True
        if observed is not None and not _same(torch.from_numpy(observed), records["state"][step]):
            raise UserError(
                f"{name}, episode {episode}: its actions lead elsewhere here (another version of the task?)"
            )
        snapshot: dict[str, Any] = env.snapshot()
        return snapshot

    def _reset_of(self, name: str, episode: int, state: Tensor) -> dict[str, Any]:
        """The snapshot after the reset that gives a state."""
        made: dict[tuple[int, int], EnvBase] = {}
        try:
            for tried, (seed, worker, number) in enumerate(self.sources[name].resets(episode)):
                if tried >= MAX_RESETS:
                    break
                if (seed, worker) not in made:
                    made[seed, worker] = self._make_env(seed=seed, worker=worker, pixels=False)
                env: Any = made[seed, worker].unwrapped
                env.seek(number)
                if _same(torch.from_numpy(env.reset()[0]["state"]), state):
                    snapshot: dict[str, Any] = env.snapshot()
                    return snapshot
        finally:
            for each in made.values():
                with closing(each):
                    pass
        raise UserError(
            f"{name}, episode {episode}: no reset of this task gives its first state, so the simulator cannot be put "
            "there (env.snapshots=true keeps the exact state in a run's replay)"
        )


def _same(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() < TOLERANCE)
