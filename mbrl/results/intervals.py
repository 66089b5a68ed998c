"""95 % confidence intervals that hold with few runs. Those of the percentile bootstrap are too narrow there.

- Mean success, interquartile mean and ratio of steps have Student's t interval. Its standard error comes from a
  bootstrap: whole runs are drawn with replacement, within each task (Agarwal et al. 2021, arXiv 2108.13264, Section
  4.1). Its degrees of freedom are those of Satterthwaite (1946, Biometrics Bulletin 2, 110): few where the runs of one
  task differ much more than those of the others.
- Shares of runs and probabilities of improvement have a score interval: all values that a two-sided test does not
  reject. It has a width also where all runs agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Floats = NDArray[np.float64]

QUANTILE = 0.975  # of the t or normal distribution: the upper end of a two-sided 95 % interval
RESAMPLES = 2000
TINY = np.finfo(float).tiny
CHUNK = 100  # bootstrap samples computed at a time, which bounds memory
PROBABILITIES = np.linspace(0.0, 1.0, 10001)  # candidates for the ends of score intervals


@dataclass(frozen=True)
class Scores:
    """Scores of one agent.

    Attributes:
        values: [runs, tasks, ...].
        joint: whether the tasks of a row were learned in one run. They are then drawn together.
    """

    values: Floats
    joint: bool

    @property
    def runs(self) -> int:
        """Number of runs of each task."""
        return len(self.values)

    @property
    def strata(self) -> int:
        """Number of tasks with runs of their own: 1 if the tasks of a row were learned in one run."""
        return 1 if self.joint else self.values.shape[1]


@dataclass(frozen=True)
class Estimate:
    """Values [N] at x [N] with the ends of their 95 % intervals [N], which are NaN where there is no interval."""

    x: Floats
    value: Floats
    low: Floats
    high: Floats


def mean_interval(values: Floats, within: tuple[float, float] = (0.0, 1.0)) -> tuple[Floats, Floats, Floats]:
    """Mean over runs with its t interval.

    Args:
        values: success rates of the runs, or another metric, [runs, ...].
        within: range of the metric.

    Returns:
        Mean, lower and upper end of the interval within that range, each [...]. The ends of a single run are NaN.
    """
    mean = values.mean(axis=0)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    margin = stdtrit(len(values) - 1, QUANTILE) * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return mean, np.maximum(mean - margin, within[0]), np.minimum(mean + margin, within[1])


def estimate_success(function: Callable[[Floats], Floats], x: Floats, scores: Scores) -> Estimate:
    """A mean of success rates, such as the interquartile mean, with its t interval within [0, 1].

    Args:
        function: maps [..., runs, tasks, ...] to means [..., N]. Leading axes are bootstrap samples.
        x: positions of the N values, [N].
        scores: scores of the agent.
    """
    value = function(scores.values)
    if scores.runs < 2:
        return _without_interval(x, value)
    error, freedom = _spread(function, scores)
    margin = stdtrit(freedom, QUANTILE) * error
    return Estimate(x, value, np.maximum(value - margin, 0.0), np.minimum(value + margin, 1.0))


def estimate_ratio(function: Callable[[Floats], Floats], x: Floats, one: Scores, other: Scores) -> Estimate:
    """Ratio of a positive quantity of the other agent to that of the one, with Welch's t interval of its logarithm.

    There is no interval where more than 2.5 % of an agent's bootstrap samples have no quantity: how far it varies is
    not known there.

    Args:
        function: maps [..., runs, tasks, ...] to the quantity, [..., N]; inf where there is none, such as the steps to
            a success rate that is never reached. Leading axes are bootstrap samples.
        x: positions of the N values, [N].
        one, other: scores of the two agents.
    """
    value = function(other.values) / function(one.values)
    if min(one.runs, other.runs) < 2:
        return _without_interval(x, value)
    spread = partial(_spread, lambda sample: np.log(function(sample)))
    (error, freedom), (other_error, other_freedom) = spread(one), spread(other)
    variance = error**2 + other_error**2
    share = error**2 / np.maximum(variance, TINY)  # 0 if both agents have equal runs
    freedom = 1 / (share**2 / freedom + (1 - share) ** 2 / other_freedom)  # Welch–Satterthwaite
    factor = np.exp(stdtrit(freedom, QUANTILE) * np.sqrt(variance))
    return Estimate(x, value, value / factor, value * factor)


def estimate_share(function: Callable[[Floats], Floats], x: Floats, scores: Scores) -> Estimate:
    """A share of runs with its score interval (Wilson 1927).

    It is wider than necessary where the tasks have unequal shares, or where the tasks of one run differ.

    Args:
        function: maps [runs, tasks, ...] to shares [N].
        x: positions of the N values, [N].
        scores: scores of the agent.
    """
    value = function(scores.values)
    if scores.runs < 2:
        return _without_interval(x, value)
    variance = PROBABILITIES * (1 - PROBABILITIES) / (scores.runs * scores.strata)
    return Estimate(x, value, *_score_interval(value, variance))


def estimate_improvement(
    function: Callable[[Floats, Floats], Floats], x: Floats, one: Scores, other: Scores
) -> Estimate:
    """A probability of improvement, mean over tasks, with its score interval.

    The variance is that of method 5 of Newcombe 2006 (Statistics in Medicine 25, 559), divided by the number of tasks
    with runs of their own. The continuity correction is half a step of the estimate. Without it, three runs that all
    beat three others would exclude 0.5, which happens in one of ten studies of two equal agents.

    Args:
        function: maps two arrays [runs, tasks] to probabilities [N].
        x: positions of the N values, [N].
        one, other: scores of the two agents.
    """
    value = function(one.values, other.values)
    if min(one.runs, other.runs) < 2:
        return _without_interval(x, value)
    pairs = one.runs * other.runs * min(one.strata, other.strata)
    theta, others = PROBABILITIES, (one.runs + other.runs) / 2 - 1
    variance = theta * (1 - theta) * (1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / pairs
    return Estimate(x, value, *_score_interval(value, variance, correction=0.5 / pairs))


def _without_interval(x: Floats, value: Floats) -> Estimate:
    return Estimate(x, value, np.full_like(value, np.nan), np.full_like(value, np.nan))


def _score_interval(value: Floats, variance: Floats, correction: float = 0.0) -> tuple[Floats, Floats]:
    """First and last of PROBABILITIES that are within the 95 % range of the values [N], given the variance at each."""
    margin = ndtri(QUANTILE) * np.sqrt(variance) + correction
    within = np.abs(value[:, None] - PROBABILITIES) <= margin
    return PROBABILITIES[within.argmax(axis=1)], PROBABILITIES[::-1][within[:, ::-1].argmax(axis=1)]


def _spread(function: Callable[[Floats], Floats], scores: Scores) -> tuple[Floats, Floats]:
    """Standard error [N] of a function of the runs, and its degrees of freedom [N]: n - 1 for n runs of one task.

    n - 1 also where the runs of a single task differ; tasks * (n - 1) where those of all tasks differ alike.
    """
    error, least = _standard_error(function, scores), scores.runs - 1
    if scores.strata == 1:
        return error, np.full_like(error, least)
    of_each = np.stack([_standard_error(function, scores, task) ** 2 for task in range(scores.strata)])
    effective = of_each.sum(axis=0) ** 2 / np.maximum((of_each**2).sum(axis=0), TINY)
    return error, least * np.maximum(effective, 1.0)


def _standard_error(function: Callable[[Floats], Floats], scores: Scores, task: int | None = None) -> Floats:
    """Standard deviation of a function over bootstrap samples of all tasks, or of one; see `estimate_ratio` for inf.

    The bootstrap alone would make it too small by sqrt((n - 1) / n) for n runs.
    """
    samples = np.concatenate([function(chunk) for chunk in _resampled(scores, task)])
    lost = np.isinf(samples)
    largest = np.where(lost, -np.inf, samples).max(axis=0)
    largest[np.isinf(largest)] = 0.0  # All samples are lost.
    error = np.where(lost, largest, samples).std(axis=0) * np.sqrt(scores.runs / (scores.runs - 1))
    return np.where(lost.mean(axis=0) > 1 - QUANTILE, np.nan, error)


def _resampled(scores: Scores, task: int | None) -> Iterator[Floats]:
    """Bootstrap samples [CHUNK, runs, tasks, ...], RESAMPLES in all. The same scores give the same.

    Args:
        scores: what is drawn from.
        task: the only task whose runs are drawn; those of the others stay. None: all tasks.
    """
    generator = np.random.default_rng(0)
    runs, tasks = scores.values.shape[:2]
    for first in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - first)
        rows = generator.integers(runs, size=(count, runs, 1 if scores.joint else tasks))
        if task is not None:
            others = np.arange(tasks) != task
            rows[..., others] = np.arange(runs)[:, None]
        yield scores.values[rows, np.arange(tasks)]


def spearman_interval(value: float, count: int) -> tuple[float, float]:
    """95 % interval of Spearman's rank correlation, from Fisher's z with the variance of Bonett and Wright (2000).

    The value is moved outwards by half the least difference between two rank correlations of so many pairs. Without
    this continuity correction, four pairs in the same order by chance would have an interval that excludes 0.

    Args:
        value: the rank correlation, in [-1, 1].
        count: number of pairs.

    Returns:
        Lower and upper end; NaN for fewer than four pairs.
    """
    if count < 4:
        return float("nan"), float("nan")
    half_step = 6 / (count * (count**2 - 1))
    ends = []
    for sign in (-1.0, 1.0):
        moved = value + sign * half_step
        if abs(moved) >= 1:
            ends.append(sign)
            continue
        margin = ndtri(QUANTILE) * np.sqrt((1 + moved**2 / 2) / (count - 3))
        ends.append(float(np.tanh(np.arctanh(moved) + sign * margin)))
    return ends[0], ends[1]


def least_chance(one: Sequence[float], other: Sequence[float]) -> float:
    """Probability that a random order of one sample [M] agrees with the other [M], or opposes it, as far as ties allow.

    No order of them is less likely. Where this is more than 1 - QUANTILE, no rank correlation is significant.
    """
    rising, orders = sorted(other), factorial(len(one))

    def chance(first: list[float], second: list[float]) -> float:
        tied = prod(factorial(size) for sample in (first, second) for size in Counter(sample).values())
        return tied / (prod(map(factorial, Counter(zip(first, second, strict=True)).values())) * orders)

    return min(chance(sorted(one), rising), chance(sorted(one), rising[::-1]))
