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


class SuccessReader(BaseInfoDictReader):
    """Reads `success` bool [1] from the info of a reset or a step."""

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("success", torch.as_tensor(info_dict["success"]))

    @property
    def info_spec(self) -> dict[str, TensorSpec]:
        return {"success": Binary(n=1, shape=(1,), dtype=torch.bool)}


def wrap_gym(env: gymnasium.Env[Any, Any], frame_stack: int) -> EnvBase:
    """A TorchRL environment. `frames` [3K, R, R] holds the K = `frame_stack` last `pixels` (0: none).

    Attributes of `env` that TorchRL does not know (`seek`, `snapshot`, ...) are reached through the result.
    """
    # GymWrapper calls an entry named "state" "observation".
    transforms: list[Transform] = [RenameTransform(["observation"], ["state"])]
    if frame_stack:
        transforms.append(CatFrames(N=frame_stack, dim=-3, in_keys=["pixels"], out_keys=["frames"]))
    return TransformedEnv(GymWrapper(env).set_info_dict_reader(SuccessReader()), Compose(*transforms))


def carrying(env: EnvBase, carried: Composite | None) -> EnvBase:
    """The environment with what a recurrent actor needs: `is_init`, and the keys that it hands to its next step."""
    if carried is None:
        return env
    return TransformedEnv(env, Compose(InitTracker(), TensorDictPrimer(carried.clone())), auto_unwrap=False)
