"""A tiny environment for tests: steer a white square onto a green one.

The keys are Meta-World's. The reward of a step is the progress that its own action made, so that an off-by-one error in
rewards is visible. An env step moves the square by at most a tenth of the image's side, so that a good policy arrives
within about 12 steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from torchrl.envs import EnvBase

from mbrl.envs.gym import wrap_gym
from mbrl.envs.numbered import NumberedEpisodes, Observation
from mbrl.errors import UserError
from mbrl.settings.annotations import forwards_to
from policies.ranges import FrameStack, PositiveCount, Resolution

STRIDE = 0.1  # distance that an action of 1 moves the agent in one env step; the side of the image is 1
NEAR = 0.12  # success within this distance of the goal
REWARD_SCALE = 10.0
_BACKGROUND, _GOAL, _AGENT = (32, 32, 48), (40, 200, 60), (255, 255, 255)


class Toy(NumberedEpisodes):
    """The environment; `state` is (agent x, agent y, goal x, goal y), each in [0, 1].

    Args:
        seed: with `worker` and the number of the episode it determines start and goal; nothing else does.
        worker: number of the worker process, 0 or more.
        pixels: whether `pixels` are drawn; without them the only observation is `state`.
        resolution: R in pixels, at least 8.
        action_repeat: env steps of an agent step.
        episode_length: in env steps: a multiple of `action_repeat`.
        first_episode: number of the first reset: a resumed run rebuilds its environments with it.

    Attributes:
        renders: whether the next steps draw `pixels`, where there are any.

    Raises:
        UserError: a setting is impossible.
    """

    renders = True
    picture_axes = ((0, 1), (1, -1))  # As in Meta-World: x goes right, y goes down.

    def __init__(
        self,
        seed: int = 0,
        worker: int = 0,
        *,
        pixels: bool = True,
        resolution: Resolution = 64,
        action_repeat: PositiveCount = 1,
        episode_length: PositiveCount = 50,
        first_episode: int = 0,
    ) -> None:
        if resolution < 8:
            raise UserError(f"resolution is {resolution}: it must be 8 or more")
        if action_repeat < 1 or episode_length < 1 or episode_length % action_repeat:
            raise UserError(
                f"episode_length is {episode_length}: it must be a positive multiple of action_repeat ({action_repeat})"
            )
        super().__init__(seed, worker, first_episode)
        self.resolution, self.action_repeat, self.episode_length = resolution, action_repeat, episode_length
        self._agent = self._goal = np.full(2, 0.5)
        self._canvas = np.empty((3, resolution, resolution), np.uint8)
        self._canvas[:] = np.reshape(_BACKGROUND, (3, 1, 1))
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.pixels = pixels
        entries: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-np.inf, np.inf, (4,), np.float32)}
        if pixels:
            entries["pixels"] = spaces.Box(0, 255, (3, resolution, resolution), np.uint8)
        self.observation_space = spaces.Dict(entries)

    def _start(self, episode: int) -> Observation:
        entropy = np.random.SeedSequence([self.seed, self.worker, episode])
        self._agent, self._goal = np.random.default_rng(entropy).uniform(0.1, 0.9, (2, 2))
        return self._observe()

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move by `action_repeat` strides. The reward is 10 times the decrease of the distance to the goal."""
        before = self._distance()
        move = STRIDE * np.asarray(action, np.float64).clip(-1.0, 1.0)
        success = False
        for _ in range(self.action_repeat):
            self._agent = (self._agent + move).clip(0.0, 1.0)
            success |= self._distance() < NEAR
        self._elapsed += self.action_repeat
        truncated = self._elapsed >= self.episode_length
        reward = REWARD_SCALE * (before - self._distance())
        return self._observe(), reward, False, truncated, {"success": np.array([success])}

    def snapshot(self) -> dict[str, Any]:
        """The exact state of the episode."""
        places = {"agent": self._agent.copy(), "goal": self._goal.copy()}
        return {**places, "next_episode": self._next_episode, "elapsed": self._elapsed}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Continue from a snapshot of this environment, or of another toy."""
        self._agent, self._goal = snapshot["agent"].copy(), snapshot["goal"].copy()
        self._next_episode, self._elapsed = snapshot["next_episode"], snapshot["elapsed"]

    def observe(self) -> Observation:
        """The observation in the present state."""
        return self._observe()

    def _distance(self) -> float:
        x, y = self._goal - self._agent
        return float((x * x + y * y) ** 0.5)

    def _observe(self) -> Observation:
        observation: Observation = {"state": np.concatenate([self._agent, self._goal]).astype(np.float32)}
        if self.pixels and self.renders:
            observation["pixels"] = self._canvas.copy()
            self._draw(observation["pixels"], self._goal, _GOAL)
            self._draw(observation["pixels"], self._agent, _AGENT)
        return observation

    def _draw(self, pixels: npt.NDArray[np.uint8], place: npt.NDArray[np.float64], colour: tuple[int, ...]) -> None:
        side = self.resolution // 8
        left, top = (int(c * (self.resolution - side)) for c in place)
        for channel, value in enumerate(colour):
            pixels[channel, top : top + side, left : left + side] = value


@forwards_to(Toy)
def make_env(
    task: str = "toy",
    seed: int = 0,
    worker: int = 0,
    *,
    frame_stack: FrameStack = 3,
    snapshots: bool = False,
    **settings: Any,
) -> EnvBase:
    """Make the toy a TorchRL environment. `env.seek` is that of `Toy`.

    Args:
        task: "toy", the only task; it names run folders.
        seed: as in `Toy`.
        worker: as in `Toy`.
        frame_stack: K, at least 1. At a reset the first image is repeated K times.
        snapshots: whether each observation has `snapshot`, float64 [n]: the exact state, see `mbrl.envs.snapshots`.
        settings: the keyword arguments of `Toy`.

    Raises:
        UserError: a setting is unknown or impossible.
    """
    if task != "toy":
        raise UserError(f"unknown toy task {task!r}: there is only toy")
    return wrap_gym(Toy(seed, worker, **settings), frame_stack, snapshots)
