"""Behaviour cloning: a policy that imitates demonstrations, and the term by which others keep to them.

B batch, K frames stacked, R resolution, S state, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F

from policies.base import Policy, require_finite
from policies.networks import ConvEncoder, mlp, random_shift, trunk

if TYPE_CHECKING:  # only for types: importing torchrl takes seconds
    from torchrl.data import Composite, TensorSpec


def imitation(mean: Tensor, batch: TensorDictBase, value: Tensor) -> Tensor:
    """What imitation adds to an actor's loss -Q, 0-d: weight · |Q| · squared error, a mean over the demonstrated rows.

    The factor |Q|, the batch's mean, lets a weight mean the same at any scale of rewards; the other way round it is
    TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860), whose α is 1 / weight.

    Args:
        mean: the actor's actions [B, A] without noise. value: what the critics say of the actor, [B, 1].
        batch: `action` [B, A] and `cloning` [B, 1], a row's weight: 0 where it was not demonstrated.
    """
    weight = batch["cloning"]
    error = (mean.float() - batch["action"]).square().mean(-1, keepdim=True)
    return (weight * error).sum() / (weight > 0).sum().clamp(min=1) * value.detach().abs().mean()


class InputNorm(nn.Module):
    """Centres and scales vectors by the mean and the standard deviation of all that it was shown.

    Entries that hardly vary are scaled as if they did by `least`: what they do beyond the data must not be blown up.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int, least: float = 0.01) -> None:
        super().__init__()
        self.least = least
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.zeros(size))

    def show(self, rows: Tensor) -> None:
        """Take rows [B, S] into the statistics (Chan's parallel update)."""
        share = (len(rows) / (self.count + len(rows))).float()
        difference = rows.mean(0) - self.mean
        self.variance.lerp_(rows.var(0, unbiased=False), share).add_(difference.square() * share * (1 - share))
        self.mean.add_(difference * share)
        self.count.add_(len(rows))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.variance.sqrt().clamp(min=self.least)


class BehaviourCloning(Policy):
    """A deterministic actor that learns the demonstrated action by squared error, and from nothing else.

    From `frames` where the environment draws them, under random shifts; else from `state`, normalised.

    Args:
        observation_spec: holds `frames` uint8 [3K, R, R] or `state` float32 [S].
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
        given = [str(key) for key in observation_spec.keys()]
        self.key = "frames" if "frames" in given else "state"
        if self.key not in given:
            raise ValueError(f"bc imitates from frames or state, and the environment gives {', '.join(given)}")
        shape, actions = observation_spec[self.key].shape, action_spec.shape[-1]
        self.norm = InputNorm(shape[-1]) if self.key == "state" else None
        if self.norm is not None:
            body: list[nn.Module] = [self.norm, mlp((shape[-1], hidden_size, hidden_size, actions), layer_norm=True)]
        else:
            encoder = ConvEncoder(
                shape[-3], shape[-1], channels=encoder_channels, strides=encoder_strides, kernel_size=kernel_size
            )
            head = mlp((feature_size, hidden_size, hidden_size, actions))
            body = [encoder, trunk(encoder.out_features, feature_size), head]
        self.net = nn.Sequential(*body, nn.Tanh())
        self.shift_pad = shift_pad
        self.actor = TensorDictModule(self.net, in_keys=[self.key], out_keys=["action"])
        self.optimizers = {"actor": torch.optim.Adam(self.net.parameters(), lr=learning_rate, fused=True)}

    def clone(self, batch: TensorDictBase) -> dict[str, Tensor]:
        seen = batch[self.key]
        if self.norm is not None:
            self.norm.show(seen)
        else:
            seen = random_shift(seen, self.shift_pad)
        loss = F.mse_loss(self.net(seen), batch["action"])
        require_finite({"cloning_loss": loss})
        self.optimizers["actor"].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers["actor"].step()
        return {"cloning_loss": loss.detach()}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Nothing: what it collects is not learned from."""
        return {}
