"""Augmentation: known answers, and that all frames of a segment are changed alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl.data.augmentation import Augmentation, Parameters, augment

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NOTHING = (1.0, 1.0, 1.0, 0.0)
WHOLE = (0.0, 0.0, 1.0, 1.0)


def parameters(batch: int = 2, crop: tuple[float, ...] = WHOLE, factors: tuple[float, ...] = NOTHING) -> Parameters:
    return Parameters(
        torch.tensor([crop]).repeat(batch, 1),
        torch.tensor([factors]).repeat(batch, 1),
        torch.arange(4).repeat(batch, 1),
    )


def changed(kind: int, factor: float) -> tuple[float, ...]:
    return tuple(factor if i == kind else value for i, value in enumerate(NOTHING))


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def coloured(*colours: tuple[int, int, int]) -> Tensor:
    """One segment of one frame, a column for each colour."""
    return torch.tensor(colours, dtype=torch.uint8).T[None, None, :, None].expand(1, 1, 3, len(colours), -1)


def columns(segment: Tensor) -> list[list[int]]:
    return segment[0, 0, :, 0].T.tolist()


def test_nothing_changes_nothing(pixels: Tensor) -> None:
    assert torch.equal(augment(pixels, parameters()), pixels)


def test_a_full_turn_of_the_hue_changes_nothing(pixels: Tensor) -> None:
    for turn in (-1.0, 1.0):
        assert torch.equal(augment(pixels, parameters(factors=changed(HUE, turn))), pixels)


@pytest.mark.parametrize(
    ("kind", "factor", "before", "after"),
    [
        (BRIGHTNESS, 0.5, [(100, 200, 0), (40, 0, 250)], [[50, 100, 0], [20, 0, 125]]),
        (BRIGHTNESS, 2.0, [(100, 200, 0), (40, 0, 250)], [[200, 255, 0], [80, 0, 255]]),
        (CONTRAST, 0.5, [(100, 100, 100), (200, 200, 200)], [[125] * 3, [175] * 3]),  # towards the mean, 150
        (CONTRAST, 0.0, [(100, 100, 100), (200, 200, 200)], [[150] * 3, [150] * 3]),
        (SATURATION, 0.0, [(255, 0, 0), (0, 100, 0)], [[76] * 3, [59] * 3]),  # 0.299 of red, 0.587 of green
        (SATURATION, 2.0, [(100, 100, 100), (100, 50, 0)], [[100] * 3, [141, 41, 0]]),  # grey of the second: 59.25
        (HUE, 1 / 3, [(255, 0, 0), (0, 200, 0), (10, 10, 90)], [[0, 255, 0], [0, 0, 200], [90, 10, 10]]),
        (HUE, 0.5, [(255, 0, 0), (200, 50, 100), (77, 77, 77)], [[0, 255, 255], [50, 200, 150], [77, 77, 77]]),
        (HUE, -1 / 6, [(255, 0, 0), (0, 0, 0)], [[255, 0, 255], [0, 0, 0]]),
    ],
)
def test_colours_come_out_as_worked_out_by_hand(
    kind: int, factor: float, before: list[tuple[int, int, int]], after: list[list[int]]
) -> None:
    assert columns(augment(coloured(*before), parameters(1, factors=changed(kind, factor)))) == after


def test_a_crop_of_a_quarter_is_that_quarter_enlarged(pixels: Tensor) -> None:
    cropped = augment(pixels, parameters(crop=(0.5, 0.0, 0.5, 0.5)))
    # inside, interpolation does not see that the crop has an edge
    quarter = F.interpolate(pixels[:, :, :, :8, 8:].float().flatten(1, 2), (16, 16), mode="bilinear")
    inner = (cropped.flatten(1, 2).float() - quarter)[..., 1:-1, 1:-1]
    assert inner.abs().max() <= 0.51


def test_left_and_top_are_not_confused() -> None:
    ramp = torch.arange(16, dtype=torch.uint8) * 10
    pixels = ramp.expand(1, 2, 3, 16, 16)  # grows to the right
    right = augment(pixels, parameters(1, crop=(0.5, 0.0, 0.5, 0.5)))
    assert right.min() >= 70 and (right[..., 0, :].int() - right[..., -1, :].int()).abs().max() <= 1
    assert augment(pixels, parameters(1, crop=(0.0, 0.5, 0.5, 0.5))).max() <= 80


def test_all_frames_of_a_segment_are_changed_alike_and_segments_differ(pixels: Tensor) -> None:
    still = pixels[:1, :1].expand(8, 5, -1, -1, -1)
    augmented = Augmentation()(still, torch.Generator().manual_seed(1))
    assert augmented.dtype == torch.uint8 and augmented.shape == still.shape
    assert (augmented == augmented[:, :1]).all()
    assert len(augmented[:, 0].flatten(1).unique(dim=0)) == 8


def test_the_order_of_changes_counts_and_is_the_segments_own() -> None:
    pixels = coloured((200, 100, 0), (20, 20, 20)).expand(2, -1, -1, -1, -1)
    both = (2.0, 0.5, 1.0, 0.0)
    order = torch.tensor([[BRIGHTNESS, CONTRAST, SATURATION, HUE], [CONTRAST, BRIGHTNESS, SATURATION, HUE]])
    together = augment(pixels, parameters(factors=both)._replace(order=order))
    for row in range(2):
        step = pixels[:1]
        for kind in order[row, :2].tolist():
            step = augment(step, parameters(1, factors=changed(kind, both[kind])))
        assert (together[row].int() - step[0].int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])


def test_the_default_ranges_are_the_published_ones() -> None:
    drawn = Augmentation().draw(4000, torch.Generator().manual_seed(0))
    left, top, width, height = drawn.crop.unbind(1)
    area, ratio = width * height, width / height
    assert 0.8 <= area.min() < 0.81 and 0.98 < area.max() <= 1.0
    assert 0.9 <= ratio.min() < 0.91 and 1.09 < ratio.max() <= 1.1001
    assert drawn.crop.min() >= 0 and (left + width).max() <= 1.0001 and (top + height).max() <= 1.0001
    for kind, (low, high) in enumerate([(0.9, 1.1)] * 3 + [(-0.05, 0.05)]):
        values = drawn.factors[:, kind]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert sorted(drawn.order[0].tolist()) == [0, 1, 2, 3]
    assert len(drawn.order.unique(dim=0)) == 24


def test_a_seed_gives_the_same_and_rows_can_be_taken(pixels: Tensor) -> None:
    first, again = (Augmentation().draw(2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(augment(pixels[1:], first.rows(slice(1, 2))), augment(pixels, first)[1:])


def test_a_crop_that_never_fits_is_the_whole_picture(pixels: Tensor) -> None:
    drawn = Augmentation(scale=(1.0, 1.0), ratio=(2.0, 2.0)).draw(3, torch.Generator().manual_seed(0))
    assert drawn.crop.tolist() == [[0.0, 0.0, 1.0, 1.0]] * 3


def test_impossible_ranges_and_shapes_are_refused(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"scale cannot be drawn from 0\.8 to 1\.2"):
        Augmentation(scale=(0.8, 1.2))
    with pytest.raises(ValueError, match=r"hue cannot be drawn from 0\.1 to 0\.0"):
        Augmentation(hue=(0.1, 0.0))
    for wrong in (pixels.float(), pixels[0], pixels[:, :, :1]):
        with pytest.raises(ValueError, match="segments are uint8"):
            augment(wrong, parameters())
