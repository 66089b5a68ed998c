"""Metrics over several tasks (Agarwal et al. 2021, arXiv 2108.13264), as functions of arrays.

Leading axes `...` are bootstrap samples. The tests compare the metrics with those of rliable, the authors' library.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mbrl.results.intervals import Floats

LEVELS = np.linspace(0.05, 1.0, 20)  # success rates for the ratio of steps
THRESHOLDS = np.linspace(0.0, 1.0, 21)  # success rates for the performance profile
TRIMMED = 0.25  # share of the scores that the interquartile mean drops at each end


def interquartile_mean(scores: Floats) -> Floats:
    """Mean of the middle half of the scores of all runs and tasks: [..., runs, tasks, steps] -> [..., steps]."""
    pooled = scores.reshape(*scores.shape[:-3], -1, scores.shape[-1])
    count = pooled.shape[-2]
    cut = int(TRIMMED * count)
    ordered = np.partition(pooled, (cut, count - cut - 1), axis=-2)
    return np.asarray(ordered[..., cut : count - cut, :].mean(axis=-2))


def mean_over_steps(scores: Floats, steps: Floats) -> Floats:
    """Mean success over the steps, by linear interpolation: [..., steps] -> [...]."""
    if len(steps) == 1:
        return scores[..., 0]
    return np.asarray(np.trapezoid(scores, steps, axis=-1) / (steps[-1] - steps[0]))


def performance_profile(scores: Floats) -> Floats:
    """Share of runs whose score is above each threshold: [..., runs, tasks] -> [..., thresholds]."""
    return np.asarray((scores[..., None] > THRESHOLDS).mean(axis=(-3, -2)))


def probability_of_improvement(one: Floats, other: Floats) -> Floats:
    """P(score of one > score of other) on a random task; ties count half: [..., runs, tasks] twice -> [..., 1]."""
    difference = one[..., :, None, :] - other[..., None, :, :]
    return np.asarray(((difference > 0) + (difference == 0) / 2).mean(axis=(-3, -2, -1))[..., None])


def steps_to_levels(mean: Floats, steps: Floats) -> Floats:
    """Steps at which curves first reach each level, by linear interpolation: [..., steps] -> [..., levels].

    NaN if a curve does not reach the level.
    """
    highest = np.maximum.accumulate(mean, axis=-1)
    after = (highest[..., None, :] < LEVELS[:, None] - 1e-9).sum(axis=-1)  # first evaluation at or above each level
    reached = after < len(steps)
    after = np.minimum(after, len(steps) - 1)
    before = np.maximum(after - 1, 0)
    start = np.take_along_axis(mean, before, axis=-1)
    rise = np.take_along_axis(mean, after, axis=-1) - start
    share = np.where(rise > 0, (LEVELS - start) / np.where(rise > 0, rise, 1.0), 0.0)
    return np.where(reached, steps[before] + share * (steps[after] - steps[before]), np.nan)


def comparable_levels(one: Floats, other: Floats, steps: Floats) -> NDArray[np.bool_]:
    """Which levels both agents reach after their first evaluation, so that it is known when: [levels].

    Args:
        one, other: success of the two agents, [runs, tasks, steps].
        steps: [steps].
    """
    needed = [steps_to_levels(interquartile_mean(scores), steps) for scores in (one, other)]
    return np.isfinite(needed[0] + needed[1]) & (np.minimum(*needed) > steps[0])


def steps_needed(scores: Floats, steps: Floats, levels: NDArray[np.bool_]) -> Floats:
    """Steps until the interquartile mean reaches each level.

    Args:
        scores: success of an agent, [..., runs, tasks, steps].
        steps: [steps].
        levels: `comparable_levels` of the runs themselves, [levels]. A bootstrap sample that starts above one of these
            counts with the first step.

    Returns:
        [..., levels]: inf where a level is never reached, NaN at levels that are not comparable.
    """
    needed = steps_to_levels(interquartile_mean(scores), steps)
    needed = np.where(np.isfinite(needed), needed, np.inf)
    needed = np.where(needed > steps[0], needed, steps[steps > 0].min(initial=np.inf))
    return np.where(levels, needed, np.nan)
