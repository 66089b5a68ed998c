"""Outcomes of imagined rollouts (rewards, last frames, terminations), for planners. R rollouts, H steps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Outcome(NamedTuple):
    """Result of imagined rollouts of R rows.

    Attributes:
        reward: float32 [R, H] in the units of the environment, 0 after a termination. None: the model predicts no
            reward.
        pixels: uint8 [R, F, 3, side, side], the last F frames that were requested. None: none was.
        ended: bool [R], whether the rollout has terminated. None: the model predicts no terminations.
    """

    reward: Tensor | None
    pixels: Tensor | None
    ended: Tensor | None = None


def rewards_until_end(rewards: Sequence[Tensor | None], ends: Sequence[Tensor | None]) -> Tensor | None:
    """The rewards [R, H] of rollouts, 0 after a termination; None where there are none.

    Args:
        rewards: [R, 1] of each step, or None.
        ends: bool [R, 1] of each step, whether it terminated the episode; or None, where that is not predicted.
    """
    known = [reward for reward in rewards if reward is not None]
    ended = [end for end in ends if end is not None]
    if not known or not ended:
        return torch.cat(known, 1) if known else None
    before = torch.cat([torch.zeros_like(ended[0]), *ended[:-1]], 1).cumsum(1) > 0
    return torch.cat(known, 1).masked_fill(before, 0.0)


def ended_within(ends: Sequence[Tensor | None]) -> Tensor | None:
    """Whether each rollout has terminated, bool [R], from the `ends` of its steps; None where that is not predicted."""
    ended = [end for end in ends if end is not None]
    return torch.cat(ended, 1).any(1) if ended else None
