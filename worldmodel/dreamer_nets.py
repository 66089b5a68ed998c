"""The networks around DreamerV3's recurrence (Hafner et al. 2023, arXiv 2301.04104): what reads and draws observations.

B batch (any leading shape), R resolution, E embedding, F features of a latent state.

TorchRL's MLP is used as it is. Its picture networks are not: they stride where the paper pools and upsamples, and draw
unbounded pixels where the paper ends in a sigmoid.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import DreamerV3MLP
from torchrl.modules.functional import symlog

NORM_EPS = 1e-4
MULTIPLIERS = (2, 3, 4, 4)  # of the base width, from the largest picture to the smallest
KERNEL = 5


def scaled_init(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Truncated normal of standard deviation scale / sqrt(fan_in), as all weights of DreamerV3 begin."""
    std = 1.1368 * scale / fan_in**0.5  # a normal that is cut at two deviations has 1 / 1.1368 of its deviation
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(width_in: int, width_out: int, *, bias: bool = True, fan_in: int | None = None) -> nn.Linear:
    """A linear layer with DreamerV3's initial weights; `fan_in` where it is a part of a wider one."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    scaled_init(layer.weight, fan_in or width_in)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ChannelNorm(nn.RMSNorm):
    """RMS norm over the channels of maps [B, C, H, W] that are stored channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels_in, channels_out, KERNEL, padding="same")
    scaled_init(layer.weight, channels_in * KERNEL**2)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class PixelEncoder(nn.Module):
    """pixels uint8 [*B, 3, R, R] -> embedding [*B, E]: convolutions, each with a 2×2 maximum, RMS norm and SiLU."""

    def __init__(self, resolution: int, depth: int) -> None:
        super().__init__()
        side = smallest_side(resolution)
        widths = [depth * factor for factor in MULTIPLIERS]
        self.convolutions = nn.ModuleList(_convolution(*pair) for pair in pairwise((3, *widths)))
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        self.out_features = widths[-1] * side**2

    def forward(self, pixels: Tensor) -> Tensor:
        maps = pixels.reshape(-1, *pixels.shape[-3:]).to(torch.float32, memory_format=torch.channels_last) / 255 - 0.5
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = F.silu(norm(F.max_pool2d(convolution(maps), 2)))
        return maps.permute(0, 2, 3, 1).reshape(*pixels.shape[:-3], self.out_features)


class PixelDecoder(nn.Module):
    """features [*B, F] -> pixels in (0, 1), [*B, 3, R, R]: upsampling, each time with a convolution, at last a sigmoid."""

    def __init__(self, features: int, resolution: int, depth: int, units: int) -> None:
        super().__init__()
        self.side = smallest_side(resolution)
        widths = [depth * factor for factor in reversed(MULTIPLIERS)]
        self.width = widths[0]
        self.hidden = DreamerV3MLP(features, None, depth=1, num_cells=2 * units, norm_eps=NORM_EPS)
        self.first = linear(2 * units, self.width * self.side**2)
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        self.convolutions = nn.ModuleList(_convolution(*pair) for pair in pairwise((*widths, 3)))

    def forward(self, features: Tensor) -> Tensor:
        flat = self.first(self.hidden(features.reshape(-1, features.shape[-1])))
        maps = flat.reshape(-1, self.side, self.side, self.width).permute(0, 3, 1, 2)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            maps = convolution(F.interpolate(F.silu(norm(maps)), scale_factor=2))
        return torch.sigmoid(maps).reshape(*features.shape[:-1], *maps.shape[1:])


def smallest_side(resolution: int) -> int:
    """Side of the smallest maps; a clear ValueError where the picture cannot be halved so often."""
    factor = 2 ** len(MULTIPLIERS)
    if resolution % factor:
        raise ValueError(f"the RSSM halves pictures {len(MULTIPLIERS)} times: env.resolution {resolution} is no multiple of {factor}")
    return resolution // factor


class StateEncoder(nn.Module):
    """state [*B, S] -> embedding [*B, E]: an MLP on symlog values."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.layers = DreamerV3MLP(width, None, depth=3, num_cells=units, norm_eps=NORM_EPS)
        self.out_features = units

    def forward(self, state: Tensor) -> Tensor:
        embedding: Tensor = self.layers(symlog(state))
        return embedding
