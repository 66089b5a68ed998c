"""Rewards, successes, hand positions and codes, on numbers worked out by hand."""

import math

import pytest
import torch

from worldmodel.metrics.control import (
    Confusion,
    codebook_usage,
    confusion,
    distance_cm,
    reward_error,
    success_threshold,
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
