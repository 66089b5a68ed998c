"""Play several episodes in lockstep, so that a policy acts on all of them in one batch.

N episodes, K frame stack, R resolution, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import EnvBase

from mbrl.data.episodes import SNAPSHOT
from mbrl.envs.gym import has_snapshots
from mbrl.envs.snapshots import SnapshotLayout

Each = Callable[[Callable[[int], Any]], list[Any]]


class LockStep:
    """N episodes, on all of which a policy acts in one call.

    An environment with snapshots plays several episodes: before each step it restores the snapshot of that episode.
    Snapshots are exact, so every episode runs as if it were played alone, and N episodes need the memory of
    one simulator. An environment without snapshots plays one episode.

    Args:
        envs: one or several alike with `snapshot` and `restore`, which share the episodes, or N alike without; made by
            `mbrl.envs.gym.wrap_gym`. Their Gymnasium environments must have `seek`.
        episodes: numbers of the N episodes.
        each: calls a function with the index of each environment and returns the results, as `EnvThreads.each`;
            None: in sequence.

    Attributes:
        done: bool [N], whether an episode has ended. Such episodes are not stepped.
        terminated: bool [N], whether it has ended by itself and not by a time limit.
    """

    def __init__(self, envs: Sequence[EnvBase], episodes: Sequence[int], each: Each | None = None) -> None:
        env, count = envs[0], len(episodes)
        self._envs: list[Any] = [one.unwrapped for one in envs]
        self._each = each or self._in_turn
        self._restores = has_snapshots(env.unwrapped)
        self._frame_stack = env.observation_spec["frames"].shape[-3] // 3 if "frames" in env.observation_spec else 0
        self.done = torch.zeros(count, dtype=torch.bool)
        self.terminated = torch.zeros_like(self.done)
        self._snapshots: list[Any] = [None] * count
        self._observations: list[dict[str, Any]] = [{}] * count
        self._each(lambda number: self._begin(number, episodes))
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
        for row, reward, success, terminated, truncated in chain(*self._each(partial(self._advance, moves))):
            rewards[row], successes[row] = reward, success
            self.done[row], self.terminated[row] = terminated or truncated, terminated
        frames = self._seen.get("frames")
        self._seen = _stacked(self._observations)
        if frames is not None:
            self._seen["frames"] = torch.cat([frames[:, 3:], self._seen["pixels"]], 1)
        return rewards, successes

    def _begin(self, number: int, episodes: Sequence[int]) -> None:
        """Reset environment `number` to each of its episodes."""
        env = self._envs[number]
        for row in self._rows(number):
            env.seek(episodes[row])
            self._observations[row] = env.reset()[0]
            self._snapshots[row] = env.snapshot() if self._restores else None

    def _advance(self, moves: npt.NDArray[Any], number: int) -> list[tuple[int, float, bool, bool, bool]]:
        """Step environment `number` in each of its episodes that has not ended.

        Returns:
            For each its row, the reward, whether the task is solved, terminated, truncated. No tensor is written here:
            a thread knows nothing of its caller's `torch.inference_mode`.
        """
        env, results = self._envs[number], []
        for row in self._rows(number):
            if self.done[row]:
                continue
            if self._restores:
                env.restore(self._snapshots[row])
            self._observations[row], reward, terminated, truncated, info = env.step(moves[row])
            if self._restores:
                self._snapshots[row] = env.snapshot()
            results.append((row, float(reward), bool(info["success"].any()), terminated, truncated))
        return results

    def _rows(self, number: int) -> range:
        """The episodes of an environment."""
        return range(number, len(self._snapshots), len(self._envs))

    def _in_turn(self, function: Callable[[int], Any]) -> list[Any]:
        return [function(number) for number in range(len(self._envs))]


def _stacked(observations: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Observations of N episodes as tensors [N, ...]."""
    return {key: torch.from_numpy(np.stack([each[key] for each in observations])) for key in observations[0]}
