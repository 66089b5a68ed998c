"""From a gymnasium environment with our keys to a TorchRL one."""

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

from mbrl.errors import UserError


class SuccessReader(BaseInfoDictReader):
    """Reads `success` bool [1] from the info of a reset or a step."""

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("success", torch.as_tensor(info_dict["success"]))

    @property
    def info_spec(self) -> dict[str, TensorSpec]:
        return {"success": Binary(n=1, shape=(1,), dtype=torch.bool)}


def wrap_gym(env: gymnasium.Env[Any, Any], frame_stack: int) -> EnvBase:
    """A TorchRL environment; where there are `pixels`, also with `frames`.

    Args:
        env: a Gymnasium environment with `state` and perhaps `pixels`. Attributes of it that TorchRL does not know
            (`seek`, `snapshot`, ...) are reached through the result.
        frame_stack: K, the number of last `pixels` that make up `frames` [3K, R, R]; at least 1.

    Raises:
        UserError: `frame_stack` is below 1.
    """
    if frame_stack < 1:
        raise UserError(f"frame_stack is {frame_stack}: it must be 1 or more")
    wrapped = GymWrapper(env).set_info_dict_reader(SuccessReader())
    # GymWrapper calls an entry named "state" "observation".
    transforms: list[Transform] = [RenameTransform(["observation"], ["state"])]
    if "pixels" in wrapped.observation_spec.keys():
        transforms.append(CatFrames(N=frame_stack, dim=-3, in_keys=["pixels"], out_keys=["frames"]))
    return TransformedEnv(wrapped, Compose(*transforms))


def with_recurrent_state(env: EnvBase, carried: Composite | None) -> EnvBase:
    """The environment with what a recurrent actor needs: `is_init`, and the keys that it hands to its next step."""
    if carried is None:
        return env
    return TransformedEnv(env, Compose(InitTracker(), TensorDictPrimer(carried.clone())), auto_unwrap=False)
