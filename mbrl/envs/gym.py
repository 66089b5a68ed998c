"""TorchRL wrappers of a Gymnasium environment with the keys of this project."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from tensordict import TensorDictBase
from torchrl.data import Binary, Composite, TensorSpec
from torchrl.envs import (
    CatFrames,
    Compose,
    EnvBase,
    GymWrapper,
    InitTracker,
    RenameTransform,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)
from torchrl.envs.gym_like import BaseInfoDictReader

from mbrl.envs.snapshots import ObserveSnapshot
from mbrl.errors import UserError


class SuccessReader(BaseInfoDictReader):
    """Reads `success` bool [1] from the `info` of a reset or a step."""

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("success", torch.as_tensor(info_dict["success"]))

    @property
    def info_spec(self) -> dict[str, TensorSpec]:
        return {"success": Binary(n=1, shape=(1,), dtype=torch.bool)}


def wrap_gym(env: gymnasium.Env[Any, Any], frame_stack: int, snapshots: bool = False) -> EnvBase:
    """Make a Gymnasium environment a TorchRL one. If it has `pixels`, the result also has `frames`.

    Args:
        env: has `state` and, optionally, `pixels`. Its other attributes (`seek`, `snapshot`, ...) are also attributes
            of the result.
        frame_stack: K, the number of last `pixels` that make up `frames` [3K, R, R]; 1 or more.
        snapshots: whether observations have `snapshot`, the exact state of `env`, which then needs the method.

    Raises:
        UserError: `frame_stack` is below 1.
    """
    if frame_stack < 1:
        raise UserError(f"frame_stack is {frame_stack}: it must be 1 or more")
    wrapped = GymWrapper(env).set_info_dict_reader(SuccessReader())
    # GymWrapper renames the entry "state" to "observation".
    transforms: list[Transform] = [RenameTransform(["observation"], ["state"])]
    if "pixels" in wrapped.observation_spec.keys():
        transforms.append(CatFrames(N=frame_stack, dim=-3, in_keys=["pixels"], out_keys=["frames"]))
    if snapshots:
        transforms.append(ObserveSnapshot(env))
    return TransformedEnv(wrapped, Compose(*transforms))


def with_recurrent_state(env: EnvBase, carried: Composite | None) -> EnvBase:
    """Add what a recurrent actor reads: `is_init`, and the keys of its state.

    Args:
        env: the environment.
        carried: spec of the recurrent state, `Policy.carried`; None returns the environment as it is.
    """
    if carried is None:
        return env
    return TransformedEnv(env, Compose(InitTracker(), TensorDictPrimer(carried.clone())), auto_unwrap=False)
