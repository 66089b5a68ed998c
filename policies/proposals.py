"""Policies whose critics choose between the actor's action and that of a frozen clone.

IBRL (Hu et al. 2023, arXiv 2311.02198) lets a clone of demonstrations propose actions for acting and for the targets of
the critics. WSRL (Zhou et al. 2024, arXiv 2412.07762) collects with it before the first update.

*B batch shape, D features, A action, N critics.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.base import Policy


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


class ValuePolicy(Policy):
    """A policy with critics of actions.

    Attributes:
        target_critic: features [*B, D], action [*B, A] -> values [N, *B, 1].
        frozen: the actor as it was when imitation ended; None unless `keep_clone` was called.
    """

    target_critic: nn.Module
    frozen: Any

    def __init__(self) -> None:
        super().__init__()
        self.frozen = None

    @property
    def acting(self) -> TensorDictModuleBase:
        """The actor, or the better of its actions and those of the frozen clone."""
        return self.actor if self.frozen is None else Proposals(self.actor, self.frozen, self.target_critic)

    def keep_clone(self) -> None:
        """Let a frozen clone propose actions from now on, also for the targets. `end_cloning` sets its weights."""
        self.frozen = copy.deepcopy(self.actor).requires_grad_(False)

    def end_cloning(self) -> None:
        super().end_cloning()
        if self.frozen is not None:
            self.frozen.load_state_dict(self.actor.state_dict())

    @abstractmethod
    def calibrate(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One gradient step of the critics alone; the actor and its encoder stay as they are.

        Arguments, metrics and errors as in `update`.
        """

    def bootstrap(self, observed: TensorDictBase, features: Tensor, own: Tensor) -> Tensor:
        """The value of the state for a target, [B, 1]: that of the better proposal.

        Args:
            observed: the observations [B].
            features: [B, D], what the critics read of them.
            own: [B, 1], the value of the actor's action.
        """
        if self.frozen is None:
            return own
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            cloned = self.frozen.act(self.frozen.encode(observed))
        return own.maximum(value(self.target_critic, features, cloned))


def value(critic: nn.Module, features: Tensor, action: Tensor) -> Tensor:
    """The lowest of N critics' values, [*B, 1] in float32."""
    values: Tensor = critic(features, action)
    return values.amin(dim=0).float()
