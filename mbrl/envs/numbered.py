"""Gymnasium environments whose episodes are numbered, so that any of them can be played again."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from mbrl.errors import UserError

Observation = dict[str, npt.NDArray[Any]]


class NumberedEpisodes(gymnasium.Env[Observation, npt.NDArray[np.float32]]):
    """Episode number e is a function of (seed, worker, e) alone.

    Args:
        seed: seed of all episodes.
        worker: number of the worker process, 0 or more.
        first_episode: number of the first reset: a resumed run rebuilds its environments with it.
    """

    observation_space: spaces.Dict  # type: ignore[assignment]

    def __init__(self, seed: int, worker: int, first_episode: int) -> None:
        self.seed, self.worker = seed, worker
        self._first_episode = self._next_episode = first_episode
        self._elapsed = 0  # env steps of this episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the next episode. A seed replaces the constructor's and restarts the count of episodes."""
        if seed is not None:
            self.seed, self._next_episode = seed, self._first_episode
        observation = self._start(self._next_episode)
        self._next_episode += 1
        self._elapsed = 0
        return observation, {"success": np.zeros(1, bool)}

    @abstractmethod
    def _start(self, episode: int) -> Observation:
        """Start episode number `episode`; returns its first observation."""

    def seek(self, episode: int) -> None:
        """Make the next reset start episode number `episode`, 0 or more."""
        if episode < 0:
            raise UserError(f"episode is {episode}: it must be 0 or more")
        self._next_episode = episode
