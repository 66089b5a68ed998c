"""Deterministic actor from frames or a world model's embedding of them, with Gaussian exploration noise.

K frames stacked, R resolution, D encoder features, F trunk features, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from policies.base import exploring
from policies.networks import ConvEncoder, bounded, mlp, random_shift, trunk

Squash = Literal["tanh", "inverted_gradients"]


def noisy(mean: Tensor, std: Tensor, clip: float | None) -> Tensor:
    """Add noise std * N(0, 1), clipped to ±`clip`, to `mean`, and clip the sum to [-1, 1].

    The gradient is straight-through to `mean`, also if the sum was clipped.
    """
    noise = torch.randn_like(mean) * std
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    with torch.no_grad():
        excess = (mean + noise).clamp(-1.0, 1.0) - (mean + noise)
    return mean + noise + excess


class NoiseSchedule(NamedTuple):
    """Standard deviation that decreases linearly from `start` to `end` over `env_steps`, then is constant."""

    start: float
    end: float
    env_steps: int


class VectorEncoder(nn.Sequential):
    """Encoder of a vector [*B, D], instead of `ConvEncoder`: one hidden layer with ReLU, or the identity."""

    def __init__(self, size: int, hidden: int | None) -> None:
        super().__init__(*([] if hidden is None else [mlp((size, hidden)), nn.ReLU()]))
        self.out_features = hidden or size


class FramesActor(TensorDictModuleBase):
    """Writes `action` [*B, A], with noise while exploring.

    Reads `keys`: `frames` [*B, 3K, R, R] and, in an environment of several tasks, `task` [*B, N].
    """

    env_steps: Tensor

    def __init__(
        self,
        encoder: ConvEncoder | VectorEncoder,
        keys: list[str],
        actions: int,
        *,
        feature_size: int,
        hidden_size: int,
        noise: NoiseSchedule,
        squash: Squash,
    ) -> None:
        super().__init__()
        self.in_keys, self.out_keys = keys, ["action"]
        self.noise, self.encoder = noise, encoder
        squashes: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "inverted_gradients": bounded}
        self.squash = squashes[squash]
        self.trunk = trunk(encoder.out_features, feature_size)
        self.head = mlp((feature_size, hidden_size, hidden_size, actions))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self.max_std: float | None = None  # see Policy.limited_noise

    def std(self) -> Tensor:
        """Current standard deviation of the noise, 0-d."""
        start, end, env_steps = self.noise
        std = start + (end - start) * (self.env_steps / env_steps).clamp(max=1.0)
        return std if self.max_std is None else std.clamp(max=self.max_std)

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the actor's loss trains: trunk and head, as the critics' loss alone trains the encoder."""
        return chain(self.trunk.parameters(), self.head.parameters())

    def encode(self, observed: TensorDictBase, shift_pad: int = 0) -> Tensor:
        """Features [*B, D] of observations, with frames shifted at random by up to `shift_pad` pixels."""
        frames, *vectors = (observed[key] for key in self.in_keys)
        if isinstance(self.encoder, VectorEncoder):
            return self.encoder(frames)
        return self.encoder(random_shift(frames, shift_pad) if shift_pad else frames, *vectors)

    def mean(self, features: Tensor) -> Tensor:
        """Mean action [*B, A] in [-1, 1] from features [*B, D]."""
        return self.squash(self.head(self.trunk(features)))

    def act(self, features: Tensor) -> Tensor:
        """Action [*B, A] from features [*B, D], with noise while exploring."""
        mean = self.mean(features)
        return noisy(mean, self.std(), clip=None) if exploring() else mean

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", self.act(self.encode(tensordict)))
