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


def lambda_return(reward: Tensor, next_value: Tensor, next_continue: Tensor, *, gamma: float, lambda_: float) -> Tensor:
    """λ-returns of a stretch of H steps, bootstrapped from the value of the state that the last step leads to.

    R_t = r_t + γ c_t ((1 - λ) v_t + λ R_{t+1}) and R_H = v_{H-1}, with everything on the right of r_t belonging to
    the state that the action t leads to (DreamerV3, arXiv 2301.04104, equation 7).

    Args:
        reward: [B, H], r_t earned by the action t.
        next_value: [B, H], v_t, value of the state that the action t leads to.
        next_continue: [B, H], c_t, probability that the episode goes on from there (0 where it terminated).
        gamma: discount of one step. lambda_: 0 is one step and a value, 1 is all rewards and one value.

    Returns:
        [B, H].
    """
    if reward.ndim != 2 or not reward.shape == next_value.shape == next_continue.shape or reward.shape[1] == 0:
        shapes = ", ".join(str(tuple(t.shape)) for t in (reward, next_value, next_continue))
        raise ValueError(f"lambda_return needs three tensors of one shape [B, H], H > 0; got {shapes}")
    discount = gamma * next_continue
    one_step = reward + discount * (1.0 - lambda_) * next_value
    latest, returns = next_value[:, -1], []
    for t in range(reward.shape[1] - 1, -1, -1):
        latest = one_step[:, t] + lambda_ * discount[:, t] * latest
        returns.append(latest)
    return torch.stack(returns[::-1], dim=1)
