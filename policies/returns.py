"""Returns as pure functions of rewards: no module, no state, the same on every device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NStep(NamedTuple):
    """What an n-step target ``reward + gamma * (1 - terminated) * V(s_m)`` is made of; B rows.

    Attributes:
        reward: [B, 1], sum of gamma^k r_k over the m steps that count.
        gamma: [B, 1], gamma^m: the discount of the bootstrap value.
        steps: int64 [B, 1], m, from 1 to n: the bootstrap state lies m steps after the first, and the step of
            index m - 1 says whether the episode terminated.
    """

    reward: Tensor
    gamma: Tensor
    steps: Tensor


def n_step(reward: Tensor, last: Tensor, gamma: float) -> NStep:
    """Discounted sum of up to n rewards, cut at the end of the episode.

    Args:
        reward: [B, n], r_k earned by the k-th action.
        last: bool [B, n], whether step k is the last of its episode, or of what is stored of it (terminated,
            truncated, or the newest step): it counts itself; the steps after it do not, whatever they hold.
        gamma: discount of one step, in [0, 1].
    """
    if reward.ndim != 2 or reward.shape != last.shape or reward.shape[1] == 0:
        shapes = f"{tuple(reward.shape)} and {tuple(last.shape)}"
        raise ValueError(f"n_step needs reward and last of one shape [B, n], n > 0; got {shapes}")
    ended_before = torch.cumsum(last.long(), dim=1) - last.long()  # [B, n]
    counts = ended_before == 0
    steps = counts.sum(dim=1, keepdim=True)
    discounts = gamma ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)
    # where, not a product: a step that does not count may hold NaN.
    total = torch.where(counts, reward * discounts, 0.0).sum(dim=1, keepdim=True)
    return NStep(total, gamma ** steps.to(reward.dtype), steps)
