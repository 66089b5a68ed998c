"""Behaviour cloning: a policy that imitates demonstrations, and the imitation term of other actors' losses.

B batch, K frames stacked, R resolution, S state, A action.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite, TensorSpec

from policies.base import Policy, gradient_step, require_finite
from policies.networks import RunningNorm, frames_encoder, mlp, random_shift, trunk
from policies.ranges import LearningRate, Padding, Pixels, Width
from policies.specs import action_size, pixel_keys, state_size

# Smallest standard deviation of a number in `state`, in its own unit (metres): some barely vary in a few
# demonstrations, and vary more later.
MIN_STD = 0.01


def imitation(action: Tensor, batch: TensorDictBase, value: Tensor) -> Tensor:
    """Imitation term of an actor's loss -Q: weight · |Q| · squared error, averaged over the rows with a weight.

    The factor |Q|, a mean over the batch, makes the weight independent of the reward scale. TD3+BC (Fujimoto and Gu
    2021, arXiv 2106.06860) scales Q instead, and its α is 1 / weight.

    Args:
        action: the actor's actions, [B, A].
        batch: `imitated`, or else `action`, [B, A], and `cloning` [B, 1], the weight of a row; 0 for rows that are not
            imitated.
        value: the critics' values of the actor's actions, [B, 1].

    Returns:
        0-d.
    """
    weight = batch["cloning"]
    imitated = batch["imitated"] if "imitated" in batch.keys() else batch["action"]
    error = (action.float() - imitated).square().mean(-1, keepdim=True)
    return (weight * error).sum() / (weight > 0).sum().clamp(min=1) * value.detach().abs().mean()


class Imitator(nn.Module):
    """Encoder and head: observation -> action [*B, A] in [-1, 1]."""

    def __init__(self, encoder: nn.Module, *head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Sequential(*head, nn.Tanh())

    def forward(self, *observed: Tensor) -> Tensor:
        action: Tensor = self.head(self.encoder(*observed))
        return action


class BehaviourCloning(Policy):
    """A deterministic actor that minimises the squared error to demonstrated actions.

    It reads `frames`, with random shifts in training, if the environment has them; else normalised `state`.

    Args:
        observation_spec: has `frames` uint8 [3K, R, R], with `task` [N] for several tasks; or `state` [S].
        action_spec: bounded to [-1, 1], [A].
        encoder_channels: see `ConvEncoder`.
        encoder_strides: see `ConvEncoder`.
        kernel_size: see `ConvEncoder`.
        feature_size: width of the trunk between encoder and head.
        hidden_size: width of the two hidden layers.
        learning_rate: learning rate of Adam.
        shift_pad: largest random shift, in pixels.
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        encoder_channels: Sequence[Width],
        encoder_strides: Sequence[Pixels],
        kernel_size: Pixels,
        feature_size: Width,
        hidden_size: Width,
        learning_rate: LearningRate,
        shift_pad: Padding,
    ) -> None:
        super().__init__()
        self.keys = pixel_keys(observation_spec) if "frames" in observation_spec.keys() else ["state"]
        actions = action_size(action_spec, "bc")
        self.normalizer, self.shift_pad = None, shift_pad
        if self.keys == ["state"]:
            size = state_size(observation_spec, "bc")
            self.normalizer = RunningNorm(size, min_std=MIN_STD)
            self.net = Imitator(self.normalizer, mlp((size, hidden_size, hidden_size, actions), layer_norm=True))
        else:
            encoder = frames_encoder(observation_spec, "bc", encoder_channels, encoder_strides, kernel_size)
            head = mlp((feature_size, hidden_size, hidden_size, actions))
            self.net = Imitator(encoder, trunk(encoder.out_features, feature_size), head)
        self.actor = TensorDictModule(self.net, in_keys=self.keys, out_keys=["action"])
        self.optimizers = {"actor": torch.optim.Adam(self.net.parameters(), lr=learning_rate, fused=True)}

    def clone(self, batch: TensorDictBase, weight: float = 1.0) -> dict[str, Tensor]:
        observed, *vectors = (batch[key] for key in self.keys)
        if self.normalizer is not None:
            self.normalizer.observe(observed)
        else:
            observed = random_shift(observed, self.shift_pad)
        loss = F.mse_loss(self.net(observed, *vectors), batch["action"])
        require_finite({"cloning_loss": loss})
        gradient_step(weight * loss, [self.optimizers["actor"]])
        return {"cloning_loss": loss.detach()}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Does nothing: this policy learns from demonstrations alone."""
        return {}
