"""A Gymnasium environment as a TorchRL environment with the keys of this project.

A action, K frame stack, R resolution.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv
from torchrl.envs.libs.gym import convert_box_spec

from mbrl.data.episodes import SNAPSHOT
from mbrl.envs.snapshots import SnapshotLayout
from mbrl.errors import UserError


class GymnasiumEnv(EnvBase):
    """Steps a Gymnasium environment and writes each key of a step once.

    TorchRL's GymWrapper, with transforms that rename its keys and add ours, took longer than Meta-World's physics.

    Args:
        env: As in `wrap_gym`.
        frame_stack: As in `wrap_gym`.
        snapshots: As in `wrap_gym`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], frame_stack: int, snapshots: bool) -> None:
        super().__init__()
        self._env, self._frame_stack = env, frame_stack
        self._frames: Tensor | None = None  # the last `frames`
        self._layout = SnapshotLayout.of(env) if snapshots else None
        self.is_closed = False
        assert isinstance(env.observation_space, spaces.Dict)
        observed = {key: convert_box_spec(space) for key, space in env.observation_space.spaces.items()}
        self._dtypes = {key: spec.dtype for key, spec in observed.items()}
        self.observation_spec = Composite({**observed, **self._further_specs(observed)})
        self.action_spec = convert_box_spec(env.action_space)
        self.reward_spec = Unbounded((1,), dtype=torch.float32)
        flag = Binary(n=1, shape=(1,), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone())

    def _further_specs(self, observed: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Specs of what is observed beside what the Gymnasium environment returns."""
        specs: dict[str, TensorSpec] = {"success": Binary(n=1, shape=(1,), dtype=torch.bool)}
        if "pixels" in observed:
            channels, *sides = observed["pixels"].shape
            specs["frames"] = Unbounded((self._frame_stack * channels, *sides), dtype=torch.uint8)
        if self._layout is not None:
            specs[SNAPSHOT] = Unbounded((self._layout.size,), dtype=torch.float64)
        return specs

    def __getattr__(self, name: str) -> Any:
        """Attributes of the Gymnasium environment: `seek`, `snapshot`, `unwrapped`, ..."""
        if name.startswith("_"):
            return super().__getattr__(name)
        return getattr(self._env, name)

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDict:
        if tensordict is not None and "_reset" in tensordict and not tensordict["_reset"].all():
            raise RuntimeError("a single environment cannot be reset in part")
        observation, info = self._env.reset(**options)
        self._frames = None
        return TensorDict(self._observed(observation, info, False, False))

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict["action"].detach().cpu().numpy()
        observation, reward, terminated, truncated, info = self._env.step(action)
        observed = self._observed(observation, info, terminated, truncated)
        observed["reward"] = torch.from_numpy(np.array([reward], np.float32))
        return TensorDict(observed)

    def _step_proc_data(self, next_tensordict_out: TensorDictBase) -> TensorDictBase:
        """Return the step as it is: `_step` writes every key in its shape, and to check them again costs 20 µs."""
        return next_tensordict_out

    def _observed(
        self, observation: dict[str, Any], info: dict[str, Any], terminated: bool, truncated: bool
    ) -> dict[str, Tensor]:
        """All keys of a step but `reward`."""
        # Copies: an environment may write its next observation into the same array.
        observed = {key: torch.tensor(value, dtype=self._dtypes[key]) for key, value in observation.items()}
        observed["success"] = torch.tensor(info["success"], dtype=torch.bool).view(1)
        if "pixels" in observed:
            observed["frames"] = self._frames = self._stack(observed["pixels"])
        if self._layout is not None:
            observed[SNAPSHOT] = self._layout.pack(self._env.snapshot())  # type: ignore[attr-defined]
        flags = {"done": terminated or truncated, "terminated": terminated, "truncated": truncated}
        return observed | {key: torch.from_numpy(np.array([flag])) for key, flag in flags.items()}

    def _stack(self, pixels: Tensor) -> Tensor:
        """The last K images [3K, R, R], oldest first; the first one of an episode is repeated."""
        if self._frames is None:
            return pixels.repeat(self._frame_stack, 1, 1)
        return torch.cat([self._frames[len(pixels) :], pixels])

    def _set_seed(self, seed: int | None) -> None:
        self._env.reset(seed=seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the Gymnasium environment."""
        self.is_closed = True
        self._env.close()


def wrap_gym(env: gymnasium.Env[Any, Any], frame_stack: int, snapshots: bool = False) -> EnvBase:
    """Make a Gymnasium environment a TorchRL one. If it has `pixels`, the result also has `frames`.

    Args:
        env: has `state` and, optionally, `pixels`. Its other attributes (`seek`, `snapshot`, ...) are also attributes
            of the result.
        frame_stack: K, the number of last `pixels` that make up `frames` [3K, R, R]; 1 or more.
        snapshots: whether observations have `snapshot`, the exact state of `env`, which then needs the method.

    Raises:
        UserError: `frame_stack` is below 1, or the environment has no snapshots.
    """
    if frame_stack < 1:
        raise UserError(f"frame_stack is {frame_stack}: it must be 1 or more")
    if snapshots:
        require_snapshots(env)
    return GymnasiumEnv(env, frame_stack, snapshots)


def has_snapshots(env: Any) -> bool:
    """Whether an environment can be put back into an earlier state exactly."""
    return hasattr(env, "snapshot") and hasattr(env, "restore")


def require_snapshots(env: Any) -> None:
    """UserError for an environment that cannot be put back into an earlier state exactly."""
    if not has_snapshots(env):
        raise UserError(
            "this environment has no exact snapshots, which env.snapshots=true and the simulator as a world model "
            "need: env=metaworld and env=toy have them"
        )


def with_recurrent_state(env: EnvBase, carried: Composite | None) -> EnvBase:
    """Add what a recurrent actor reads: `is_init`, and the keys of its state.

    Args:
        env: the environment.
        carried: spec of the recurrent state, `Policy.carried`; None returns the environment as it is.
    """
    if carried is None:
        return env
    return TransformedEnv(env, Compose(InitTracker(), TensorDictPrimer(carried.clone())), auto_unwrap=False)
