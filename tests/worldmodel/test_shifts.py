"""Random shifts of images."""

import torch

from worldmodel.shifts import random_shift


def test_a_shift_moves_whole_pictures_and_repeats_their_border() -> None:
    torch.manual_seed(0)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    pictures = torch.stack([row, column]).to(torch.uint8).expand(64, 2, 8, 8)
    shifted = random_shift(pictures, 2)
    down, right = shifted[:, 0, 4, 4].int() - 4, shifted[:, 1, 4, 4].int() - 4  # where the middle was taken from
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2}
    assert not torch.equal(down, right)
    for picture, i, j in zip(shifted, down, right, strict=True):
        assert torch.equal(picture[0].int(), (row + i).clamp(0, 7).int())
        assert torch.equal(picture[1].int(), (column + j).clamp(0, 7).int())
