"""Frames of any size made square and of one size, and stacks of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def crop_and_resize(frames: Tensor, resolution: int | None) -> Tensor:
    """Frames uint8 [T, 3, H, W] cropped to their central square and resized, antialiased, to [T, 3, R, R].

    None keeps the square's own size. Frames that fit already are handed back as they are.
    """
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side]
    if resolution in (None, side):
        return square
    return F.interpolate(square, (resolution, resolution), mode="bilinear", antialias=True)


def stacked(pixels: Tensor, stack: int) -> Tensor:
    """Stacks [B, T, 3K, R, R] of K = `stack` successive frames, oldest first, from frames [B, K - 1 + T, 3, R, R]."""
    return pixels.unfold(1, stack, 1).movedim(-1, 2).flatten(2, 3)
