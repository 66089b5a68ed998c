"""Critics that choose between the actor's action and that of a frozen clone (IBRL, Hu et al. 2023, arXiv 2311.02198).

*B batch shape, D features, A action, N critics.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn


class Proposals(TensorDictModuleBase):
    """Writes the better of two actions, that of an actor and that of its frozen clone; both explore as the actor does.

    Args:
        actor: `encode` gives what it and the critics read of an observation, `act` an action [*B, A] from that.
        clone: as `actor`.
        critic: features of `actor` [*B, D], action [*B, A] -> values [N, *B, 1].
    """

    def __init__(self, actor: Any, clone: Any, critic: nn.Module) -> None:
        super().__init__()
        self.in_keys, self.out_keys = actor.in_keys, ["action"]
        self.actor, self.clone, self.critic = actor, clone, critic

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        features = self.actor.encode(tensordict)
        own, cloned = self.actor.act(features), self.clone.act(self.clone.encode(tensordict))
        clone_is_better = value(self.critic, features, cloned) > value(self.critic, features, own)
        return tensordict.set("action", torch.where(clone_is_better, cloned, own))


def value(critic: nn.Module, features: Tensor, action: Tensor) -> Tensor:
    """The lowest of N critics' values, [*B, 1] in float32."""
    values: Tensor = critic(features, action)
    return values.amin(dim=0).float()
