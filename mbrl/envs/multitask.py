"""Several Meta-World tasks as one environment (MT10, MT50: Yu et al. 2019, arXiv 1910.10897).

Keys as in `mbrl.envs.metaworld`. The one-hot of the task, N numbers, is appended to `state`, float32 [39 + N], and with
pixels it is also the observation `task`, float32 [N]. Episode e of worker w is episode e // N of task (e + w) % N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from torchrl.envs import EnvBase

from mbrl.envs.gym import wrap_gym
from mbrl.envs.metaworld import MetaWorld
from mbrl.envs.numbered import NumberedEpisodes, Observation
from mbrl.envs.simulator import STATE_DIM, Snapshot, resolve_task, task_names
from mbrl.errors import UserError
from mbrl.settings.annotations import forwards_to
from policies.ranges import FrameStack

ALL = "all"


class MultiTask(NumberedEpisodes):
    """One episode of each task in turn. The simulator of a task is built at its first episode.

    Args:
        tasks: names of two or more tasks.
        seed: as in `MetaWorld`.
        worker: as in `MetaWorld`.
        first_episode: number of the first reset, counted over all tasks.
        settings: the other keyword arguments of `MetaWorld`.

    Raises:
        UserError: fewer than two tasks, one twice, or an unknown one.
    """

    def __init__(
        self, tasks: Sequence[str], seed: int = 0, worker: int = 0, *, first_episode: int = 0, **settings: Any
    ) -> None:
        self.tasks = _resolve_tasks(tasks)
        super().__init__(seed, worker, first_episode)
        self._settings = settings
        self._envs: dict[int, MetaWorld] = {}
        self._current = 0
        env = self._env(0)
        self.action_space = env.action_space
        entries = dict(env.observation_space.spaces)
        size = STATE_DIM + len(self.tasks)
        entries["state"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if "pixels" in entries:
            entries["task"] = spaces.Box(0.0, 1.0, (len(self.tasks),), np.float32)
        self.observation_space = spaces.Dict(entries)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode of the next task, as `NumberedEpisodes.reset`."""
        if seed is not None:
            self.close()  # Fixed goals are drawn with the seed that a simulator is built with.
        return super().reset(seed=seed)

    def _start(self, episode: int) -> Observation:
        # Workers begin with different tasks, because they play in step: all would play the same task at any time.
        self._current = (episode + self.worker) % len(self.tasks)
        env = self._env(self._current)
        env.seek(episode // len(self.tasks))
        return self._with_task(env.reset()[0])

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step the task of this episode, as `MetaWorld.step`."""
        observation, reward, terminated, truncated, info = self._env(self._current).step(action)
        return self._with_task(observation), reward, terminated, truncated, info

    def snapshot(self) -> Snapshot:
        """Exact state of the current task's simulator and of the episode, as `MetaWorld.snapshot`."""
        inner = self._env(self._current).snapshot()
        return {"task": self._current, "next_episode": self._next_episode, "inner": inner}

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot, in the task it was taken in, as `MetaWorld.restore`."""
        self._current, self._next_episode = snapshot["task"], snapshot["next_episode"]
        self._env(self._current).restore(snapshot["inner"])

    def observe(self) -> Observation:
        """The observation in the current state, with the task."""
        return self._with_task(self._env(self._current).observe())

    @property
    def picture_axes(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """As `MetaWorld.picture_axes`; all tasks have the same camera."""
        return self._env(self._current).picture_axes

    def close(self) -> None:
        """Free every simulator."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()

    def _env(self, index: int) -> MetaWorld:
        if index not in self._envs:
            self._envs[index] = MetaWorld(self.tasks[index], self.seed, self.worker, **self._settings)
        return self._envs[index]

    def _with_task(self, observation: Observation) -> Observation:
        one_hot = np.zeros(len(self.tasks), np.float32)
        one_hot[self._current] = 1.0
        conditioned = {**observation, "state": np.concatenate([observation["state"], one_hot])}
        if "pixels" in observation:
            conditioned["task"] = one_hot
        return conditioned


@forwards_to(MetaWorld)
def make_env(
    tasks: Sequence[str] | str,
    seed: int = 0,
    worker: int = 0,
    *,
    task: str = "",
    frame_stack: FrameStack = 3,
    snapshots: bool = False,
    **settings: Any,
) -> EnvBase:
    """Make several tasks one TorchRL environment.

    Args:
        tasks: two or more of the 50 tasks, or "all" of them.
        seed: as in `MetaWorld`.
        worker: as in `MetaWorld`.
        task: name of the set of tasks, such as mt10; it names run folders and has no other effect.
        frame_stack: as in `mbrl.envs.metaworld.make_env`.
        snapshots: must be False: the tasks have snapshots of different sizes.
        settings: the keyword arguments of `MetaWorld`.

    Raises:
        UserError: fewer than two tasks, one twice, or a setting that is unknown or impossible.
        OSError: pixels are wanted and there is no OpenGL.
    """
    if snapshots:
        raise UserError("env.snapshots=true needs a single task: several have snapshots of different sizes")
    chosen = task_names() if tasks == ALL else tasks
    return wrap_gym(MultiTask(chosen, seed, worker, **settings), frame_stack)


def _resolve_tasks(tasks: Sequence[str]) -> list[str]:
    if isinstance(tasks, str) or len(tasks) < 2:
        raise UserError(f"env.tasks is {tasks}: give two or more tasks in brackets, or {ALL}")
    names = [resolve_task(task).removesuffix("-v3") for task in tasks]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise UserError(f"env.tasks has {', '.join(duplicates)} twice: give each task once")
    return names
