"""Meta-World from pixels and state as a TorchRL environment.

R resolution, K frame stack. Keys of a step: `pixels` uint8 [3, R, R], `frames` uint8 [3K, R, R] (the last K images,
oldest first), `state` float32 [39], `action` float32 [4] in [-1, 1]; under `next` also `reward` float32 [1] and
`success` bool [1]. An episode ends by `truncated`, never by `terminated`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from torchrl.envs import EnvBase

from mbrl.data.episodes import view_name
from mbrl.envs.gym import wrap_gym
from mbrl.envs.numbered import NumberedEpisodes, Observation
from mbrl.envs.rendering import Quality, Renderer, check_image_settings
from mbrl.envs.simulator import MAX_EPISODE_STEPS, STATE_DIM, Simulator, Snapshot, resolve_task
from mbrl.errors import UserError
from mbrl.settings.annotations import forwards_to
from policies.ranges import FrameStack, PositiveCount, Resolution, Weight

Goals = Literal["fresh", "fixed"]


class MetaWorld(NumberedEpisodes):
    """One task as a Gymnasium environment.

    A step repeats its action `action_repeat` times. Rewards are summed, `success` is whether any of these env steps
    succeeded, and only the last image is rendered. Reset number e, counted from `first_episode`, is a pure function of
    (seed, worker, e).

    Args:
        task: any of the 50 tasks, with or without "-v3".
        seed: with `worker` and the number of the episode it determines the goal; nothing else does.
        worker: number of the worker process, 0 or more.
        pixels: whether `pixels` are rendered; without them the only observation is `state`.
        resolution: R in pixels, at least 8.
        camera: any camera of the model, such as corner or topview.
        mirrored: the orientation of iVideoGPT's published data instead of the right way up.
        quality: `fast` or `full`, see `mbrl.envs.rendering`.
        action_repeat: env steps of an agent step.
        episode_length: in env steps: a multiple of `action_repeat`, at most 500.
        goals: `fresh` (drawn anew each episode) or `fixed` (the 50 of MT1 with this seed).
        success_bonus: added to the reward of an agent step in which the task was solved.
        first_episode: number of the first episode; a resumed run passes the number of its next episode.

    Attributes:
        renders: whether the next steps render `pixels`, where there are any.

    Raises:
        UserError: a setting is unknown or impossible.
        OSError: pixels are wanted and there is no OpenGL.
    """

    renders = True

    def __init__(
        self,
        task: str = "plate-slide",
        seed: int = 0,
        worker: int = 0,
        *,
        pixels: bool = True,
        resolution: Resolution = 64,
        camera: str = "corner",
        mirrored: bool = False,
        quality: Quality = "fast",
        action_repeat: PositiveCount = 2,
        episode_length: PositiveCount = 200,
        goals: Goals = "fresh",
        success_bonus: Weight = 0.0,
        first_episode: int = 0,
    ) -> None:
        _check_protocol(action_repeat, episode_length, goals, seed, worker, first_episode)
        if pixels:
            check_image_settings(resolution, quality)
        super().__init__(seed, worker, first_episode)
        self.action_repeat, self.episode_length = action_repeat, episode_length
        self.success_bonus = success_bonus
        self._simulator = Simulator(resolve_task(task), seed, worker, goals)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        # Unbounded: observations leave the bounds that Meta-World declares.
        state = spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)
        entries: dict[str, spaces.Space[Any]] = {"state": state}
        self._renderer: Renderer | None = None
        self.view = view_name(camera, mirrored) if pixels else None
        if pixels:
            raw = self._simulator.raw
            self._renderer = Renderer(
                raw.model, raw.data, resolution=resolution, camera=camera, quality=quality, mirrored=mirrored
            )
            entries["pixels"] = spaces.Box(0, 255, (3, resolution, resolution), np.uint8)
        self.observation_space = spaces.Dict(entries)

    def _start(self, episode: int) -> Observation:
        self._simulator.seed = self.seed
        return self._observe(self._simulator.reset(episode))

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one agent step of `action_repeat` env steps.

        Raises:
            FloatingPointError: the action is NaN or infinite.
        """
        action = np.asarray(action, np.float32)
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the action {action.tolist()} is not finite: the policy has diverged")
        action = action.clip(-1.0, 1.0)
        total, success = 0.0, False
        for _ in range(self.action_repeat):
            state, reward, succeeded = self._simulator.step(action)
            total += reward
            success |= succeeded
        total += self.success_bonus * success
        self._elapsed += self.action_repeat
        truncated = self._elapsed >= self.episode_length
        return self._observe(state), total, False, truncated, {"success": np.array([success])}

    def snapshot(self) -> Snapshot:
        """Exact state of the simulator and of the episode, as arrays and scalars."""
        return {
            "simulator": self._simulator.snapshot(),
            "next_episode": self._next_episode,
            "elapsed": self._elapsed,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of this environment, or of another environment of the same task.

        A frame stack around this environment is not part of the snapshot.
        """
        self._simulator.restore(snapshot["simulator"])
        self._next_episode, self._elapsed = snapshot["next_episode"], snapshot["elapsed"]

    def observe(self) -> Observation:
        """The observation in the current state."""
        return self._observe(self._simulator.observation)

    @property
    def picture_axes(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Entries of the action, each with its sign, that move the gripper right and up (or away) in the images.

        None without images.
        """
        return None if self._renderer is None else self._renderer.ground_axes()

    def close(self) -> None:
        """Free the simulator and the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
        self._simulator.close()

    def _observe(self, state: npt.NDArray[np.float64]) -> Observation:
        observation: Observation = {"state": state.astype(np.float32)}
        if self._renderer is not None and self.renders:
            observation["pixels"] = self._renderer.render()
        return observation


@forwards_to(MetaWorld)
def make_env(
    task: str = "plate-slide",
    seed: int = 0,
    worker: int = 0,
    *,
    frame_stack: FrameStack = 3,
    snapshots: bool = False,
    **settings: Any,
) -> EnvBase:
    """Make Meta-World a TorchRL environment. `env.seek`, `snapshot` and `restore` are those of `MetaWorld`.

    Args:
        task: as in `MetaWorld`.
        seed: as in `MetaWorld`.
        worker: as in `MetaWorld`.
        frame_stack: K, at least 1. At a reset the first image is repeated K times.
        snapshots: whether each observation has `snapshot`, float64 [n]: the exact state, see `mbrl.envs.snapshots`.
        settings: the keyword arguments of `MetaWorld`.

    Raises:
        UserError: a setting is unknown or impossible.
        OSError: pixels are wanted and there is no OpenGL.
    """
    return wrap_gym(MetaWorld(task, seed, worker, **settings), frame_stack, snapshots)


def _check_protocol(
    action_repeat: int, episode_length: int, goals: str, seed: int, worker: int, first_episode: int
) -> None:
    if action_repeat < 1:
        raise UserError(f"action_repeat is {action_repeat}: it must be 1 or more")
    if not 1 <= episode_length <= MAX_EPISODE_STEPS or episode_length % action_repeat:
        raise UserError(
            f"episode_length is {episode_length}: it must be a multiple of action_repeat ({action_repeat}) "
            f"between {action_repeat} and {MAX_EPISODE_STEPS}"
        )
    if goals not in get_args(Goals):
        raise UserError(f"unknown goals {goals!r}: choose one of {', '.join(get_args(Goals))}")
    for name, value in (("seed", seed), ("worker", worker), ("first_episode", first_episode)):
        if value < 0:
            raise UserError(f"{name} is {value}: it must be 0 or more")
