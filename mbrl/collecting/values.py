"""Compare critic values with the discounted returns of evaluation episodes. N episodes, T steps.

A critic that is accurate on the replay may overestimate the states that the noiseless policy visits, because the
collector has not visited them. The next evaluation is then worse.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SHARE = 0.95  # a step counts if the rest of the episode covers this share of the discount weights


class ValueComparison(NamedTuple):
    """Sums over the steps that count: critic values, discounted returns, and the number of steps."""

    expected: float
    came: float
    steps: int


def compare(values: Tensor, rewards: Tensor, lengths: Tensor, terminated: Tensor, gamma: float) -> ValueComparison:
    """Compare values with discounted returns, at steps that are followed by enough steps of the episode.

    Where a time limit cut an episode short, the value of its last step stands for what would have come.

    Args:
        values: float32 [N, T], of the action in each step.
        rewards: float32 [N, T], 0 after the end of an episode.
        lengths: int64 [N], steps of each episode.
        terminated: bool [N], whether an episode ended by itself: then all of its steps count.
        gamma: discount of a step, above 0 and at most 1.
    """
    steps = torch.arange(rewards.shape[1])
    last, ended = steps == lengths[:, None] - 1, terminated[:, None]
    earned = torch.where(last & ~ended, values, rewards)
    returns, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for step in reversed(steps.tolist()):
        following = earned[:, step] + gamma * following
        returns[:, step] = following
    needed = math.ceil(math.log(1 - SHARE) / math.log(gamma)) if gamma < 1 else rewards.shape[1]
    counted = (steps < lengths[:, None]) & (ended | (steps + needed <= lengths[:, None]))
    return ValueComparison(float(values[counted].sum()), float(returns[counted].sum()), int(counted.sum()))


def mean_values(parts: list[ValueComparison]) -> dict[str, float]:
    """`value` and `value_true`, means over the steps of all parts; {} where no step counts."""
    steps = sum(part.steps for part in parts)
    if not steps:
        return {}
    return {
        "value": sum(part.expected for part in parts) / steps,
        "value_true": sum(part.came for part in parts) / steps,
    }
