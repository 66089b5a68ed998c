"""What the loop knows of a policy with critics of actions, and of the frozen clone that it may keep.

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
    """A policy with critics of actions, which may keep a frozen clone.

    The clone may be what the actor imitates where nothing was demonstrated: the imitation term of TD3+BC (Fujimoto and
    Gu 2021, arXiv 2106.06860), towards a policy and not towards data. Or the critics choose between both actions:
    IBRL (Hu et al. 2023, arXiv 2311.02198): a clone of demonstrations proposes actions beside the actor's, for acting
    and for the targets of the critics. The critics may learn alone first, on the clone's episodes, which are the
    warm-up of WSRL (Zhou et al. 2024, arXiv 2412.07762), and on demonstrations; that they learn alone first is ours.
    *B batch shape, D features, A action, N critics.

    Attributes:
        target_critic: features [*B, D], action [*B, A] -> values [N, *B, 1].
        frozen: the actor as it was when imitation ended; None unless `keep_clone` was called.
        proposes: whether its actions are proposed beside the actor's.
        anchors: whether the imitation term is towards its actions, on all that was not demonstrated.
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
