"""Base class of policies with Q-functions, which can keep a frozen behaviour clone.

*B batch shape, D features, A action, N critics.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor, nn

from policies.base import Policy


class ValuePolicy(Policy):
    """Policy with Q-functions, which can keep a frozen clone of its actor.

    With a clone, the actor imitates it on transitions that are not demonstrations (imitation term of TD3+BC, Fujimoto
    and Gu 2021, arXiv 2106.06860, with a policy as target instead of data). `calibrate` warms up the critics alone, on
    the clone's episodes (the warm-up data of WSRL, Zhou et al. 2024, arXiv 2412.07762) and on demonstrations. Training
    the critics alone is our addition.

    Attributes:
        frozen: copy of the actor at the end of imitation; None unless `keep_clone` was called. Its `encode` returns the
            features of an observation, its `act` an action [*B, A] from them.
    """

    frozen: Any

    def __init__(self) -> None:
        super().__init__()
        self.frozen = None

    def keep_clone(self) -> None:
        """Keep a frozen clone, whose weights `end_cloning` sets."""
        self.frozen = copy.deepcopy(self.actor).requires_grad_(False)

    @torch.no_grad()
    def cloned_action(self, observed: TensorDictBase) -> Tensor:
        """Actions [B, A] of the frozen clone for observations [B], without exploration."""
        with set_interaction_type(InteractionType.DETERMINISTIC):
            action: Tensor = self.frozen.act(self.frozen.encode(observed))
        return action

    def end_cloning(self) -> None:
        super().end_cloning()
        if self.frozen is not None:
            self.frozen.load_state_dict(self.actor.state_dict())

    @abstractmethod
    def calibrate(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step of the critics alone; the actor and its encoder do not change.

        Arguments, metrics and errors as in `update`.
        """


def value(critic: nn.Module, features: Tensor, action: Tensor) -> Tensor:
    """Minimum of N critics' values of features [*B, D] and actions [*B, A]: [*B, 1] in float32."""
    values: Tensor = critic(features, action)
    return values.amin(dim=0).float()
