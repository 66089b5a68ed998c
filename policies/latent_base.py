"""Interface of a prior and critics that learn in the latent states of a model, together with the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class PriorLoss(NamedTuple):
    """Result of LatentBehaviour.prior_loss.

    Attributes:
        loss: 0-d.
        metrics: detached 0-d tensors by name.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class LatentBehaviour(nn.Module, ABC):
    """A planner's prior, which proposes actions in latent states, and critics of them.

    *B batch shape, B batch, T steps of a segment, D latent state, A action.

    Attributes:
        optimizers: by name, for checkpoints: `critic` and `prior`, of the parameters that each loss trains.
    """

    optimizers: dict[str, torch.optim.Optimizer]

    @abstractmethod
    def sample(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Sample actions [*B, A] in [-1, 1] in latent states [*B, D], with their log-density [*B, 1]."""

    @abstractmethod
    def value(self, latent: Tensor) -> Tensor:
        """Value [*B, 1] of latent states [*B, D] under the prior, for the end of a plan."""

    @abstractmethod
    def target(self, latent: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """Target of the critics, [*B, 1].

        Args:
            latent: [*B, D], the states that actions led to.
            reward: [*B, 1], rewards of these actions.
            terminated: bool [*B, 1], whether these actions terminated the episode.
        """

    @abstractmethod
    def value_loss(self, latent: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Loss of the critics, 0-d; its gradient flows into `latent` too.

        Args:
            latent: [B, T, D].
            action: [B, T, A], taken in `latent`.
            target: [B, T, 1], see `target`.
            weight: [B, T], factor of the losses of each step.
        """

    @abstractmethod
    def prior_loss(self, latent: Tensor, weight: Tensor) -> PriorLoss:
        """Loss of the prior in latent states [B, T, D], with a factor of each step's loss, `weight` [B, T]."""

    @abstractmethod
    def update_targets(self) -> None:
        """Update the target critics; called after each gradient step."""
