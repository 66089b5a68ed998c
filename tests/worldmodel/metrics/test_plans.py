"""Ranking of plans: numbers worked out by hand."""

import math

import pytest
import torch

from tests.fakes import CountingWorldModel, episode
from worldmodel.metrics.plans import plan_returns, rank_correlation


def test_returns_are_discounted_sums_of_each_plan_and_sample() -> None:
    """The reward of the model is the first entry of the action."""
    context = torch.stack([episode(0)[:5], episode(1)[:5]])  # longer than the context of the model
    actions = torch.arange(12.0).reshape(2, 3, 2, 1)
    returns = plan_returns(CountingWorldModel(), context, actions, 0.5, samples=2)
    assert returns.shape == (2, 3, 2)
    assert returns[..., 0].tolist() == [[0.5, 3.5, 6.5], [9.5, 12.5, 15.5]]
    assert torch.equal(returns[..., 0], returns[..., 1])


def test_the_standard_error_is_that_of_the_mean_over_starts() -> None:
    real = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])  # the last start tells nothing
    predicted = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])[..., None]
    found = rank_correlation(predicted, real)
    assert found.mean == 0.0 and found.standard_error == pytest.approx(1.0)
    alone = rank_correlation(predicted[:1], real[:1])
    assert alone.mean == pytest.approx(1.0) and math.isnan(alone.standard_error)


def test_samples_rank_the_plans_one_by_one() -> None:
    real = torch.tensor([[1.0, 2.0, 3.0]])
    samples = torch.stack([real, real.flip(1)], 2)
    assert rank_correlation(samples, real).mean == 0.0
    assert rank_correlation(real[..., None], real).mean == pytest.approx(1.0)


def test_a_model_without_differences_between_plans_has_no_correlation() -> None:
    real = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    starts_alone = torch.tensor([[1.0, 1.0], [2.0, 2.0]])[..., None]
    assert math.isnan(rank_correlation(starts_alone, real).mean)
