"""Rewards, successes, hand positions and codes, on numbers worked out by hand."""

import math

import pytest
import torch

from worldmodel.metrics.control import (
    LEVELS,
    Confusion,
    at_level,
    codebook_usage,
    confusion,
    correlation,
    distance_cm,
    moving_error,
    moving_psnr,
    reward_error,
    success_threshold,
    within_start_rank_correlation,
)


def test_reward_error_of_each_step() -> None:
    predicted = torch.tensor([[[1.0, 2.0], [3.0, 2.0]], [[0.0, 0.0], [0.0, 4.0]]])  # [B=2, K=2, H=2]
    real = torch.tensor([[1.0, 1.0], [2.0, 4.0]])
    assert reward_error(predicted, real).tolist() == [(0 + 2 + 2 + 2) / 4, (1 + 1 + 4 + 0) / 4]


def test_confusion_by_hand() -> None:
    actual = torch.tensor([True, True, True, False, False, False, False])
    predicted = torch.tensor([True, True, False, True, False, False, False])
    counts = confusion(predicted, actual)
    assert counts == Confusion(hits=2, false_alarms=1, misses=1, rejections=3)
    assert (counts.precision, counts.recall, counts.hallucinated) == (2 / 3, 2 / 3, 1 / 4)
    assert math.isnan(confusion(actual & False, actual).precision)
    assert confusion(torch.stack([predicted, actual]), actual) == Confusion(5, 1, 1, 7)  # both samples count


def test_threshold_parts_what_can_be_parted() -> None:
    rewards = torch.tensor([1.0, 9.0, 2.0, 8.0, 3.0])
    assert success_threshold(rewards, rewards > 5) == 5.5
    # one failure among the successes: below 9 the recall is 1 and one failure of four is let in
    rewards, success = torch.tensor([1.0, 2.0, 9.0, 3.0, 8.0, 10.0]), torch.tensor([0, 0, 0, 0, 1, 1]).bool()
    assert success_threshold(rewards, success) == 5.5


def test_threshold_does_not_fall_between_equal_rewards() -> None:
    rewards, success = torch.tensor([4.0, 4.0, 4.0, 6.0]), torch.tensor([False, True, False, True])
    assert success_threshold(rewards, success) == 5.0
    assert success_threshold(rewards.flip(0), success.flip(0)) == 5.0


@pytest.mark.parametrize("success", [True, False])
def test_threshold_needs_both(success: bool) -> None:
    with pytest.raises(ValueError, match="of 3 real steps are successes"):
        success_threshold(torch.rand(3), torch.full((3,), success))


def test_distances_are_in_centimetres() -> None:
    real = torch.zeros(1, 2, 3)
    positions = torch.tensor([[[[0.03, 0.0, 0.04], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.01], [0.0, 0.02, 0.0]]]])
    torch.testing.assert_close(distance_cm(positions, real), torch.tensor([3.0, 1.0]))


def test_codebook_usage_by_hand() -> None:
    share, perplexity = codebook_usage(torch.tensor([[0, 0], [3, 3]]), 8)
    assert (share, perplexity) == (0.25, pytest.approx(2.0))
    share, perplexity = codebook_usage(torch.arange(8), 8)
    assert (share, perplexity) == (1.0, pytest.approx(8.0))
    assert codebook_usage(torch.tensor([0, 0, 0, 1]), 4)[1] == pytest.approx(4 / 3**0.75)


def test_correlations_by_hand() -> None:
    real = torch.tensor([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    assert float(correlation(real * 2 + 1, real)) == pytest.approx(1.0)
    assert float(within_start_rank_correlation(real * 2 + 1, real)) == pytest.approx(1.0)
    starts_alone = torch.tensor([[2.0, 2.0, 2.0], [12.0, 12.0, 12.0]])  # knows the starts, not the actions
    assert float(correlation(starts_alone, real)) > 0.98
    assert float(within_start_rank_correlation(starts_alone, real)) == 0.0
    assert torch.isnan(within_start_rank_correlation(real, starts_alone)), "actions make no difference"
    wrong = torch.tensor([[3.0, 2.0, 1.0], [13.0, 12.0, 11.0]])
    assert float(within_start_rank_correlation(wrong, real)) == pytest.approx(-1.0)
    half = torch.tensor([[1.0, 2.0, 3.0], [1300.0, 1200.0, 1100.0]])  # of any size: ranks count
    assert float(within_start_rank_correlation(half, real)) == pytest.approx(0.0)
    ties = torch.tensor([[1.0, 5.0, 5.0], [13.0, 12.0, 11.0]])  # ranks 0, 1.5, 1.5 against 0, 1, 2: .866
    assert float(within_start_rank_correlation(ties, real)) == pytest.approx((0.75**0.5 - 1) / 2)


def test_psnr_of_what_moves_by_hand() -> None:
    last = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    real = last[:, None].clone()
    real[..., 0, 0] = 255  # one pixel of four moves
    imagined = real.clone()
    imagined[..., 1, 1] = 200  # what does not move does not count
    imagined[:, :, 0, 0, 0] = 0  # a channel of three is wrong by 1
    assert float(moving_psnr(imagined, real, last)) == pytest.approx(-10 * math.log10(1 / 3))
    assert torch.isnan(moving_psnr(imagined, last[:, None], last))
    error, count = moving_error(imagined, real, last)
    assert error.shape == count.shape == (len(imagined), imagined.shape[1])
    assert float(error.sum() / count.sum()) == pytest.approx(1 / 3)


def test_levels_share_no_reward_and_leave_none_out() -> None:
    rewards = torch.tensor([-3.0, 1.99, 2.0, 7.99, 8.0, 20.0])
    levels = {name: at_level(rewards, name).tolist() for name in LEVELS}
    assert levels == {
        "low": [True, True, False, False, False, False],
        "middle": [False, False, True, True, False, False],
        "high": [False, False, False, False, True, True],
    }
