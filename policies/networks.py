"""Building blocks of actors and critics: encoders, random shifts, MLPs, initial weights, target networks.

B batch, C channels, R resolution, D encoder features, F trunk features, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.data import Composite

from policies.linear import Linear
from policies.ranges import Scale, Width
from policies.specs import frames_shape, task_size


class ConvEncoder(nn.Module):
    """Unpadded convolutions with ReLU on pixels / 255 - 0.5; the feature map is flattened.

    `channels=(32, 32, 32, 32), strides=(2, 1, 1, 1)` is the encoder of DrQ-v2 (Yarats et al. 2021,
    arXiv 2107.09645): 20000 features at 64 px. `(16, 32, 64), (2, 2, 2)` needs a seventh of its
    multiplications: 3136 features.

    Activations are channels-last, which is faster on CPUs and tensor cores; so features are ordered
    (row, column, channel).

    Args:
        in_channels: C.
        resolution: R in pixels.
        channels: width of each convolution.
        strides: stride of each convolution.
        kernel_size: side of the kernels, in pixels.
        extra_features: width of the vectors that are appended to the features, such as the one-hot of the task.
    """

    def __init__(
        self,
        in_channels: int,
        resolution: int,
        *,
        channels: Sequence[int] = (32, 32, 32, 32),
        strides: Sequence[int] = (2, 1, 1, 1),
        kernel_size: int = 3,
        extra_features: int = 0,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ValueError(f"encoder: {len(strides)} strides, {len(channels)} channels; give one for each")
        self.in_shape = (in_channels, resolution, resolution)
        self.map_features = channels[-1] * map_size(resolution, strides, kernel_size) ** 2
        self.out_features = self.map_features + extra_features
        layers: list[nn.Module] = []
        for widths, stride in zip(pairwise((in_channels, *channels)), strides, strict=True):
            layers += [nn.Conv2d(*widths, kernel_size, stride), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        orthogonal_init(self)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor, *vectors: Tensor) -> Tensor:
        """Features float32 [*B, D] of `frames` [*B, C, R, R], uint8 or float in 0..255, and vectors [*B, N]."""
        if frames.shape[-3:] != self.in_shape:
            raise ValueError(f"encoder: built for frames {self.in_shape}, got {tuple(frames.shape[-3:])}")
        pixels = frames.reshape(-1, *self.in_shape).to(torch.float32, memory_format=torch.channels_last, copy=True)
        features: Tensor = self.layers(pixels.div_(255.0).sub_(0.5))  # [B, C', R', R']; pixels are a copy
        features = features.permute(0, 2, 3, 1).reshape(*frames.shape[:-3], self.map_features)
        return torch.cat((features, *vectors), -1) if vectors else features


def frames_encoder(
    observation_spec: Composite, policy: str, channels: Sequence[int], strides: Sequence[int], kernel_size: int
) -> ConvEncoder:
    """Make the encoder of `frames`, and of `task` in an environment of several tasks."""
    return ConvEncoder(
        *frames_shape(observation_spec, policy),
        channels=channels,
        strides=strides,
        kernel_size=kernel_size,
        extra_features=task_size(observation_spec),
    )


def map_size(resolution: int, strides: Sequence[int], kernel_size: int) -> int:
    """Side of the feature map after unpadded convolutions of `resolution` pixels."""
    size = resolution
    for stride in strides:
        size = (size - kernel_size) // stride + 1
        if size < 1:
            raise ValueError(f"encoder: {resolution} px is too small for strides {list(strides)}: use fewer")
    return size


def shift(frames: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image, repeating the border: pixel (i, j) is taken from (i + down[b], j + right[b]).

    Shifts by whole pixels need no interpolation: gathering uint8 equals `grid_sample` on floats, and is several times
    faster.

    Args:
        frames: [B, C, R, R], any dtype.
        down: int64 [B], shift in pixels along rows.
        right: int64 [B], shift in pixels along columns.

    Returns:
        [B, C, R, R] of the same dtype, stored channels-last.
    """
    rows, channels, height, width = frames.shape
    device = frames.device
    row = (torch.arange(height, device=device) + down[:, None]).clamp_(0, height - 1)  # [B, R]
    column = (torch.arange(width, device=device) + right[:, None]).clamp_(0, width - 1)  # [B, R]
    image = torch.arange(rows, device=device)[:, None, None] * (height * width)
    source = (image + row[:, :, None] * width + column[:, None, :]).reshape(-1)  # [B R R]
    # A row holds all channels of a pixel, so index_select copies contiguous bytes.
    pixels = frames.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, source)
    return pixels.view(rows, height, width, channels).permute(0, 3, 1, 2)


def random_shift(frames: Tensor, pad: int) -> Tensor:
    """Shift each image of [B, C, R, R] by up to `pad` pixels in each direction, uniformly and independently."""
    offsets = torch.randint(-pad, pad + 1, (2, frames.shape[0]), device=frames.device)
    return shift(frames, offsets[0], offsets[1])


