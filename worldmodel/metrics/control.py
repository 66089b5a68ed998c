"""World-model metrics for control: rewards, success, gripper position and codebook use. Pure functions.

B segments, K samples of each, H steps, N values.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CENTIMETRES = 100.0  # in a metre
MOVING = 16 / 255  # least change of a channel for a pixel to count as moving; larger than rendering noise
# Ranges of the true reward [from, below): most random steps; on the way to success; at success.
LEVELS: Mapping[str, tuple[float, float]] = {"low": (-torch.inf, 2.0), "middle": (2.0, 8.0), "high": (8.0, torch.inf)}


def reward_error(predicted: Tensor, real: Tensor) -> Tensor:
    """Mean |r̂ - r| of each step [H], from predicted [B, K, H] and real rewards [B, H]."""
    return (predicted - real.unsqueeze(1)).abs().mean((0, 1))


@dataclass(frozen=True)
class Confusion:
    """Counts of predicted against true success; a rate is nan if its denominator is 0."""

    hits: int
    false_alarms: int
    misses: int
    rejections: int

    @property
    def precision(self) -> float:
        """Share of predicted successes that are true."""
        return _share(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of true successes that are predicted."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def hallucinated(self) -> float:
        """False-positive rate: share of the steps without success in which success is predicted."""
        return _share(self.false_alarms, self.false_alarms + self.rejections)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def confusion(predicted: Tensor, actual: Tensor) -> Confusion:
    """Confusion counts of two bool tensors, which are broadcast."""
    predicted, actual = torch.broadcast_tensors(predicted, actual)
    pairs = ((predicted & actual), (predicted & ~actual), (~predicted & actual), (~predicted & ~actual))
    return Confusion(*(int(pair.sum()) for pair in pairs))


def success_threshold(rewards: Tensor, success: Tensor) -> float:
    """Least reward that counts as a success: the threshold with the highest balanced accuracy.

    Args:
        rewards: real rewards [N]. success: bool [N], of the same steps.

    Returns:
        The midpoint between the two neighbouring rewards around the threshold.

    Raises:
        ValueError: all steps are successes, or none is.
    """
    successes = int(success.sum())
    if successes in (0, len(success)):
        raise ValueError(f"{successes} of {len(success)} real steps are successes: no reward tells them apart")
    ordered, order = rewards.double().sort()
    label = success[order].double()
    below = torch.cat([label.new_zeros(1), label.cumsum(0)])[:-1]  # successes below a threshold just under each reward
    rank = torch.arange(len(label), dtype=torch.float64, device=label.device)
    recall = 1 - below / successes
    specificity = (rank - below) / (len(label) - successes)
    fresh = torch.cat([torch.ones_like(success[:1]), ordered[1:] > ordered[:-1]])  # equal rewards cannot be separated
    best = int(torch.where(fresh, recall + specificity, -1.0).argmax())
    return float(ordered[best] if best == 0 else (ordered[best - 1] + ordered[best]) / 2)


def correlation(predicted: Tensor, real: Tensor) -> Tensor:
    """Pearson's correlation of two tensors of one shape, 0-d; nan if one of them is constant."""
    a, b = predicted.double().flatten(), real.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def at_level(real: Tensor, level: str) -> Tensor:
    """Whether each true reward is at a level of LEVELS, bool of the same shape."""
    low, high = LEVELS[level]
    return (real >= low) & (real < high)


def rank_correlations(predicted: Tensor, real: Tensor) -> Tensor:
    """Spearman's rank correlation of predicted and true returns, among the plans from each start.

    A model that predicts which starts are good, but not the effect of actions, has a correlation of 0. Ranks are used
    because the few starts whose predictions vary most would dominate a correlation of values.

    Args:
        predicted: returns [B, N] of N plans from each of B starts.
        real: true returns [B, N].

    Returns:
        One value for each start whose true returns differ. It is 0 if the predicted returns are all equal.
    """
    informative = (real != real[:, :1]).any(1)
    a, b = _centred_ranks(predicted[informative]), _centred_ranks(real[informative])
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)


def within_start_rank_correlation(predicted: Tensor, real: Tensor) -> Tensor:
    """Mean of `rank_correlations`, 0-d; nan if no start's true returns differ."""
    return rank_correlations(predicted, real).mean()


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks of values [B, N] within their row, minus the mean rank; equal values have the mean of their ranks."""
    below = (values[:, None, :] < values[:, :, None]).double().sum(2)
    equal = (values[:, None, :] == values[:, :, None]).double().sum(2)
    return below + (equal - values.shape[1]) / 2


def moving_psnr(predicted: Tensor, real: Tensor, last: Tensor) -> Tensor:
    """PSNR of the pixels that move, in dB, 0-d; nan if no pixel moves. Arguments as of `moving_error`."""
    error, count = moving_error(predicted, real, last)
    return decibels(error.sum() / count.sum())


def moving_error(predicted: Tensor, real: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the pixels that move.

    Args:
        predicted: frames uint8 [B, H, 3, R, R].
        real: real frames of the same shape.
        last: the last real frame before them, uint8 [B, 3, R, R]; a pixel moves if `real` differs from it.

    Returns:
        The sum of the squared error over the channels of these pixels, in [0, 1], and their number; each [B, H].
    """
    frames, target, still = predicted.float() / 255, real.float() / 255, last[:, None].float() / 255
    moving = ((target - still).abs() >= MOVING).any(2, keepdim=True).expand_as(target)
    error = torch.where(moving, (frames - target).square(), 0.0)
    return error.flatten(2).sum(2, dtype=torch.float64), moving.flatten(2).sum(2)


def decibels(mse: Tensor) -> Tensor:
    """PSNR of a mean squared error of values in [0, 1]."""
    return -10 * mse.log10()


def distance_cm(positions: Tensor, real: Tensor) -> Tensor:
    """Mean distance [H] of each step in cm, from positions [B, K, H, 3] and real positions [B, H, 3] in metres."""
    return CENTIMETRES * (positions - real.unsqueeze(1)).norm(dim=-1).mean((0, 1))


def codebook_usage(codes: Tensor, size: int) -> tuple[float, float]:
    """Share of a codebook's `size` codes that occur in `codes`, and the perplexity of their distribution."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return float((share > 0).double().mean()), float(torch.special.entr(share).sum().exp())
