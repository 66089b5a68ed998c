"""Scripted policies of Meta-World, which read the simulator's state and solve most tasks."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec

from policies.base import Policy, exploring
from policies.ranges import Std


class _ScriptedActor(nn.Module):
    """Actions [*B, 4] from states [*B, 39]."""

    def __init__(self, task: str, noise: float) -> None:
        super().__init__()
        from metaworld.policies import ENV_POLICY_MAP

        name = f"{task.removesuffix('-v3')}-v3"
        if name not in ENV_POLICY_MAP:
            close = difflib.get_close_matches(name, ENV_POLICY_MAP, n=3, cutoff=0.0)
            names = ", ".join(other.removesuffix("-v3") for other in close)
            raise ValueError(f"no scripted policy for task {task!r}: did you mean {names}?")
        # Actions are clipped here, so Meta-World's warning about the size of constants does not apply.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
        script: Any = ENV_POLICY_MAP[name]
        self._script = script()
        self._noise = noise

    def forward(self, state: Tensor) -> Tensor:
        rows = state.detach().cpu().reshape(-1, state.shape[-1]).double().numpy()
        actions = np.stack([self._script.get_action(row) for row in rows]).astype(np.float32)
        action = torch.from_numpy(actions).reshape(*state.shape[:-1], -1).to(state.device)
        if self._noise and exploring():
            action = action + self._noise * torch.randn_like(action)
        return action.clamp(-1, 1)


class ScriptedPolicy(Policy):
    """Acts by the task's script on the unnormalised `state`; does not learn.

    Args:
        task: any of Meta-World's 50, with or without "-v3".
        noise: standard deviation of the Gaussian exploration noise on actions; 0: none.
    """

    def __init__(self, observation_spec: Composite, action_spec: TensorSpec, *, task: str, noise: Std = 0.0) -> None:
        super().__init__()
        if noise < 0:
            raise ValueError(f"noise is {noise}: a standard deviation must be 0 or more")
        if "state" not in list(observation_spec.keys()):
            raise ValueError("a scripted policy acts on `state`, which this environment does not give")
        self.actor = TensorDictModule(_ScriptedActor(task, noise), in_keys=["state"], out_keys=["action"])

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Does nothing: this policy does not learn."""
        return {}