def mlp(sizes: Sequence[int], *, layer_norm: bool = False) -> nn.Sequential:
    """Linear layers `sizes[0] -> ... -> sizes[-1]` with ReLU in between; orthogonal weights, zero biases.

    `layer_norm` adds a LayerNorm before each ReLU. It bounds the extrapolation of values to actions outside the data,
    so that critics stay stable with many updates per step (RLPD, arXiv 2302.02948; BRO, arXiv 2405.16158).
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes[:-1]):
        layers.append(Linear(width_in, width_out))
        layers += [nn.LayerNorm(width_out), nn.ReLU()] if layer_norm else [nn.ReLU()]
    network = nn.Sequential(*layers, Linear(sizes[-2], sizes[-1]))
    orthogonal_init(network)
    return network


def perceptron(
    in_size: int, out_size: int, *, hidden_sizes: Sequence[Width] = (256, 256), layer_norm: bool = False
) -> nn.Sequential:
    """`mlp` whose hidden sizes are set by a configuration, and its input and output sizes by the caller."""
    return mlp((in_size, *hidden_sizes, out_size), layer_norm=layer_norm)


def trunk(encoded_size: int, feature_size: int) -> nn.Sequential:
    """Bottleneck between encoder and heads: [*B, D] -> [*B, F] in (-1, 1)."""
    return nn.Sequential(mlp((encoded_size, feature_size)), nn.LayerNorm(feature_size), nn.Tanh())


class TwinCritic(nn.Module):
    """Two value heads on one trunk: features [B, D], action [B, A] -> [2, B, 1]."""

    def __init__(
        self, encoded_size: int, action_size: int, *, feature_size: int, hidden_size: int, layer_norm: bool
    ) -> None:
        super().__init__()
        sizes = (feature_size + action_size, hidden_size, hidden_size, 1)
        self.trunk = trunk(encoded_size, feature_size)
        self.heads = nn.ModuleList(mlp(sizes, layer_norm=layer_norm) for _ in range(2))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        both = torch.cat((self.trunk(features), action), dim=-1)
        # One batched product for both heads is not faster (1 thread, B 128, width 1024: 20.0 ms either way).
        return torch.stack([head(both) for head in self.heads])


class Critics(nn.Module):
    """N independent networks of one kind: features [B, D], action [B, A] -> values [N, B, 1].

    Args:
        network: called with the sizes of input and output.
        in_size: D + A.
        count: N, 1 or more.
        scale: factor of the networks' outputs, the order of magnitude of the values. Adam changes a weight by about the
            learning rate per step, so values in the hundreds would otherwise take thousands of steps.
    """

    def __init__(
        self, network: Callable[[int, int], nn.Module], in_size: int, count: int, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.networks = nn.ModuleList(network(in_size, 1) for _ in range(count))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        both = torch.cat((features, action), dim=-1)
        # Batched products took 1.3 times as long, forward and backward (1 thread, B 256, width 256).
        return torch.stack([network(both) for network in self.networks]) * self.scale


class RunningNorm(nn.Module):
    """Standardises each number: (x - mean) / std, with the mean and variance of all rows so far.

    Args:
        size: S, numbers in a row.
        min_std: smallest standard deviation to divide by, so that nearly constant numbers are not amplified.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, *, min_std: Scale = 1e-3) -> None:
        super().__init__()
        self.min_std = min_std
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def observe(self, rows: Tensor, left_out: Tensor | None = None) -> None:
        """Update mean and variance with rows [B, S] (Chan et al. 1979, updating formulae for the sample variance).

        Args:
            rows: [B, S].
            left_out: bool [B, 1], rows to ignore, not all of them; None: all rows count.
        """
        count: int | Tensor = len(rows)
        if left_out is None:
            variance, mean = torch.var_mean(rows, dim=0, correction=0)
        else:  # by weights: an index by a mask would wait for the GPU
            count = (~left_out).sum()
            weights = ~left_out / count
            mean = (weights * rows).sum(0)
            variance = (weights * (rows - mean).square()).sum(0)
        self.count += count
        share = (count / self.count).float()
        delta = mean - self.mean
        self.mean += share * delta
        self.variance.lerp_(variance, share).add_(share * (1 - share) * delta.square())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.variance.sqrt().clamp(min=self.min_std)


class _InvertedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        return output.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradient * torch.where(gradient < 0, 1.0 - output, 1.0 + output) / 2.0


def bounded(output: Tensor) -> Tensor:
    """Clip outputs of any shape to [-1, 1], with inverted gradients (Hausknecht and Stone 2016, arXiv 1511.04143).

    The gradient is scaled by half the distance to the bound in its direction: a step outwards is small near the bound
    and reversed beyond it, while a step inwards keeps its full size. The gradient of tanh vanishes in both directions.
    """
    bounded: Tensor = _InvertedGradients.apply(output)
    return bounded


def orthogonal_init(module: nn.Module) -> None:
    """Initialise all submodules: orthogonal weights (gain sqrt 2 for convolutions, 1 for linear), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            gain = nn.init.calculate_gain("relu") if isinstance(part, nn.Conv2d) else 1.0
            nn.init.orthogonal_(part.weight, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


@contextmanager
def constant_weights(module: nn.Module) -> Iterator[None]:
    """Context in which losses have no gradients with respect to the module's weights.

    `backward(inputs=...)` alone discards them only after `Linear` has computed them: 7 % of an update of SAC.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def soft_update(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Update the parameters of `target` in place: target += rate (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
