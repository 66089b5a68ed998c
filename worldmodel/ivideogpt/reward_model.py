"""Reward model without a video model, for frames from another source.

B batch, T time, R resolution, A action width.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from worldmodel.ivideogpt.rewards import Frames, RewardNetwork
from worldmodel.ivideogpt.training import decay_groups, gradient_step
from worldmodel.ranges import Norm
from worldmodel.reward_base import RewardModel


class SeparateRewardModel(RewardModel):
    """Reward model of a `RewardNetwork` with its optimiser.

    Args:
        resolution: R.
        action_dim: A.
        network: Makes the network when called with (Frames, A).
        optimizer: Makes its optimiser when called with parameter groups.
        clip_norm: Maximum norm of the gradient.
    """

    def __init__(
        self,
        resolution: int,
        action_dim: int,
        *,
        network: Callable[..., RewardNetwork],
        optimizer: Callable[..., torch.optim.Optimizer],
        clip_norm: Norm = 1.0,
    ) -> None:
        super().__init__()
        self.network, self.clip_norm = network(Frames(resolution), action_dim), clip_norm
        self.optimizer = optimizer(decay_groups(self.network))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        network, rewards = self.network, batch["next", "reward"][:, :-1]
        logits = network.logits(batch["pixels"], batch["action"][:, :-1], learning=True)
        loss = network.loss(logits, rewards)
        gradient_step(self.optimizer, loss, done=0, warmup=0, clip_norm=self.clip_norm, name="reward_network")
        error = (network.read(logits.detach()) - rewards).abs().mean()
        return {"reward_loss": loss.detach(), "reward_error": error}

    @torch.no_grad()
    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        rewards: Tensor = self.network(torch.stack([before, after], 1), actions.unsqueeze(1))
        return rewards.squeeze(1)
