"""Encoders and decoders of DreamerV3 (Hafner et al. 2023, arXiv 2301.04104).

B batch (any leading shape), R resolution, C channels, E embedding, F features of a latent state.

TorchRL's MLP is used with our linear layers, and its image encoder unchanged. The encoder uses strided convolutions;
the published code pools by default and has strides as an option, which take a fifth of the time on a CPU. TorchRL's
image decoder is not used: it has transposed convolutions and unbounded pixels, DreamerV3 upsampling and a sigmoid.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import DreamerV3ImageEncoder, DreamerV3MLP

from worldmodel.linear import Linear

NORM_EPS = 1e-4
MULTIPLIERS = (2, 3, 4, 4)  # of the base width, from the largest maps to the smallest
KERNEL = 5


def scaled_init(weight: Tensor, fan_in: int) -> None:
    """Initialise with a truncated normal of standard deviation 1 / sqrt(fan_in), as in DreamerV3."""
    std = 1.1368 / fan_in**0.5  # truncation at two deviations divides the deviation by 1.1368
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(width_in: int, width_out: int, *, bias: bool = True, fan_in: int | None = None) -> nn.Linear:
    """Linear layer with DreamerV3's initial weights; `fan_in` if it is a part of a wider layer."""
    layer = Linear(width_in, width_out, bias=bias)
    scaled_init(layer.weight, fan_in or width_in)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(width_in: int, width_out: int | None, *, depth: int, units: int, outscale: float = 1.0) -> DreamerV3MLP:
    """TorchRL's MLP with our linear layers; names and initial weights are unchanged."""
    network = DreamerV3MLP(width_in, width_out, depth=depth, num_cells=units, outscale=outscale, norm_eps=NORM_EPS)
    for layer in network.model:
        if isinstance(layer, nn.Linear):
            layer.__class__ = Linear  # adds a method only
    return network


def norms_in_float32(module: nn.Module) -> None:
    """Cast the inputs of all RMS norms of a module to float32, which autocast does not do."""
    for part in module.modules():
        if isinstance(part, nn.RMSNorm):
            part.register_forward_pre_hook(_as_float32)


def _as_float32(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].float(),)


class PixelEncoder(nn.Module):
    """Strided convolutions with RMS norm and SiLU: images [N, 3, R, R] in [0, 1] -> embeddings [N, E]."""

    def __init__(self, resolution: int, depth: int) -> None:
        super().__init__()
        self.layers = DreamerV3ImageEncoder(depth=depth, mults=MULTIPLIERS, kernel_size=KERNEL, norm_eps=NORM_EPS)
        self.layers.to(memory_format=torch.channels_last)
        self.out_features = MULTIPLIERS[-1] * depth * smallest_side(resolution) ** 2

    def forward(self, pictures: Tensor) -> Tensor:
        embedding: Tensor = self.layers(pictures)
        return embedding


class Upconvolution(nn.Module):
    """Nearest upsampling by 2 and a 5×5 convolution in one: maps [N, C, S, S] -> [N, C', 2 S, 2 S].

    Each small pixel becomes a cell of four upsampled pixels, and several of the 5×5 pixels under the kernel are copies
    of one small pixel. So the kernel is folded into four kernels of 3×3, one for each place in the cell, which are
    convolved with the small maps. The result is the same, in a fifth of the time.
    """

    fold: Tensor

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(channels_out, 1, 1))
        scaled_init(self.weight, channels_in * KERNEL**2)
        # [place in the cell, row of the 3×3, row of the 5×5]
        upper = [[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
        lower = [[1.0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
        self.register_buffer("fold", torch.tensor([upper, lower]), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        folded = torch.einsum("oiuv,yru,xsv->oyxirs", self.weight, self.fold, self.fold).flatten(0, 2)
        return F.pixel_shuffle(F.conv2d(maps, folded, padding=1), 2) + self.bias


class PixelDecoder(nn.Module):
    """Upconvolutions after RMS norm and SiLU, then a sigmoid: features [N, F] -> images [N, 3, R, R] in (0, 1)."""

    def __init__(self, features: int, resolution: int, depth: int, units: int) -> None:
        super().__init__()
        side, widths = smallest_side(resolution), [depth * factor for factor in reversed(MULTIPLIERS)]
        self.shape = (side, side, widths[0])
        self.hidden = mlp(features, None, depth=1, units=2 * units)
        self.first = linear(2 * units, widths[0] * side**2)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=NORM_EPS) for width in widths)
        self.upconvolutions = nn.ModuleList(Upconvolution(*pair) for pair in pairwise((*widths, 3)))

    def forward(self, features: Tensor) -> Tensor:
        maps = self.first(self.hidden(features)).unflatten(-1, self.shape).permute(0, 3, 1, 2)  # channels-last
        for norm, upconvolution in zip(self.norms, self.upconvolutions, strict=True):
            normed = norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over the channels
            maps = upconvolution(F.silu(normed))
        return torch.sigmoid(maps.float())


def smallest_side(resolution: int) -> int:
    """Side of the smallest maps; raises ValueError if the image cannot be halved so often."""
    factor = 2 ** len(MULTIPLIERS)
    if resolution % factor:
        raise ValueError(f"the RSSM halves images: env.resolution {resolution} is no multiple of {factor}")
    return resolution // factor


def pictures(pixels: Tensor) -> Tensor:
    """Convert pixels uint8 [*B, 3, R, R] to float32 [N, 3, R, R] in [0, 1], channels-last for the convolutions."""
    flat = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)
    return flat.float() / 255


class Standardiser(nn.Module):
    """Standardises inputs by their mean and standard deviation over all batches so far.

    DreamerV3 has none: its symlog compresses large numbers, but a robot's state is in metres. Without standardisation,
    differences of centimetres stay below the free nats and are not encoded.
    """

    count: Tensor  # batches so far
    mean: Tensor  # [S]
    variance: Tensor  # [S]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Update mean and variance with a batch [N, S] (Chan et al. 1979); all batches have the same weight."""
        self.count += 1
        share = 1 / self.count
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        delta = mean - self.mean
        self.mean += share * delta
        self.variance.lerp_(variance, share).add_(share * (1 - share) * delta.square())

    @property
    def deviation(self) -> Tensor:
        """Standard deviation [S], at least 0.01, because a constant number may vary later."""
        return self.variance.clamp(min=1e-4).sqrt()

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation

    def inverse(self, values: Tensor) -> Tensor:
        return values * self.deviation + self.mean


class StateEncoder(nn.Module):
    """MLP: symlog values of states [N, S] -> embeddings [N, E]."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.layers = mlp(width, None, depth=3, units=units)
        self.out_features = units

    def forward(self, state: Tensor) -> Tensor:
        embedding: Tensor = self.layers(state)
        return embedding
