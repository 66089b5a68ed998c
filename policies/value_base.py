"""`ValuePolicy`: base class of policies with Q-functions, which may keep a frozen behaviour clone.

*B batch shape, D features, A action, N critics.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type
from torch import Tensor, nn

from policies.base import Policy
from policies.proposals import Proposals, value


class ValuePolicy(Policy):
    """A policy with Q-functions, which may keep a frozen clone of its actor.

    `anchors`: on transitions that are not demonstrations the actor imitates the clone (imitation term of TD3+BC,
    Fujimoto and Gu 2021, arXiv 2106.06860, with a policy as target instead of data). `proposes`: the critics choose
    between the actions of the actor and of the clone, for acting and in their targets (IBRL, Hu et al. 2023,
    arXiv 2311.02198). `calibrate`: warms up the critics alone, on the clone's episodes (the warm-up data of WSRL,
    Zhou et al. 2024, arXiv 2412.07762) and on demonstrations. Training the critics alone there is our addition.
    *B batch shape, D features, A action, N critics.

    Attributes:
        target_critic: features [*B, D], action [*B, A] -> values [N, *B, 1].
        frozen: the actor as it was when imitation ended; None unless `keep_clone` was called.
        proposes: whether the critics choose between its action and the actor's.
        anchors: whether the actor imitates it on transitions that are not demonstrations.
    """

    target_critic: nn.Module
    frozen: Any

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.proposes, self.anchors = None, False, False

    @property
    def acting(self) -> TensorDictModuleBase:
        """The actor, or the better of its actions and those of the frozen clone."""
        return Proposals(self.actor, self.frozen, self.target_critic) if self.proposes else self.actor

    def keep_clone(self, *, proposes: bool = True, anchors: bool = False) -> None:
        """Keep a frozen clone, whose weights `end_cloning` sets.

        Args:
            proposes: whether it proposes actions from now on, also for the targets.
            anchors: whether the actor imitates it on all that was not demonstrated.
        """
        self.frozen, self.proposes, self.anchors = copy.deepcopy(self.actor).requires_grad_(False), proposes, anchors

    @torch.no_grad()
    def cloned_action(self, observed: TensorDictBase) -> Tensor:
        """The frozen clone's action [B, A] without exploration, of the observations [B]."""
        with set_interaction_type(InteractionType.DETERMINISTIC):
            action: Tensor = self.frozen.act(self.frozen.encode(observed))
        return action

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
        if not self.proposes:
            return own
        return own.maximum(value(self.target_critic, features, self.cloned_action(observed)))
