"""Interface of models that predict rewards from frames, without predicting frames.

B batch, T time, R resolution, A action width.
"""

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn


class RewardModel(nn.Module, ABC):
    """Predicts rewards from frames.

    Attributes:
        optimizer: Optimiser of its parameters.
    """

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take one gradient step on the steps between the frames of a batch [B, T].

        Args:
            batch: `pixels` uint8 [B, T, 3, R, R], `action` [B, T, A] and, under "next", `reward` [B, T, 1].

        Returns:
            Metrics by name: detached 0-d tensors.

        Raises:
            FloatingPointError: The loss or the gradient is not finite.
        """

    @abstractmethod
    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        """Rewards [B, 1] of steps between frames uint8 [B, 3, R, R] under actions [B, A]."""
