"""TD-MPC2's prior and critics in a model's latent states (Hansen et al. 2024, arXiv 2310.16828).

*B batch shape, B batch, T steps of a segment, D latent state, A action.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import MLP

from policies.latent_base import LatentBehaviour, PriorLoss
from policies.linear import Linear
from policies.mish import Mish
from policies.networks import constant_weights, soft_update
from policies.ranges import Bins, Critics, LearningRate, Limit, PositiveShare, ShareBelowOne, Weight, Width
from policies.sac import squash
from policies.specs import action_size
from policies.two_hot_critics import TwoHotCritics

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
INITIAL_STD = 0.02  # of the weights of the linear layers
ASKED = 2  # critics, drawn anew each time: targets use their minimum, other losses their mean


class ValueRange(nn.Module):
    """Moving average of the range of values, from the 5th to the 95th percentile of a batch; at least and initially 1.

    Args:
        rate: weight of a new batch in the average, in (0, 1].
    """

    average: Tensor
    shares: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("average", torch.ones(()))
        self.register_buffer("shares", torch.tensor((0.05, 0.95)), persistent=False)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Update the average with the values of a batch, of any shape."""
        low, high = torch.quantile(values.flatten(), self.shares)
        self.average.lerp_((high - low).clamp(min=1.0), self.rate)


class PriorAndCritics(LatentBehaviour):
    """Tanh-Gaussian prior, and an ensemble of two-hot critics with target critics.

    Args:
        action_spec: bounded to [-1, 1], [A].
        latent_size: D.
        gamma: discount of one step.
        width: width of both hidden layers of each network.
        critics: number of critics, 2 or more.
        bins: see `TwoHotCritics`.
        limit: see `TwoHotCritics`.
        dropout: see `TwoHotCritics`.
        entropy: weight of the prior's entropy, beside values divided by their range. It is multiplied by A, as the
            published code does with the Gaussian's part.
        target_rate: Polyak coefficient tau of the target critics, in (0, 1].
        scale_rate: rate of the moving average of the value range, in (0, 1].
        learning_rate: learning rate of Adam.
    """

    def __init__(
        self,
        action_spec: TensorSpec,
        *,
        latent_size: Width,
        gamma: PositiveShare,
        width: Width = 512,
        critics: Critics = 5,
        bins: Bins = 101,
        limit: Limit = 10.0,
        dropout: ShareBelowOne = 0.01,
        entropy: Weight = 1e-4,
        target_rate: PositiveShare = 0.01,
        scale_rate: PositiveShare = 0.01,
        learning_rate: LearningRate = 3e-4,
    ) -> None:
        super().__init__()
        if critics < ASKED:
            raise ValueError(f"tdmpc2: critics is {critics}: it must be {ASKED} or more")
        actions = action_size(action_spec, "tdmpc2")
        self.gamma, self.entropy, self.target_rate = gamma, actions * entropy, target_rate
        norm = {"norm_class": nn.LayerNorm, "norm_kwargs": {"normalized_shape": width}}
        layers = {"num_cells": [width, width], "activation_class": Mish, "layer_class": Linear, **norm}
        self.prior = MLP(latent_size, 2 * actions, **layers)
        inputs = latent_size + actions
        self.critics = TwoHotCritics(inputs, critics, width=width, bins=bins, limit=limit, dropout=dropout)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        for part in self.prior.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=INITIAL_STD)
                nn.init.zeros_(part.bias)
        self.value_range = ValueRange(scale_rate)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rate, eps=eps, fused=True)
            for name, network, eps in (("critic", self.critics, 1e-8), ("prior", self.prior, 1e-5))
        }

    def sample(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.prior(latent).chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1.0)
        return squash(mean, log_std, torch.randn_like(mean))

    def value(self, latent: Tensor) -> Tensor:
        """Mean of two random critics for an action of the prior."""
        return self.critics.values(latent, self.sample(latent)[0], self.critics.draw(ASKED)).mean(0)

    @torch.no_grad()
    def target(self, latent: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """Reward plus the discounted minimum of two random target critics for an action of the prior."""
        values = self.target_critics.values(latent, self.sample(latent)[0], self.critics.draw(ASKED))
        return reward + self.gamma * ~terminated * values.amin(0)

    def value_loss(self, latent: Tensor, action: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Weighted cross-entropy, averaged over critics, batch and steps."""
        return (weight * self.critics.losses(self.critics(latent, action, drops=True), target)).mean()

    def prior_loss(self, latent: Tensor, weight: Tensor) -> PriorLoss:
        """Minus the value, divided by the range of values, and minus the weighted entropy."""
        action, log_prob = self.sample(latent)
        # The critics' dropout is on here, as in their own loss and in the published code.
        with constant_weights(self.critics):
            value = self.critics.values(latent, action, self.critics.draw(ASKED), drops=True).mean(0)  # [B, T, 1]
        self.value_range.update(value[:, 0])
        scale = self.value_range.average
        gain = (value / scale - self.entropy * log_prob).squeeze(-1)
        loss = -(weight * gain).mean()
        metrics = {"prior_loss": loss, "q": value.mean(), "value_range": scale, "entropy": -log_prob.mean()}
        return PriorLoss(loss, {name: metric.detach().clone() for name, metric in metrics.items()})

    def update_targets(self) -> None:
        soft_update(self.target_critics, self.critics, self.target_rate)
