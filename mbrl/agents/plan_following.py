"""An actor that follows plans, and remembers the rest of each in the TensorDict.

B decisions in parallel, H horizon, A action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec, Unbounded

from mbrl.errors import UserError
from policies.base import Plan, exploring


class PlanFollower(TensorDictModuleBase, ABC):
    """Acts by the first action of a plan, then by its rest, until the next plan is due.

    It reads observations, and its memory of the previous step. It writes `action` and, under "next", its memory.
    The step that makes a plan takes `Plan.action`, later steps the plan's mean. While exploring, noise of the plan's
    standard deviation is added.

    The memory is in the TensorDict, so that several environments and the evaluation do not mix: `plan_mean` and
    `plan_std` [H, A], the rest of the plan, from which the next search starts; `plan_left` [1], actions to take before
    the next plan. They are zeros after a reset (`Policy.carried`).

    Args:
        observed: specs of the observations that it reads.
        horizon: H.
        actions: A.
        replan_every: agent steps that a plan is followed before the next is made, 1 to H.
        further: specs of what else it remembers, see `remember`.

    Attributes:
        memory: specs of its memory.

    Raises:
        UserError: a plan would be followed beyond its end.
    """

    def __init__(
        self,
        observed: Mapping[str, TensorSpec],
        *,
        horizon: int,
        actions: int,
        replan_every: int,
        further: Mapping[str, TensorSpec],
    ) -> None:
        super().__init__()
        if not 1 <= replan_every <= horizon:
            raise UserError(f"replan_every ({replan_every}) must be 1 to planner.horizon ({horizon})")
        self.replan_every, self.observed = replan_every, dict(observed)
        self.memory = {
            "plan_mean": Unbounded((horizon, actions)),
            "plan_std": Unbounded((horizon, actions)),
            "plan_left": Unbounded((1,), dtype=torch.int64),
            **further,
        }
        self.in_keys = [*self.observed, *self.memory]
        self.out_keys = ["action", *(("next", key) for key in self.memory)]

    @abstractmethod
    def plan(self, rows: TensorDictBase) -> Plan:
        """Plan for rows [B] of observations and memory."""

    def remember(self, rows: TensorDictBase, action: Tensor) -> dict[str, Tensor]:
        """The further memory after actions [B, A] in rows [B]."""
        return {}

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        rows = tensordict.select(*self.in_keys).reshape(-1)
        mean, std, replanned = rows["plan_mean"].clone(), rows["plan_std"].clone(), rows["plan_left"][:, 0] == 0
        due = replanned.nonzero().squeeze(1)  # numbers of rows: each index by a mask would wait for the GPU
        action = mean[:, 0].clone()
        if len(due):
            mean[due], std[due], action[due] = self.plan(rows[due])
        if exploring():
            action = (action + std[:, 0] * torch.randn_like(action)).clamp(-1.0, 1.0)
        padding = torch.zeros_like(mean[:, :1])
        written = {
            "plan_mean": torch.cat([mean[:, 1:], padding], 1),
            "plan_std": torch.cat([std[:, 1:], padding], 1),
            "plan_left": torch.where(replanned[:, None], self.replan_every, rows["plan_left"]) - 1,
            **self.remember(rows, action),
        }
        shape = tensordict.batch_size
        for key, value in written.items():
            tensordict["next", key] = value.reshape(*shape, *value.shape[1:])
        return tensordict.set("action", action.reshape(*shape, -1))
