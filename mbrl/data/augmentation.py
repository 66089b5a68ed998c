"""Augmentation as iVideoGPT was pretrained with: one random resized crop and one colour jitter for a whole segment.

The default ranges, and the random order of the four colour changes, are those of the published training
(thuml/iVideoGPT, train_tokenizer.py and ivideogpt/data/simple_dataloader.py). Two things differ: crops have their
corners anywhere, not at whole pixels, and colours are rounded to 8 bits once, not after each change.
B batch, T time, R resolution, P pixels of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.errors import UserError

Range = tuple[float, float]
_ATTEMPTS = 10  # at a crop that fits into the picture; the whole picture where none does
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601: how much red, green and blue there is in a grey


class Parameters(NamedTuple):
    """Random changes of each of B segments.

    Attributes:
        crop: [B, 4] left, top, width and height, in sides of the picture.
        factors: [B, 4] of brightness, contrast and saturation (1 changes nothing), and the turn of the hue (0 changes
            nothing, 1 is a full circle).
        order: [B, 4] int64, in which these four are applied.
    """

    crop: Tensor
    factors: Tensor
    order: Tensor

    def rows(self, rows: slice) -> Parameters:
        """Those of some of the segments."""
        return Parameters(self.crop[rows], self.factors[rows], self.order[rows])


@dataclass(frozen=True)
class Augmentation:
    """Ranges to draw from, uniformly. `scale`: a crop's share of the picture; `ratio`: its width over its height."""

    scale: Range = (0.8, 1.0)
    ratio: Range = (0.9, 1.1)
    brightness: Range = (0.9, 1.1)
    contrast: Range = (0.9, 1.1)
    saturation: Range = (0.9, 1.1)
    hue: Range = (-0.05, 0.05)

    def __post_init__(self) -> None:
        for name, (low, high) in vars(self).items():
            least, most = {"scale": (1e-6, 1.0), "ratio": (1e-6, 1e6), "hue": (-1.0, 1.0)}.get(name, (0.0, 1e6))
            if not least <= low <= high <= most:
                raise UserError(f"augmentation: {name} cannot be drawn from {low} to {high}")

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Segments uint8 [B, T, 3, R, R], each augmented in its own way."""
        return augment(pixels, self.draw(len(pixels), generator))

    def draw(self, batch_size: int, generator: torch.Generator) -> Parameters:
        """Parameters for B segments, on the generator's device."""

        def uniform(limits: Range, *size: int) -> Tensor:
            return torch.empty(size, device=generator.device).uniform_(*limits, generator=generator)

        area = uniform(self.scale, batch_size, _ATTEMPTS)
        aspect = uniform((math.log(self.ratio[0]), math.log(self.ratio[1])), batch_size, _ATTEMPTS).exp()
        sizes = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1)  # [B, attempts, 2]
        fits = (sizes <= 1).all(-1)
        first = fits.int().argmax(1)
        chosen = sizes.gather(1, first[:, None, None].expand(-1, 1, 2)).squeeze(1)
        size = torch.where(fits.any(1, keepdim=True), chosen, torch.ones_like(chosen))
        corner = uniform((0.0, 1.0), batch_size, 2) * (1 - size)
        limits = (self.brightness, self.contrast, self.saturation, self.hue)
        factors = torch.stack([uniform(limit, batch_size) for limit in limits], -1)
        order = uniform((0.0, 1.0), batch_size, len(limits)).argsort(1)
        return Parameters(torch.cat([corner, size], 1), factors, order)


def augment(pixels: Tensor, parameters: Parameters) -> Tensor:
    """Segments uint8 [B, T, 3, R, R], all frames of a segment changed alike; they lie on the parameters' device."""
    if pixels.ndim != 5 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8:
        raise UserError(f"augmentation: segments are uint8 [B, T, 3, R, R], not {pixels.dtype} {list(pixels.shape)}")
    frames = _crop(pixels.float() / 255, parameters.crop)
    changes: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brighten, _contrast, _saturate, _turn_hue)
    for place in range(len(changes)):
        for kind, change in enumerate(changes):
            rows = (parameters.order[:, place] == kind).nonzero().squeeze(1)
            factors = parameters.factors[rows, kind][:, None, None, None]
            frames[rows] = change(frames[rows], factors)
    return frames.mul_(255).round_().to(torch.uint8)


def _crop(frames: Tensor, crop: Tensor) -> Tensor:
    """Crop and resize back to R x R, bilinearly."""
    left, top, width, height = crop.unbind(1)
    zero = torch.zeros_like(left)
    # in affine_grid's coordinates the picture reaches from -1 to 1
    rows = [width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1]
    stacked = frames.flatten(1, 2)  # a segment's frames as channels: one grid serves them all
    grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(stacked.shape), align_corners=False)
    return F.grid_sample(stacked, grid, padding_mode="border", align_corners=False).reshape(frames.shape)


# Each of these takes frames [B, T, 3, R, R] in [0, 1] and factors [B, 1, 1, 1]; they stay in [0, 1].


def _brighten(frames: Tensor, factor: Tensor) -> Tensor:
    return (frames * factor[..., None]).clamp_(0, 1)


def _contrast(frames: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(frames).mean((-2, -1), keepdim=True)[:, :, None]  # of each frame
    return mean.lerp(frames, factor[..., None]).clamp_(0, 1)


def _saturate(frames: Tensor, factor: Tensor) -> Tensor:
    return _grey(frames)[:, :, None].lerp(frames, factor[..., None]).clamp_(0, 1)


def _grey(frames: Tensor) -> Tensor:
    """[B, T, R, R]."""
    red, green, blue = frames.unbind(2)
    return _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue


def _turn_hue(frames: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue, keeping value and chroma: the hexagonal hue of HSV, in sixths of a circle."""
    red, green, blue = frames.unbind(2)
    value = frames.amax(2)
    chroma = value - frames.amin(2)
    # in sixths of a circle: red lies at 0, green at 2, blue at 4
    from_green, from_blue = 2 + (blue - red).div_(chroma), 4 + (red - green).div_(chroma)
    hue = torch.where(value == green, from_green, from_blue)
    hue = torch.where(value == red, (green - blue).div_(chroma), hue)
    hue = torch.where(chroma == 0, 0, hue).add_(6 * turn)
    channels = []
    for sixth in (5, 3, 1):
        place = (hue + sixth).remainder_(6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, 2)
