"""Scores of policies in a world model beside the real ones. Pure functions. N episodes, M checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from mbrl.results.intervals import QUANTILE, least_chance, spearman_interval
from worldmodel.metrics.control import Confusion, confusion, success_threshold

FEW = 10  # checkpoints, below which a rank correlation says little
RELIABLE = 0.9  # share of the real successes, and of the real failures, that a threshold must tell


class Episodes(NamedTuple):
    """Episodes of one checkpoint, from the same starts in both worlds; each [N].

    Attributes:
        real_return, imagined_return: undiscounted, over the steps that were imagined.
        real_peak, imagined_peak: the highest reward of these steps.
        success: whether one of the real steps solved the task.
    """

    real_return: Tensor
    imagined_return: Tensor
    real_peak: Tensor
    imagined_peak: Tensor
    success: Tensor


class SuccessRule(NamedTuple):
    """How success is inferred from the rewards of an episode: its highest reward reaches a threshold.

    Attributes:
        threshold: None: success cannot be inferred from rewards here.
        recall, false_alarms: shares of the real successes and of the real failures that are taken for a success, with
            a threshold that was fitted without the episode; nan where it was not tried.
        reason: why there is no threshold; "" where there is one.
    """

    threshold: float | None
    recall: float = math.nan
    false_alarms: float = math.nan
    reason: str = ""


class Score(NamedTuple):
    """Scores of one checkpoint; nan for what is not known.

    Attributes:
        real_return, imagined_return: means over the episodes.
        real_return_error, imagined_return_error: their standard errors; nan of a single episode.
        real_success, imagined_success: shares of the episodes.
        hallucinated: share of the imagined successes whose real episode, from the same start, failed.
        missed: share of the real successes whose imagined episode failed.
    """

    real_return: float
    real_return_error: float
    imagined_return: float
    imagined_return_error: float
    real_success: float
    imagined_success: float
    hallucinated: float
    missed: float


class Correlation(NamedTuple):
    """Spearman's rank correlation over M checkpoints with its 95 % interval.

    All are nan, with a reason, where there is no correlation. The interval alone is nan where even full agreement would
    be no evidence of one.
    """

    value: float
    low: float
    high: float
    checkpoints: int
    reason: str = ""


def success_rule(peaks: Tensor, success: Tensor) -> SuccessRule:
    """Find the threshold that tells successful from failed episodes, and check it on the same real episodes.

    Each episode is judged by a threshold that was fitted to all others (leave-one-out).

    Args:
        peaks: the highest reward of each real episode [N].
        success: bool [N].
    """
    successes, count = int(success.sum()), len(success)
    if min(successes, count - successes) < 2:
        reason = f"{successes} of {count} real episodes succeed, and a threshold needs two of each kind"
        return SuccessRule(None, reason=reason)
    others = ~torch.eye(count, dtype=torch.bool)
    judged = [peaks[row] >= success_threshold(peaks[keep], success[keep]) for row, keep in enumerate(others)]
    counts = confusion(torch.stack(judged), success)
    if counts.recall < RELIABLE or counts.hallucinated > 1 - RELIABLE:
        reason = (
            f"the highest reward of a real episode does not tell success: a threshold finds {counts.recall:.0%} of the "
            f"successes and takes {counts.hallucinated:.0%} of the failures for one"
        )
        return SuccessRule(None, counts.recall, counts.hallucinated, reason)
    return SuccessRule(success_threshold(peaks, success), counts.recall, counts.hallucinated)


def score(episodes: Episodes, rule: SuccessRule) -> Score:
    """The scores of a checkpoint."""
    returns = (*_mean(episodes.real_return), *_mean(episodes.imagined_return))
    real = float(episodes.success.float().mean())
    if rule.threshold is None:
        return Score(*returns, real, math.nan, math.nan, math.nan)
    counts = outcomes(episodes, rule.threshold)
    imagined = (counts.hits + counts.false_alarms) / len(episodes.success)
    return Score(*returns, real, imagined, 1 - counts.precision, 1 - counts.recall)


def outcomes(episodes: Episodes, threshold: float) -> Confusion:
    """Imagined successes against real ones, episode by episode."""
    return confusion(episodes.imagined_peak >= threshold, episodes.success)


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return float(values.mean()), error


def correlate(real: Sequence[float], imagined: Sequence[float]) -> Correlation:
    """Rank the checkpoints by two figures [M] each."""
    count = len(real)
    if np.isnan(imagined).any():
        return Correlation(math.nan, math.nan, math.nan, count, "imagined success is not known")
    for name, values in (("really", real), ("in imagination", imagined)):
        if len(set(values)) < 2:
            return Correlation(math.nan, math.nan, math.nan, count, f"all checkpoints are alike {name}")
    value = float(spearmanr(real, imagined).statistic)
    if least_chance(real, imagined) > 1 - QUANTILE:  # Few checkpoints, or many ties, agree fully by chance.
        return Correlation(value, math.nan, math.nan, count)
    return Correlation(value, *spearman_interval(value, count), count)
