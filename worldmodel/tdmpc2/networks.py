"""Networks of TD-MPC2's latent dynamics. *B batch shape, N images, C channels, R resolution, D latent width."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from worldmodel.linear import Linear
from worldmodel.tdmpc2.mish import Mish

CHANNELS = 32  # of each convolution
PUBLISHED = ((7, 2), (5, 2), (3, 2), (3, 1))  # kernel and stride of each convolution
SMALL = ((3, 2), (3, 2), (3, 2))  # the same, for images that are too small for PUBLISHED
PUBLISHED_SIDE, LEAST_SIDE = 39, 15  # smallest sides of images that leave a pixel after these convolutions


class SimNorm(nn.Module):
    """Softmax over each group of numbers: [*B, D] -> [*B, D], which bounds a latent state.

    Args:
        group: Size of a group, a divisor of D.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, values: Tensor) -> Tensor:
        # Over the last dimension torch's softmax on a CPU computes groups shorter than a vector one by one.
        groups = values.unflatten(-1, (-1, self.group)).movedim(-1, 0).contiguous()
        return groups.softmax(0).movedim(0, -1).flatten(-2)


def normed(width_in: int, width_out: int, activation: nn.Module) -> nn.Sequential:
    """Linear, LayerNorm, activation."""
    return nn.Sequential(Linear(width_in, width_out), nn.LayerNorm(width_out), activation)


def hidden_layers(sizes: Sequence[int]) -> list[nn.Module]:
    """A `normed` layer with Mish from each size to the next."""
    return [normed(*pair, Mish()) for pair in pairwise(sizes)]


class StateEncoder(nn.Module):
    """States [*B, S] -> latent states [*B, D]."""

    def __init__(self, state_size: int, width: int, latent: int, simnorm: SimNorm) -> None:
        super().__init__()
        self.layers = nn.Sequential(*hidden_layers((state_size, width)), normed(width, latent, simnorm))

    def forward(self, state: Tensor) -> Tensor:
        encoded: Tensor = self.layers(state)
        return encoded


class PixelEncoder(nn.Module):
    """Stacked frames [*B, C, R, R], 0 to 255, and vectors [*B, V] -> latent states [*B, D].

    The layers are those of the published code (Hansen et al. 2024, common/layers.py): convolutions with ReLU between
    them, whose normalised output is the latent state. This requires D outputs of the convolutions: 512 at 64 pixels.
    With another D, or with vectors, a ReLU, a linear layer and a LayerNorm come before the normalisation. Frames of
    less than 39 pixels, for which the published kernels are too large, have three convolutions of 3 x 3.

    Args:
        shape: (C, R, R).
        vectors: V, width of the vector that is read beside the frames, such as the one-hot of the task.
        latent: D.
        simnorm: Normalises the latent states.

    Raises:
        ValueError: The frames are too small for the convolutions.
    """

    def __init__(self, shape: Sequence[int], vectors: int, latent: int, simnorm: SimNorm) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] < LEAST_SIDE:
            raise ValueError(
                f"tdmpc2 needs square frames of at least {LEAST_SIDE} pixels, not {list(shape)}: set env.resolution"
            )
        self.shape = tuple(shape)
        layers: list[nn.Module] = []
        channels, side = shape[0], shape[1]
        large = side >= PUBLISHED_SIDE
        for kernel, stride in PUBLISHED if large else SMALL:
            layers += [nn.Conv2d(channels, CHANNELS, kernel, stride), nn.ReLU()]
            channels, side = CHANNELS, (side - kernel) // stride + 1
        features = CHANNELS * side**2
        published = large and features == latent and not vectors
        layers = layers[:-1] if published else layers  # The last published convolution has no ReLU.
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = simnorm if published else normed(features + vectors, latent, simnorm)

    def forward(self, frames: Tensor, *vectors: Tensor) -> Tensor:
        pictures = frames.reshape(-1, *self.shape).to(torch.float32, memory_format=torch.channels_last, copy=True)
        features = self.convolutions(pictures.div_(255).sub_(0.5))
        encoded: Tensor = self.head(torch.cat((features.flatten(1).reshape(*frames.shape[:-3], -1), *vectors), -1))
        return encoded


def normal_init(module: nn.Module, std: float = 0.02) -> None:
    """Normal weights and zero biases in all linear layers."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
