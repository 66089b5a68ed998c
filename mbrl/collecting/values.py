"""What critics say of the states of an evaluation, against what came of them. N episodes, T steps.

A critic that is right on the replay may be wrong where the policy goes without noise: then the actor prefers what the
collector has never shown it, and the next evaluation falls.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEFT_OUT = 0.05  # share of a discounted return that may lie behind the end of an episode, at most


class Judged(NamedTuple):
    """Sums over the steps that count: values, the discounted returns from there on, and how many steps there are."""

    value: float
    true: float
    steps: int


def judged(values: Tensor, rewards: Tensor, lengths: Tensor, gamma: float) -> Judged:
    """Compare values with discounted returns, at the steps behind which an episode goes on for long enough.

    Args:
        values: float32 [N, T], of the action in each step.
        rewards: float32 [N, T], 0 after the end of an episode.
        lengths: int64 [N], steps of each episode.
        gamma: discount of a step, above 0 and at most 1.
    """
    needed = math.ceil(math.log(LEFT_OUT) / math.log(gamma)) if gamma < 1 else rewards.shape[1]
    returns, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        following = rewards[:, step] + gamma * following
        returns[:, step] = following
    counted = torch.arange(rewards.shape[1]) + needed <= lengths[:, None]
    return Judged(float(values[counted].sum()), float(returns[counted].sum()), int(counted.sum()))


def means(parts: list[Judged]) -> dict[str, float]:
    """`value` and `value_true`, means over the steps of all parts; {} where no step counts."""
    steps = sum(part.steps for part in parts)
    if not steps:
        return {}
    return {
        "value": sum(part.value for part in parts) / steps,
        "value_true": sum(part.true for part in parts) / steps,
    }
