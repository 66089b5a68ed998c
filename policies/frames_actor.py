"""A deterministic actor that reads frames, or a world model's embedding of them, and explores with Gaussian noise.

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
    """mean + std * N(0, 1), the noise clipped to ±`clip` and the sum to [-1, 1].

    The gradient passes straight to `mean`, also where the sum was clipped.
    """
    noise = torch.randn_like(mean) * std
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    with torch.no_grad():
        excess = (mean + noise).clamp(-1.0, 1.0) - (mean + noise)
    return mean + noise + excess


class NoiseSchedule(NamedTuple):
    """A standard deviation that falls linearly from `start` to `end` over `env_steps`, then stays."""

    start: float
    end: float
    env_steps: int


class VectorEncoder(nn.Sequential):
    """Encoder of a vector [*B, D], in place of `ConvEncoder`: one hidden layer with ReLU, or the identity if None."""

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
        """Parameters that the actor's loss trains: trunk and head. The encoder learns from the critics' loss alone."""
        return chain(self.trunk.parameters(), self.head.parameters())

    def encode(self, observed: TensorDictBase, shift_pad: int = 0) -> Tensor:
        """Observation, its frames shifted at random by up to `shift_pad` pixels -> features [*B, D]."""
        frames, *vectors = (observed[key] for key in self.in_keys)
        if isinstance(self.encoder, VectorEncoder):
            return self.encoder(frames)
        return self.encoder(random_shift(frames, shift_pad) if shift_pad else frames, *vectors)

    def mean(self, features: Tensor) -> Tensor:
        """Features [*B, D] -> mean action [*B, A] in [-1, 1]."""
        return self.squash(self.head(self.trunk(features)))

    def act(self, features: Tensor) -> Tensor:
        """Features [*B, D] -> action [*B, A], with noise while exploring."""
        mean = self.mean(features)
        return noisy(mean, self.std(), clip=None) if exploring() else mean

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", self.act(self.encode(tensordict)))
