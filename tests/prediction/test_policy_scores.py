"""Policies ranked in a world model: figures that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mbrl.prediction.policy_scores import Episodes, SuccessRule, correlate, score, success_rule


def test_a_threshold_between_failures_and_successes_is_found_and_checked() -> None:
    peaks = torch.tensor([1.0, 2.0, 3.0, 18.0, 19.0, 20.0])
    rule = success_rule(peaks, peaks > 10)
    assert rule == SuccessRule(10.5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("peaks", "success", "reason"),
    [
        ([1, 2, 3, 4], [0, 0, 0, 1], "1 of 4 real episodes succeed, and a threshold needs two of each kind"),
        ([1, 2, 3, 4], [1, 1, 1, 1], "4 of 4 real episodes succeed"),
        ([1, 2, 1, 2], [0, 0, 1, 1], "the highest reward of a real episode does not tell success: a threshold finds"),
        ([4, 3, 2, 1], [0, 0, 1, 1], "does not tell success"),
    ],
)
def test_where_rewards_do_not_tell_success_it_is_not_known(peaks: list[int], success: list[int], reason: str) -> None:
    rule = success_rule(torch.tensor(peaks).float(), torch.tensor(success).bool())
    assert rule.threshold is None and reason in rule.reason
    assert math.isnan(score(episodes(), rule).imagined_success)
    assert correlate([0.0, 1.0], [math.nan, math.nan]).reason == "imagined success is not known"


def episodes() -> Episodes:
    """Four episodes: succeed in both worlds, in imagination alone, in none, in imagination alone."""
    return Episodes(
        real_return=torch.tensor([4.0, 0.0, 0.0, 0.0]),
        imagined_return=torch.tensor([2.0, 2.0, 2.0, 2.0]),
        real_peak=torch.tensor([9.0, 1.0, 1.0, 1.0]),
        imagined_peak=torch.tensor([9.0, 9.0, 1.0, 5.0]),
        success=torch.tensor([True, False, False, False]),
    )


def test_the_scores_of_a_checkpoint() -> None:
    found = score(episodes(), SuccessRule(5.0))
    assert found.real_return == 1.0 and found.real_return_error == pytest.approx(1.0)
    assert found.imagined_return == 2.0 and found.imagined_return_error == 0.0
    assert (found.real_success, found.imagined_success) == (0.25, 0.75)
    assert found.hallucinated == pytest.approx(2 / 3) and found.missed == 0.0
    none = score(episodes(), SuccessRule(50.0))
    assert none.imagined_success == 0.0 and math.isnan(none.hallucinated) and none.missed == 1.0


def test_rank_correlations_of_checkpoints() -> None:
    found = correlate([1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 50.0, 40.0])
    assert found.value == pytest.approx(0.9) and found.checkpoints == 5 and found.reason == ""
    assert found.low < 0.9 < found.high
    assert math.isnan(correlate([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).low), "three checkpoints have no interval"
    success = [0.0, 0.0, 0.0, 0.0, 1.0]
    found = correlate(success, success)
    assert found.value == pytest.approx(1.0) and math.isnan(found.low), "one order of five agrees by chance"
    assert correlate([*success, *success], [*success, *success]).low > 0
    assert correlate([1.0, 1.0], [1.0, 2.0]).reason == "all checkpoints are alike really"
    assert correlate([1.0, 2.0], [1.0, 1.0]).reason == "all checkpoints are alike in imagination"
