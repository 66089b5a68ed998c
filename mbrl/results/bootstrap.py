"""Stratified bootstrap over runs, vectorised: 95 % percentile intervals of any function of scores.

Whole runs are drawn with replacement, within each task (Agarwal et al. 2021, arXiv 2108.13264, Section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mbrl.results.curves import Floats

RESAMPLES = 2000
CHUNK = 100  # bootstrap samples computed at a time, which bounds memory


@dataclass(frozen=True)
class Scores:
    """Scores of one agent.

    Attributes:
        values: [runs, tasks, ...].
        joint: whether the tasks of a row were learned in one run. They are then drawn together.
    """

    values: Floats
    joint: bool


@dataclass(frozen=True)
class Estimate:
    """Values [N] at x [N] with the ends of their 95 % intervals [N], which are NaN if an agent has a single run."""

    x: Floats
    value: Floats
    low: Floats
    high: Floats


def estimate(function: Callable[..., Floats], x: Floats, *scores: Scores) -> Estimate:
    """Evaluate a function of the scores of one or more agents, with bootstrap intervals.

    Args:
        function: maps one array [..., runs, tasks, ...] for each agent to [..., N]. Leading axes are samples.
        x: positions of the N values, [N].
        scores: scores of each agent.
    """
    value = function(*(one.values for one in scores))
    if any(len(one.values) < 2 for one in scores):
        low, high = np.full((2, len(x)), np.nan)
    else:
        samples = np.concatenate([function(*chunk) for chunk in _resampled(scores)])
        low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return Estimate(x, value, low, high)


def _resampled(scores: Sequence[Scores]) -> Iterator[list[Floats]]:
    """Bootstrap samples [CHUNK, runs, tasks, ...] of each agent, RESAMPLES in all. The same scores give the same."""
    generator = np.random.default_rng(0)
    for first in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - first)
        yield [_draw(one, count, generator) for one in scores]


def _draw(scores: Scores, count: int, generator: np.random.Generator) -> Floats:
    runs, tasks = scores.values.shape[:2]
    rows = generator.integers(runs, size=(count, runs, 1 if scores.joint else tasks))
    return np.asarray(scores.values[rows, np.arange(tasks)])
