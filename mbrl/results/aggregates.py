"""What learning curves say over several tasks: Agarwal et al. 2021 (arXiv 2108.13264), by their rliable.

Every interval is a 95 % percentile interval of the stratified bootstrap: whole runs are drawn again within each task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from rliable.library import get_interval_estimates
from scipy.stats import trim_mean

from mbrl.results.curves import OF_SEVERAL, Curve, Floats, area

Ints = NDArray[np.int64]

RESAMPLES = 2000
PAIR = 2  # agents, the fewest that are compared
HARDLY = 0.05  # of the longest run: an agent that ends by then counts for nothing over the tasks
LEVELS = np.linspace(0.05, 1.0, 20)  # of success, for the ratio of steps
FAR = 0.9  # a curve that ends before this share of the longest is worth a warning
THRESHOLDS = np.linspace(0.0, 1.0, 21)  # of success, for the performance profile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """Values [N] at x [N] between the ends of their interval [N]; these are nan where one run alone gives none."""

    x: Floats
    value: Floats
    low: Floats
    high: Floats


@dataclass
class Aggregates:
    """What is said over `tasks`, the ones that every agent has.

    Attributes:
        runs: agent -> runs of each task that count.
        end: the steps of the last evaluation that all have. A run's score, which profile and improvement are of, is its
            mean success until there: at the end alone easy tasks tell nothing apart, and 20 episodes are few.
        interquartile_mean: agent -> mean of the middle half of all runs' success, over the steps.
        profile: agent -> share of runs whose score is above x.
        improvement: (one, other) -> probability that a run of one has a higher score than one of other, on a random
            task; equals count half. A single value, its x 0.
        baseline: the agent with the smallest area under its interquartile mean, of those that reach any level.
        steps_ratio: agent -> how many times fewer steps than the baseline its interquartile mean needs to reach x; nan
            where one of them does not.
    """

    tasks: list[str]
    runs: dict[str, int]
    end: float
    interquartile_mean: dict[str, Estimate] = field(default_factory=dict)
    profile: dict[str, Estimate] = field(default_factory=dict)
    improvement: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    baseline: str = ""
    steps_ratio: dict[str, Estimate] = field(default_factory=dict)


def aggregate(curves: Sequence[Curve]) -> Aggregates | None:
    """None, with a warning, where the agents have no task in common, or their curves no steps.

    The mean curve of a run with several tasks does not count beside those of its tasks.
    """
    several = {curve.task.split(OF_SEVERAL)[0] for curve in curves if OF_SEVERAL in curve.task}
    curves = _with_extent([curve for curve in curves if curve.task not in several])
    agents, tasks = _shared_tasks(curves)
    curves = [curve for curve in curves if curve.task in tasks and curve.agent in agents]
    steps = _shared_steps(curves)
    if len(steps) == 0:
        log.warning("nothing is said over the tasks: these agents have none in common, or no steps of them")
        return None
    scores = {agent: _scores(agent, curves, tasks, steps) for agent in agents}
    result = Aggregates(tasks, {agent: len(its.values) for agent, its in scores.items()}, float(steps[-1]))
    means = {agent: replace(its, values=_mean_over_steps(its.values, steps)) for agent, its in scores.items()}
    for agent in agents:
        result.interquartile_mean[agent] = _estimate(_interquartile_mean, steps, scores[agent])
        result.profile[agent] = _estimate(_profile, THRESHOLDS, means[agent])
    areas = {agent: area(Curve("", agent, "", steps, its.value)) for agent, its in result.interquartile_mean.items()}
    agents.sort(key=lambda agent: -areas[agent])
    reaching = [agent for agent in agents if result.interquartile_mean[agent].value.max() >= LEVELS[0]]
    result.baseline = (reaching or agents)[-1]
    for one, other in combinations(agents, 2):
        result.improvement[one, other] = _estimate(_probability_of_improvement, np.zeros(1), means[one], means[other])
    for agent in (agent for agent in agents if agent != result.baseline):
        ratio = _StepsRatio(steps)
        result.steps_ratio[agent] = _estimate(ratio, LEVELS, scores[agent], scores[result.baseline])
    return result


def _with_extent(curves: Sequence[Curve]) -> list[Curve]:
    """Without the agents that are hardly on the axis, as a random policy is on that of gradient steps, and a clone on
    that of env steps: where they end, nothing would be said of the others.
    """
    ends: dict[str, float] = {}
    for curve in curves:
        ends[curve.agent] = max(ends.get(curve.agent, 0.0), float(curve.steps[-1]))
    least = HARDLY * max(ends.values(), default=0.0)
    for agent in sorted(ends):
        if ends[agent] <= least:
            log.warning("over the tasks, %s is left out, as it ends at %g", agent, ends[agent])
    return [curve for curve in curves if ends[curve.agent] > least]


def _shared_tasks(curves: Sequence[Curve]) -> tuple[list[str], list[str]]:
    """The agents that are compared and the tasks that they have in common.

    Agents with the fewest tasks are left out for as long as there is no such task.
    """
    of_each: dict[str, set[str]] = {}
    for curve in curves:
        of_each.setdefault(curve.agent, set()).add(curve.task)
    agents = sorted(of_each, key=lambda agent: (-len(of_each[agent]), agent))
    every = set().union(*of_each.values())

    def common() -> set[str]:
        return set.intersection(*(of_each[agent] for agent in agents)) if agents else set()

    while len(agents) > PAIR and not common():
        log.warning("over the tasks, %s is left out, as the agents have none in common with it", agents.pop())
    shared = common()
    if shared and shared < every:
        log.warning("over the tasks, %s is left out, as not every agent has it", ", ".join(sorted(every - shared)))
    return sorted(agents), sorted(shared)


def _shared_steps(curves: Sequence[Curve]) -> Floats:
    """The steps at which any was evaluated, where all have data."""
    if not curves:
        return np.zeros(0)
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    shortest = min(curves, key=lambda curve: curve.steps[-1])
    if last < FAR * max(curve.steps[-1] for curve in curves):
        where = (shortest.agent, shortest.task, shortest.seed)
        log.warning("over the tasks, all count until %g alone, where %s on %s, seed %s, ends", last, *where)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    return steps[(steps >= first) & (steps <= last)]


@dataclass(frozen=True)
class Scores:
    """Scores [runs, tasks, ...] of an agent; `joint`: the tasks of a row are those of one run, and drawn together."""

    values: Floats
    joint: bool


def _scores(agent: str, curves: Sequence[Curve], tasks: Sequence[str], steps: Floats) -> Scores:
    """Success [runs, tasks, steps]: of each task the first seeds, as many as the task with the fewest has."""
    of_task = {
        task: sorted((c for c in curves if (c.agent, c.task) == (agent, task)), key=lambda c: c.seed) for task in tasks
    }
    count = min(len(its) for its in of_task.values())
    if any(len(its) > count for its in of_task.values()):
        log.warning("over the tasks, %d of a task count for %s, as one task has no more runs", count, agent)
    values = [[np.interp(steps, c.steps, c.success) for c in its[:count]] for its in of_task.values()]
    runs = [[its[row].run for its in of_task.values()] for row in range(count)]
    joint = all(None not in row and len(set(row)) == 1 for row in runs)
    return Scores(np.array(values).swapaxes(0, 1), joint)


def _mean_over_steps(scores: Floats, steps: Floats) -> Floats:
    """[runs, tasks, steps] -> [runs, tasks], joined by straight lines between the steps."""
    if len(steps) == 1:
        return scores[..., 0]
    return np.asarray(np.trapezoid(scores, steps, axis=-1) / (steps[-1] - steps[0]))


def _profile(scores: Floats) -> Floats:
    """[runs, tasks] -> [thresholds]"""
    return np.asarray((scores[..., None] > THRESHOLDS).mean(axis=(0, 1)))


def _interquartile_mean(scores: Floats) -> Floats:
    """[runs, tasks, steps] -> [steps]"""
    return np.asarray(trim_mean(scores.reshape(-1, scores.shape[-1]), proportiontocut=0.25, axis=0))


def _probability_of_improvement(one: Floats, other: Floats) -> Floats:
    """[runs, tasks] twice -> [1]"""
    difference = one[:, None] - other[None]
    return np.array([(difference > 0).mean() + (difference == 0).mean() / 2])


class _StepsRatio:
    """[runs, tasks, steps] twice -> [levels]: steps of the other over steps of the one to reach each level.

    nan where the runs do not reach a level, or had it at the first evaluation, so that it is not known when. A
    bootstrap sample that does not reach one that the runs do counts with the last step, one that begins above it with
    the first.
    """

    def __init__(self, steps: Floats) -> None:
        self.steps = steps
        self._first = steps[steps > 0].min(initial=np.inf)
        self._reached: NDArray[np.bool_] | None = None

    def __call__(self, one: Floats, other: Floats) -> Floats:
        needed = [self._needed(_interquartile_mean(scores)) for scores in (one, other)]
        if self._reached is None:  # the first call is on the runs themselves
            self._reached = np.isfinite(needed[0] + needed[1]) & (np.minimum(*needed) > self.steps[0])
        known = [np.where(np.isfinite(its), its, self.steps[-1]) for its in needed]
        fewer, more = (np.where(its > self.steps[0], its, self._first) for its in known)
        return np.where(self._reached, more / fewer, np.nan)

    def _needed(self, mean: Floats) -> Floats:
        """The steps at which a curve [steps] first reaches each level, joined by straight lines; nan: never."""
        highest = np.maximum.accumulate(mean)
        after = np.searchsorted(highest, LEVELS - 1e-9)
        reached = after < len(mean)
        after = np.minimum(after, len(mean) - 1)
        before = np.maximum(after - 1, 0)
        rise = mean[after] - mean[before]
        share = np.where(rise > 0, (LEVELS - mean[before]) / np.where(rise > 0, rise, 1.0), 0.0)
        at = self.steps[before] + share * (self.steps[after] - self.steps[before])
        return np.where(reached, at, np.nan)


def _estimate(function: Callable[..., Floats], x: Floats, *scores: Scores) -> Estimate:
    """A function of the scores [runs, tasks, ...] of one or more agents, with its interval."""
    # rliable draws each number of an array by itself: indices of runs are drawn instead, so that runs stay whole
    strata = [1 if its.joint else its.values.shape[1] for its in scores]
    indices = [np.tile(np.arange(len(its.values))[:, None], (1, n)) for its, n in zip(scores, strata, strict=True)]

    def of_drawn(*drawn: Ints) -> Floats:
        chosen = zip(scores, drawn, strict=True)
        return function(*(its.values[rows, np.arange(its.values.shape[1])] for its, rows in chosen))

    with _seeded():
        values, intervals = get_interval_estimates({"": indices}, of_drawn, reps=RESAMPLES)
    alone = any(len(its.values) < 2 for its in scores)
    low, high = np.full((2, len(x)), np.nan) if alone else intervals[""]
    return Estimate(x, values[""], low, high)


@contextmanager
def _seeded() -> Iterator[None]:
    """rliable draws from numpy's global generator, whatever `random_state` it is given."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
