"""The DeepMind Control suite (Tassa et al. 2018, arXiv 1801.00690) from pixels and state.

Its episodes have 1000 env steps, which earn 0 to 1 each, and end by `truncated`. R resolution, S state.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from torchrl.envs import EnvBase

from mbrl.envs.adapted import Adapted
from mbrl.envs.gym import wrap_gym
from mbrl.envs.rendering import Quality, Renderer
from mbrl.errors import UserError
from mbrl.settings.annotations import forwards_to
from policies.ranges import FrameStack, PositiveCount, Resolution

EPISODE_LENGTH = 1000  # env steps of every task
BEHIND = {"quadruped": 2}  # number of the camera of a domain whose first camera does not follow the robot


class ControlTask(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """One task of the suite, its observations joined to one vector [S]. An episode is a function of the reset's seed.

    Args:
        task: domain and task, such as walker-walk.
        pixels: whether it renders.
        resolution: R of the images.
        camera: name of a camera; None for the first that follows the robot.
        quality: `fast` or `full`, see `mbrl.envs.rendering`.

    Raises:
        UserError: the task or the camera does not exist, or dm_control is not installed.
        OSError: pixels are wanted and there is no OpenGL.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium declares it
    render_mode = "rgb_array"

    def __init__(
        self, task: str, *, pixels: bool, resolution: int = 64, camera: str | None = None, quality: Quality = "fast"
    ) -> None:
        self._env = _load(task)
        spec = self._env.action_spec()
        low, high = (np.asarray(bound, np.float32) for bound in (spec.minimum, spec.maximum))
        self.action_space = spaces.Box(low, high, spec.shape, np.float32)
        self._renderer: Renderer | None = None
        state = _joined(self._env.reset().observation)
        self.observation_space = spaces.Box(-np.inf, np.inf, state.shape, np.float32)
        if pixels:
            model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
            first = model.camera(BEHIND.get(task.split("-")[0], 0)).name
            self._renderer = Renderer(model, data, resolution=resolution, camera=camera or first, quality=quality)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode that the seed determines."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        return _joined(self._env.reset().observation), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one control step. An episode that ends with a discount of 0 has terminated."""
        after = self._env.step(action)
        terminated = after.last() and after.discount == 0
        return _joined(after.observation), float(after.reward), terminated, after.last() and not terminated, {}

    def render(self) -> npt.NDArray[np.uint8]:
        """The image uint8 [R, R, 3] in the present state."""
        assert self._renderer is not None
        return self._renderer.render().transpose(1, 2, 0)

    def close(self) -> None:
        """Free the OpenGL context and the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()


@forwards_to(Adapted)
def make_env(
    task: str = "walker-walk",
    seed: int = 0,
    worker: int = 0,
    *,
    pixels: bool = True,
    resolution: Resolution = 64,
    camera: str | None = None,
    quality: Quality = "fast",
    frame_stack: FrameStack = 3,
    snapshots: bool = False,
    episode_length: PositiveCount = EPISODE_LENGTH,
    **settings: Any,
) -> EnvBase:
    """Make a task of the suite a TorchRL environment.

    Args:
        task: as in `ControlTask`.
        seed: as in `Adapted`.
        worker: as in `Adapted`.
        pixels: as in `Adapted`.
        resolution: as in `Adapted`.
        camera: as in `ControlTask`.
        quality: as in `ControlTask`.
        frame_stack: K, at least 1. At a reset the first image is repeated K times.
        snapshots: must be False: there are no exact snapshots.
        episode_length: as in `Adapted`; at most 1000, where the suite ends an episode.
        settings: the other keyword arguments of `Adapted`.

    Raises:
        UserError: the task does not exist, a setting is impossible, or dm_control is not installed.
        OSError: pixels are wanted and there is no OpenGL.
    """
    if episode_length > EPISODE_LENGTH:
        raise UserError(f"env.episode_length is {episode_length}: episodes of this suite end after {EPISODE_LENGTH}")
    env = ControlTask(task, pixels=pixels, resolution=resolution, camera=camera, quality=quality)
    options: dict[str, Any] = {"pixels": pixels, "resolution": resolution, "episode_length": episode_length}
    return wrap_gym(Adapted(env, task, False, seed, worker, **options, **settings), frame_stack, snapshots)


def _load(task: str) -> Any:
    """dm_control's environment of a task."""
    if find_spec("dm_control") is None:
        raise UserError("env=dmc needs a package that is not installed: in the clone, pip install -e '.[dmc]'")
    from dm_control import suite

    known = ["-".join(pair) for pair in suite.ALL_TASKS if pair[0] != "lqr"]  # whose actions have no bounds
    if task not in known:
        close = difflib.get_close_matches(task, known, n=3, cutoff=0.4) or known[:3]
        raise UserError(f"unknown DeepMind Control task {task!r}: did you mean {', '.join(close)}?")
    domain, _, name = task.partition("-")
    env = suite.load(domain, name)
    try:
        env.reset()
    except AttributeError as error:  # The quadruped's sensors are read with a function that NumPy 2.4 has no more.
        raise UserError(f"dm_control cannot play {task} with the NumPy installed here: {error}") from error
    return env


def _joined(observation: Any) -> npt.NDArray[np.float32]:
    """The entries of an observation as one vector [S], in the order of the suite."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)
