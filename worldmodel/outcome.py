"""Outcomes of imagined rollouts for planners: rewards, last frames, terminations. R rollouts, H steps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Outcome(NamedTuple):
    """Result of imagined rollouts of R rows.

    Attributes:
        reward: float32 [R, H] in the units of the environment, 0 after a termination. None: the model predicts no
            reward.
        pixels: uint8 [R, F, 3, side, side], the last F frames. None: no frames were requested.
        terminated: bool [R], whether the rollout has terminated. None: the model predicts no terminations.
    """

    reward: Tensor | None
    pixels: Tensor | None
    terminated: Tensor | None = None


def rewards_until_termination(rewards: Sequence[Tensor | None], terminated: Sequence[Tensor | None]) -> Tensor | None:
    """Rewards [R, H] of rollouts, 0 after a termination; None if the model predicts no reward.

    Args:
        rewards: [R, 1] of each step, or None.
        terminated: bool [R, 1] of each step, whether it terminated the episode; None if that is not predicted.
    """
    known = [reward for reward in rewards if reward is not None]
    predicted = [step for step in terminated if step is not None]
    if not known or not predicted:
        return torch.cat(known, 1) if known else None
    before = torch.cat([torch.zeros_like(predicted[0]), *predicted[:-1]], 1).cumsum(1) > 0
    return torch.cat(known, 1).masked_fill(before, 0.0)


def any_terminated(terminated: Sequence[Tensor | None]) -> Tensor | None:
    """Whether each rollout has terminated, bool [R]; arguments as of `rewards_until_termination`."""
    predicted = [step for step in terminated if step is not None]
    return torch.cat(predicted, 1).any(1) if predicted else None
