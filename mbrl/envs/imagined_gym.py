"""The imagined environment as a Gymnasium environment, in which any library of reinforcement learning can train.

K frame stack, R resolution, S state, N tasks, A action.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from tensordict import TensorDictBase

from mbrl.device import fork_rng
from mbrl.envs.imagined import ImaginationEnv

FRAMES_PER_SECOND = 10  # of a film of `render`; an agent step of Meta-World lasts 25 ms
Observation = Any  # an array, or a dict of arrays
# What a policy reads: `frames` hold `pixels`.
READ = ("frames", "state", "task")


class ImaginedGymEnv(gymnasium.Env[Observation, npt.NDArray[np.float32]]):
    """One imagined rollout at a time, branched from a real state.

    An observation is `frames` uint8 [R, R, 3K], the K newest frames with the newest last, or `state` float32 [S]; and
    a dict of these and `task` where the world model predicts several. An episode is truncated at the horizon, and
    terminated where the world model predicts it. The same seed and actions give the same episode.

    Args:
        imagined: the rollouts, one side by side.

    Attributes:
        render_mode: "rgb_array" of a world model that predicts frames; else None.
    """

    def __init__(self, imagined: ImaginationEnv) -> None:
        assert imagined.batch_size == (1,), "one rollout at a time"
        self._imagined = imagined
        self._now: TensorDictBase | None = None
        self._done = True
        modes = ["rgb_array"] if imagined.has_pixels else []
        self.metadata = {"render_modes": modes, "render_fps": FRAMES_PER_SECOND}
        self.render_mode = modes[0] if modes else None
        found = {key: _space(key, tuple(spec.shape[1:])) for key, spec in imagined.observation_spec.items()}
        self._keys = [key for key in READ if key in found]
        read = {key: found[key] for key in self._keys}
        self.observation_space = spaces.Dict(read) if len(read) > 1 else read[self._keys[0]]  # type: ignore[arg-type]
        self.action_space = spaces.Box(-1.0, 1.0, tuple(imagined.action_spec.shape[1:]), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw a real state, and start to imagine from it.

        Args:
            seed: seed of this episode and of those after it; None goes on with the random numbers so far.
            options: not used.
        """
        super().reset(seed=seed)
        with fork_rng(), torch.no_grad():
            self._seed_model()
            self._now = self._imagined.reset()
        self._done = False
        return self._observation(self._now), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Imagine one step; the reward is in the units of the environment that the model was trained on.

        Raises:
            ResetNeeded: there is no episode under way.
            FloatingPointError: the action is NaN or infinite.
        """
        if self._done or self._now is None:
            raise ResetNeeded("call reset first: no imagined episode is under way")
        move = np.asarray(action, np.float32)
        if not np.isfinite(move).all():
            raise FloatingPointError(f"the action {move.tolist()} is not finite: the policy has diverged")
        taken = torch.from_numpy(move.clip(-1.0, 1.0))[None].to(self._imagined.device)
        with fork_rng(), torch.no_grad():
            self._seed_model()
            self._now = self._imagined.step(self._now.copy().set("action", taken))["next"]
        reward, terminated, truncated = (self._now[key].item() for key in ("reward", "terminated", "truncated"))
        self._done = terminated or truncated
        return self._observation(self._now), float(reward), bool(terminated), bool(truncated), {}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The newest frame uint8 [R, R, 3]; None of a world model that predicts no frames."""
        if self._now is None:
            raise ResetNeeded("call reset first: no imagined episode is under way")
        return _image(self._now["pixels"]) if self._imagined.has_pixels else None

    def _seed_model(self) -> None:
        """Seed the sampling of the next call, whatever else draws random numbers in this process."""
        torch.manual_seed(int(self.np_random.integers(2**63)))

    def _observation(self, now: TensorDictBase) -> Observation:
        arrays = {key: _image(now[key]) if key == "frames" else now[key][0].cpu().numpy() for key in self._keys}
        return arrays if len(arrays) > 1 else arrays[self._keys[0]]


def _image(pictures: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[1, channels, R, R] as [R, R, channels]."""
    image: npt.NDArray[np.uint8] = pictures[0].permute(1, 2, 0).contiguous().cpu().numpy()
    return image


def _space(key: str, shape: tuple[int, ...]) -> spaces.Box:
    if key in ("frames", "pixels"):
        channels, *sides = shape
        return spaces.Box(0, 255, (*sides, channels), np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)
