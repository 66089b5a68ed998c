"""Behaviour cloning: a policy that imitates demonstrations, and the term by which others keep to them.

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

from policies.base import Policy, require_finite
from policies.networks import RunningNorm, frames_encoder, mlp, random_shift, trunk
from policies.specs import action_size, looks_at, state_size

# of a number in `state`, in its own unit (metres): a few demonstrations hardly vary some, and others do later
MIN_STD = 0.01


def imitation(action: Tensor, batch: TensorDictBase, value: Tensor) -> Tensor:
    """What imitation adds to an actor's loss -Q, 0-d: weight · |Q| · squared error, a mean over the demonstrated rows.

    The factor |Q|, the batch's mean, lets a weight mean the same at any scale of rewards; the other way round it is
    TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860), whose α is 1 / weight.

    Args:
        action: what the actor does, [B, A]. value: what the critics say of the actor, [B, 1].
        batch: `action` [B, A] and `cloning` [B, 1], a row's weight: 0 where it was not demonstrated.
    """
    weight = batch["cloning"]
    error = (action.float() - batch["action"]).square().mean(-1, keepdim=True)
    return (weight * error).sum() / (weight > 0).sum().clamp(min=1) * value.detach().abs().mean()


class Imitator(nn.Module):
    """What is observed -> action [*B, A] in [-1, 1], through an encoder and a head."""

    def __init__(self, encoder: nn.Module, *head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Sequential(*head, nn.Tanh())

    def forward(self, *observed: Tensor) -> Tensor:
        action: Tensor = self.head(self.encoder(*observed))
        return action


class BehaviourCloning(Policy):
    """A deterministic actor that learns the demonstrated action by squared error, and from nothing else.

    From `frames` where the environment draws them, under random shifts; else from `state`, normalised.

    Args:
        observation_spec: holds `frames` uint8 [3K, R, R], and `task` [N] where there are several; or `state` [S].
        action_spec: bounded to [-1, 1], [A].
        encoder_channels, encoder_strides, kernel_size: see `ConvEncoder`. feature_size: width of the trunk.
        hidden_size: width of the two hidden layers.
        learning_rate: Adam. shift_pad: random shifts of up to this many pixels.
    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        kernel_size: int,
        feature_size: int,
        hidden_size: int,
        learning_rate: float,
        shift_pad: int,
    ) -> None:
        super().__init__()
        self.keys = looks_at(observation_spec) if "frames" in observation_spec.keys() else ["state"]
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
        seen, *beside = (batch[key] for key in self.keys)
        if self.normalizer is not None:
            self.normalizer.observe(seen)
        else:
            seen = random_shift(seen, self.shift_pad)
        loss = F.mse_loss(self.net(seen, *beside), batch["action"])
        require_finite({"cloning_loss": loss})
        self.optimizers["actor"].zero_grad(set_to_none=True)
        (weight * loss).backward()
        self.optimizers["actor"].step()
        return {"cloning_loss": loss.detach()}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Nothing: what it collects is not learned from."""
        return {}
