"""n-step returns, λ-returns and the weights of imagined steps, as pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor


class NStep(NamedTuple):
    """Parts of an n-step target `reward + gamma * (1 - terminated) * V(s_m)`.

    Attributes:
        reward: [B, 1], sum of gamma^k r_k over the first m steps.
        gamma: [B, 1], gamma^m, the discount of the bootstrap value.
        steps: int64 [B, 1], m, from 1 to n: the bootstrap state is m steps after the first, and `terminated` belongs to
            the step with index m - 1.
    """

    reward: Tensor
    gamma: Tensor
    steps: Tensor


def n_step(reward: Tensor, last: Tensor, gamma: float) -> NStep:
    """Discounted sum of up to n rewards, cut at the end of the episode.

    Args:
        reward: [B, n], r_k, the reward of the k-th action.
        last: bool [B, n], whether step k is the last stored step of its episode (terminated, truncated, or the newest
            step). This step is included; the steps after it are ignored.
        gamma: discount of one step, in [0, 1].

    Raises:
        ValueError: the shapes differ, or are not [B, n] with n > 0.
    """
    if reward.ndim != 2 or reward.shape != last.shape or reward.shape[1] == 0:
        shapes = f"{tuple(reward.shape)} and {tuple(last.shape)}"
        raise ValueError(f"n_step needs reward and last of one shape [B, n], n > 0; got {shapes}")
    ended_before = torch.cumsum(last.long(), dim=1) - last.long()  # [B, n]
    counts = ended_before == 0
    steps = counts.sum(dim=1, keepdim=True)
    discounts = gamma ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)
    # Multiplication by a mask would keep a NaN of an ignored step.
    total = torch.where(counts, reward * discounts, 0.0).sum(dim=1, keepdim=True)
    return NStep(total, gamma ** steps.to(reward.dtype), steps)


def lambda_return(reward: Tensor, next_value: Tensor, next_continue: Tensor, *, gamma: float, lambda_: float) -> Tensor:
    """λ-returns of H steps, bootstrapped from the value of the state after the last one.

    R_t = r_t + γ c_t ((1 - λ) v_t + λ R_{t+1}) and R_H = v_{H-1}, where c_t and v_t belong to the state that action t
    leads to (DreamerV3, arXiv 2301.04104, equation 7).

    Args:
        reward: [B, H], r_t, the reward of action t.
        next_value: [B, H], v_t, the value of the state that action t leads to.
        next_continue: [B, H], c_t, the probability that the state that action t leads to is not terminal.
        gamma: discount of one step, in [0, 1].
        lambda_: λ, in [0, 1]. 0 is the one-step target; 1 is the sum of all rewards and the last value.

    Returns:
        [B, H].

    Raises:
        ValueError: the shapes differ, or are not [B, H] with H > 0.
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


def continues(rollouts: TensorDictBase) -> Tensor:
    """Probability that the state of each row of rollouts is not terminal, float [B, H + 1].

    Args:
        rollouts: [B, H + 1], with `continue` [B, H + 1, 1], that probability, or ("next", "terminated").
    """
    if "continue" in rollouts.keys():
        return rollouts["continue"].squeeze(-1).detach()
    continuation = (~rollouts["next", "terminated"].squeeze(-1)[:, :-1]).float()
    first = torch.ones_like(continuation[:, :1])  # the first state is real and not terminal
    return torch.cat([first, continuation], 1)


def discounted_weight(continuation: Tensor, gamma: float) -> Tensor:
    """Discounted probability that a rollout reaches row t: γ^t c_0 ... c_t, where c is `continuation` [B, H + 1]."""
    steps = torch.arange(continuation.shape[1], device=continuation.device, dtype=continuation.dtype)
    return gamma**steps * continuation.cumprod(1)
