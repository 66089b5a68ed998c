"""Several episodes side by side, one step of each in turn.

N episodes, K frame stack, R resolution, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.data.episodes import SNAPSHOT
from mbrl.envs.gym import has_snapshots
from mbrl.envs.snapshots import SnapshotLayout


class LockStep:
    """N episodes, on all of which a policy acts in one call.

    An environment that has snapshots plays all of them: it restores that of an episode before each of its steps.
    Snapshots are exact, so that every episode is the same as if it were run alone, and N episodes need the memory of
    one simulator. Of environments without snapshots each plays one episode.

    Args:
        envs: one environment with `snapshot` and `restore`, or N alike without; made by `mbrl.envs.gym.wrap_gym`.
            Their Gymnasium environments must have `seek`.
        episodes: numbers of the N episodes.

    Attributes:
        done: bool [N], whether an episode has ended. Such episodes are not stepped.
        terminated: bool [N], whether it has ended by itself and not by a time limit.
    """

    def __init__(self, envs: Sequence[EnvBase], episodes: Sequence[int]) -> None:
        env = envs[0]
        self._envs: list[Any] = [env.unwrapped] * len(episodes) if len(envs) == 1 else [one.unwrapped for one in envs]
        self._restores = has_snapshots(env.unwrapped)
        self._frame_stack = env.observation_spec["frames"].shape[-3] // 3 if "frames" in env.observation_spec else 0
        self.done = torch.zeros(len(episodes), dtype=torch.bool)
        self.terminated = torch.zeros_like(self.done)
        self._snapshots: list[Any] = []
        self._observations: list[dict[str, Any]] = []
        for inner, episode in zip(self._envs, episodes, strict=True):
            inner.seek(episode)
            self._observations.append(inner.reset()[0])
            self._snapshots.append(inner.snapshot() if self._restores else None)
        self._seen = _stacked(self._observations)
        self._layout = SnapshotLayout.of(env.unwrapped) if SNAPSHOT in env.observation_spec else None
        if self._frame_stack:
            self._seen["frames"] = self._seen["pixels"].repeat(1, self._frame_stack, 1, 1)

    @property
    def observation(self) -> TensorDict:
        """The newest observation of each episode, [N], with the keys of the environment."""
        seen = dict(self._seen)
        if self._layout is not None:
            seen[SNAPSHOT] = torch.stack([self._layout.pack(snapshot) for snapshot in self._snapshots])
        return TensorDict(seen, batch_size=[len(self._snapshots)])

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Take one agent step in each episode that has not ended.

        Args:
            action: float32 [N, A].

        Returns:
            The rewards float32 [N], and whether the step solved the task, bool [N]; 0 and False after the end.
        """
        rewards, successes = torch.zeros(len(action)), torch.zeros(len(action), dtype=torch.bool)
        moves = action.cpu().numpy()
        for index in (~self.done).nonzero()[:, 0].tolist():
            env = self._envs[index]
            if self._restores:
                env.restore(self._snapshots[index])
            self._observations[index], rewards[index], terminated, truncated, info = env.step(moves[index])
            if self._restores:
                self._snapshots[index] = env.snapshot()
            successes[index] = bool(info["success"].any())
            self.done[index], self.terminated[index] = terminated or truncated, terminated
        frames = self._seen.get("frames")
        self._seen = _stacked(self._observations)
        if frames is not None:
            self._seen["frames"] = torch.cat([frames[:, 3:], self._seen["pixels"]], 1)
        return rewards, successes


def _stacked(observations: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Observations of N episodes as tensors [N, ...]."""
    return {key: torch.from_numpy(np.stack([each[key] for each in observations])) for key in observations[0]}
