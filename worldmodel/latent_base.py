"""The interface of models that predict latent states and rewards, and no observations."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn


class Unrolled(NamedTuple):
    """Result of LatentDynamics.learn on segments of H + 1 steps.

    Attributes:
        loss: Loss of the model, 0-d.
        metrics: Detached 0-d tensors by name.
        latent: [B, H + 1, D] with gradients: encoded at the first step, predicted from there at the others.
        observed: [B, H, D] without gradient: encoded from the observations of all steps but the first.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    latent: Tensor
    observed: Tensor


class LatentDynamics(nn.Module, ABC):
    """Encodes an observation, and predicts the next latent state and the reward of an action.

    It is no `WorldModel`: it has no decoder, so that nothing but a learner and a planner in its latent states can use
    it. Dimensions: *B batch shape, D width of a latent state, A action.

    Attributes:
        observations: Keys that `encode` reads.
        latent_size: D.
        optimizers: By name, for checkpoints.
    """

    observations: tuple[str, ...]
    latent_size: int
    optimizers: dict[str, torch.optim.Optimizer]

    @abstractmethod
    def encode(self, observed: TensorDictBase) -> Tensor:
        """Latent states [*B, D] of observations [*B]."""

    @abstractmethod
    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latent states [*B, D] that `action` [*B, A] leads to from `latent` [*B, D]."""

    @abstractmethod
    def reward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Expected reward [*B, 1] of `action` [*B, A] in `latent` [*B, D]."""

    @abstractmethod
    def learn(self, segments: TensorDictBase, weight: Tensor) -> Unrolled:
        """Compute the loss on segments of real steps.

        Args:
            segments: [B, H + 1] with the observations, `action` [B, H + 1, A] and `("next", "reward")`
                [B, H + 1, 1]. The last step's action and reward are not used.
            weight: [H], factor of the losses of each predicted step.
        """
