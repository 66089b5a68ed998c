"""Ranking of plans from one start by a world model. S starts, N plans from each, K samples, H horizon, A action."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from worldmodel.base import WorldModel
from worldmodel.metrics.control import rank_correlations


@torch.no_grad()
def plan_returns(model: WorldModel, context: TensorDictBase, actions: Tensor, gamma: float, samples: int = 1) -> Tensor:
    """Discounted returns of plans, predicted by a world model.

    Args:
        model: the model.
        context: real steps [S, T]; the model reads the last C.
        actions: plans [S, N, H, A].
        gamma: discount of one step.
        samples: K, rollouts of each plan.

    Returns:
        Returns [S, N, K], on the CPU.
    """
    starts, plans, horizon, _ = actions.shape
    state = model.start(context[:, -model.context_length :].to(model.device))
    moves = actions.repeat_interleave(samples, 1).flatten(0, 1).to(model.device)
    reward = model.outcome(model.fork(state, plans * samples), moves).reward
    assert reward is not None, "the model predicts rewards"
    return (reward.cpu() * gamma ** torch.arange(horizon)).sum(1).view(starts, plans, samples)


class RankCorrelation(NamedTuple):
    """Rank correlation within starts, averaged over starts.

    Attributes:
        mean: mean over starts; nan if all predicted returns from each start are equal.
        standard_error: standard error of that mean; nan for a single start.
    """

    mean: float
    standard_error: float


def rank_correlation(predicted: Tensor, real: Tensor) -> RankCorrelation:
    """Spearman's rank correlation of predicted and true returns, among plans from one start.

    Args:
        predicted: returns [S, N, K]. Each of K samples ranks the plans separately; the K correlations are averaged.
        real: true returns [S, N].

    Returns:
        Mean and standard error over the starts whose true returns differ, see `rank_correlations`.
    """
    if not (predicted != predicted[:, :1]).any():
        return RankCorrelation(float("nan"), float("nan"))
    found = torch.stack([rank_correlations(sample, real) for sample in predicted.unbind(2)]).mean(0)
    error = found.std() / len(found) ** 0.5 if len(found) > 1 else torch.tensor(float("nan"))
    return RankCorrelation(float(found.mean()), float(error))
