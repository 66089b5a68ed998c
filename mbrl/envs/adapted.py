"""Any Gymnasium environment with continuous actions under the protocol of this project.

A action, R resolution, S state.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from mbrl.envs.numbered import NumberedEpisodes, Observation
from mbrl.envs.pictures import is_picture, square
from mbrl.errors import UserError
from policies.ranges import PositiveCount, Resolution

UNBOUNDED = 1e6  # from this bound on, actions in [-1, 1] cannot sensibly be scaled to those of the environment


class Adapted(NumberedEpisodes):
    """Actions in [-1, 1], action repeat, a time limit, `state` and `pixels`, and episodes that are numbered.

    Reset number e seeds the environment with a function of (seed, worker, e) alone, counted from `first_episode`. A
    step repeats its action `action_repeat` times, or until the environment ends the episode; rewards are summed. An
    observation that is an image is `pixels`; any other is flattened to `state`, and `pixels` are rendered. `success`
    is what the environment reports as `is_success` or `success`; False where it reports neither.

    Args:
        env: the environment.
        name: what error messages call the environment.
        terminates: whether episodes may end by a termination.
        seed: with `worker` and the number of the episode it determines the episode; nothing else does.
        worker: number of the worker process, 0 or more.
        pixels: whether observations have `pixels`.
        resolution: R in pixels, at least 8.
        action_repeat: env steps of an agent step.
        episode_length: env steps after which an episode is truncated: a multiple of `action_repeat`.
        first_episode: number of the first reset: a resumed run rebuilds its environments with it.

    Raises:
        UserError: the spaces of the environment are not supported, it cannot render, or a setting is impossible.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        name: str,
        terminates: bool,
        seed: int = 0,
        worker: int = 0,
        *,
        pixels: bool = True,
        resolution: Resolution = 64,
        action_repeat: PositiveCount = 1,
        episode_length: PositiveCount,
        first_episode: int = 0,
    ) -> None:
        if action_repeat < 1 or episode_length < 1 or episode_length % action_repeat:
            raise UserError(
                f"env.episode_length is {episode_length}: it must be a positive multiple of env.action_repeat "
                f"({action_repeat})"
            )
        if resolution < 8:
            raise UserError(f"env.resolution is {resolution}: it must be 8 or more")
        super().__init__(seed, worker, first_episode)
        self._env, self._name = env, name
        self._low, self._high = action_bounds(env.action_space, name)
        self._seen_as_picture = observes_picture(env.observation_space, name, pixels)
        self.resolution, self.terminates = resolution, terminates
        self.action_repeat, self.episode_length = action_repeat, episode_length
        self._pixels = pixels
        self.action_space = spaces.Box(-1.0, 1.0, (self._low.size,), np.float32)
        entries: dict[str, spaces.Space[Any]] = {}
        if not self._seen_as_picture:
            size = int(np.prod(env.observation_space.shape or (), dtype=np.int64))
            entries["state"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if pixels:
            entries["pixels"] = spaces.Box(0, 255, (3, resolution, resolution), np.uint8)
        self.observation_space = spaces.Dict(entries)

    def _start(self, episode: int) -> Observation:
        entropy = np.random.SeedSequence([self.seed, self.worker, episode])
        seen, _ = self._env.reset(seed=int(entropy.generate_state(1)[0]))
        return self._observe(seen)

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one agent step of up to `action_repeat` env steps.

        Raises:
            FloatingPointError: the action is NaN or infinite.
            UserError: the episode terminates, and `terminates` is False.
        """
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the action {action.tolist()} is not finite: the policy has diverged")
        move, total, success = self._scaled(action), 0.0, False
        terminated = truncated = False
        for _ in range(self.action_repeat):
            seen, reward, terminated, truncated, info = self._env.step(move)
            self._elapsed += 1
            total += self._number(reward)
            success |= bool(np.any(info.get("is_success", info.get("success", False))))
            if terminated or truncated:
                break
        if terminated and not self.terminates:
            raise UserError(
                f"{self._name} has terminated an episode, which env.terminates=false excludes: set env.terminates=true"
            )
        truncated = bool(truncated) or self._elapsed >= self.episode_length
        return self._observe(seen), total, bool(terminated), truncated, {"success": np.array([success])}

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _scaled(self, action: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """An action [A] in [-1, 1] in the units and the shape of the environment."""
        share = (np.asarray(action, np.float64).clip(-1.0, 1.0) + 1.0) / 2.0
        space = self._env.action_space
        return (self._low + share * (self._high - self._low)).reshape(space.shape).astype(space.dtype)

    def _number(self, reward: Any) -> float:
        """A reward as a number; NaN and infinity are refused where they are learned from."""
        try:
            return float(np.asarray(reward, np.float64).reshape(()))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._name} returned the reward {reward!r}, which is no number") from error

    def _observe(self, seen: Any) -> Observation:
        if self._seen_as_picture:
            return {"pixels": square(seen, self.resolution, self._name)}
        observation: Observation = {"state": self._state(seen)}
        if self._pixels:
            observation["pixels"] = square(self._env.render(), self.resolution, self._name)
        return observation

    def _state(self, seen: Any) -> npt.NDArray[np.float32]:
        """An observation flattened to [S]."""
        state, size = np.asarray(seen, np.float32).reshape(-1), self.observation_space["state"].shape
        if state.shape != size:
            raise UserError(
                f"{self._name} returned an observation of shape {list(np.shape(seen))}, and its observation_space is "
                f"{_short(self._env.observation_space)}"
            )
        if not np.isfinite(state).all():
            raise FloatingPointError(f"{self._name} returned an observation with NaN or infinite values")
        return state


def action_bounds(space: spaces.Space[Any], name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The bounds [A] of continuous actions.

    Raises:
        UserError: actions are not continuous, or have no bounds.
    """
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"{name} has actions {_short(space)}: the agents need continuous actions, a Box of floats")
    low, high = space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)
    if not low.size or max(np.abs(low).max(), np.abs(high).max()) >= UNBOUNDED or not (low < high).all():
        raise UserError(
            f"{name} has actions {_short(space)}: they need finite bounds, low below high, to which [-1, 1] is scaled "
            "(gymnasium.wrappers.RescaleAction gives an environment such bounds)"
        )
    return low, high


def observes_picture(space: spaces.Space[Any], name: str, pixels: bool) -> bool:
    """Whether observations are images, which are then `pixels`; otherwise they are flattened to `state`.

    Raises:
        UserError: they are neither, or images in another layout, or images that `pixels=False` leaves out.
    """
    if not isinstance(space, spaces.Box):
        raise UserError(
            f"{name} observes {_short(space)}: the agents need one Box, of numbers or an image "
            "(gymnasium.wrappers.FlattenObservation makes one of it)"
        )
    if not is_picture(space.shape, space.dtype):
        if not np.prod(space.shape, dtype=np.int64):
            raise UserError(f"{name} observes {_short(space)}: it holds no number")
        if len(space.shape) > 2:
            raise UserError(
                f"{name} observes {_short(space)}: images are uint8 [H, W, 3] or [H, W] "
                "(gymnasium.wrappers.FlattenObservation makes a state of numbers that are no image)"
            )
        return False
    if not pixels:
        raise UserError(f"{name} observes images and no state: set env.pixels=true, and an agent from pixels")
    return True


def _short(space: spaces.Space[Any]) -> str:
    """A space in one line that is not too long."""
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else f"{text[:100]}…"
