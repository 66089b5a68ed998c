"""Random shifts of images (DrQ, arXiv 2004.13649)."""

import torch
from torch import Tensor


def random_shift(pictures: Tensor, pad: int) -> Tensor:
    """Shift each image of [B, C, R, R] by up to `pad` whole pixels along both axes; the border is repeated.

    The package `policies` has its own copy, because neither package imports the other.

    Returns:
        [B, C, R, R] of the same type, stored channels-last, so that a pixel's channels are copied together.
    """
    rows, channels, side, device = len(pictures), *pictures.shape[1:3], pictures.device
    offsets = torch.randint(-pad, pad + 1, (2, rows, 1), device=device)
    row, column = (torch.arange(side, device=device) + offsets).clamp_(0, side - 1)  # [B, R] each
    each = torch.arange(rows, device=device)[:, None, None] * side**2
    source = each + row[:, :, None] * side + column[:, None]  # [B, R, R]
    pixels = pictures.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, source.flatten())
    return pixels.view(rows, side, side, channels).permute(0, 3, 1, 2)
