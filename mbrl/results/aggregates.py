"""Aggregates of learning curves over several tasks, with 95 % intervals that hold with few runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import numpy as np

from mbrl.results.aggregate_metrics import (
    LEVELS,
    THRESHOLDS,
    comparable_levels,
    interquartile_mean,
    mean_over_steps,
    performance_profile,
    probability_of_improvement,
    steps_needed,
)
from mbrl.results.curves import SUBTASK, Curve, area, shared_range
from mbrl.results.intervals import (
    Estimate,
    Floats,
    Scores,
    estimate_improvement,
    estimate_ratio,
    estimate_share,
    estimate_success,
)

MIN_AGENTS = 2  # a comparison needs so many
MAX_FOR_ALL_PAIRS = 4  # agents; with more, each is compared with the baseline only, as the labels would overlap
MIN_SHARE = 0.05  # of the longest run: agents whose curves end by then are dropped
WARN_SHARE = 0.9  # of the longest run: a curve that ends before this, and shortens all others, causes a warning

log = logging.getLogger(__name__)


@dataclass
class Aggregates:
    """Aggregates over the tasks that all agents have in common.

    Attributes:
        tasks: names of these tasks.
        runs: agent -> number of runs of each task that are counted.
        end: last step at which all runs have data. The score of a run, which profile and improvement use, is its mean
            success until there: the success of the last evaluation alone does not separate agents on easy tasks, and
            its 20 episodes are few.
        interquartile_mean: agent -> interquartile mean of success over the steps.
        profile: agent -> share of runs whose score is above x.
        improvement: (one, other) -> P(score of a run of one > score of a run of other) on a random task. A single
            value; its x is 0.
        baseline: agent that the others are compared with in `steps_ratio` and, from 5 agents on, in `improvement`.
            By default the agent with the lowest area under its interquartile mean that reaches any level.
        steps_ratio: agent -> steps of the baseline over steps of the agent until the interquartile mean reaches x;
            NaN if one of the two does not. There is no interval where more than 2.5 % of the bootstrap samples of one
            never reach x.
    """

    tasks: list[str]
    runs: dict[str, int]
    end: float
    interquartile_mean: dict[str, Estimate] = field(default_factory=dict)
    profile: dict[str, Estimate] = field(default_factory=dict)
    improvement: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    baseline: str = ""
    steps_ratio: dict[str, Estimate] = field(default_factory=dict)


def aggregate(curves: Sequence[Curve], baseline: str | None = None) -> Aggregates | None:
    """Aggregate curves over tasks.

    The mean curve of a run with several tasks is not counted beside the curves of these tasks.

    Args:
        curves: curves of all agents, tasks and seeds.
        baseline: agent that all others are compared with; None for the weakest agent that succeeds at all.

    Returns:
        The aggregates. None, with a warning, if the agents have no task or no steps in common.
    """
    multi_task = {curve.task.split(SUBTASK)[0] for curve in curves if SUBTASK in curve.task}
    curves = _without_short_agents([curve for curve in curves if curve.task not in multi_task])
    agents, tasks = _shared_tasks(curves)
    curves = [curve for curve in curves if curve.task in tasks and curve.agent in agents]
    steps = _shared_steps(curves)
    if len(steps) == 0:
        log.warning("no aggregates over tasks: the agents have no task, or no steps of a task, in common")
        return None
    success = {agent: _success(agent, curves, tasks, steps) for agent in agents}
    result = Aggregates(tasks, {agent: one.runs for agent, one in success.items()}, float(steps[-1]))
    scores = {agent: replace(one, values=mean_over_steps(one.values, steps)) for agent, one in success.items()}
    for agent in agents:
        result.interquartile_mean[agent] = estimate_success(interquartile_mean, steps, success[agent])
        result.profile[agent] = estimate_share(performance_profile, THRESHOLDS, scores[agent])
    ranking = _ranking(result, steps)
    result.baseline = _baseline(result, ranking, baseline)
    every_pair = baseline is None and len(agents) <= MAX_FOR_ALL_PAIRS
    baseline_pairs = [(agent, result.baseline) for agent in ranking if agent != result.baseline]
    for one, other in combinations(ranking, 2) if every_pair else baseline_pairs:
        pair = (scores[one], scores[other])
        result.improvement[one, other] = estimate_improvement(probability_of_improvement, np.zeros(1), *pair)
    for one, other in baseline_pairs:
        levels = comparable_levels(success[one].values, success[other].values, steps)
        needed = partial(steps_needed, steps=steps, levels=levels)
        result.steps_ratio[one] = estimate_ratio(needed, LEVELS, success[one], success[other])
    return result


def _ranking(result: Aggregates, steps: Floats) -> list[str]:
    """The agents by the area under their interquartile mean, largest first."""
    means = result.interquartile_mean
    return sorted(means, key=lambda agent: -area(Curve("", agent, "", steps, means[agent].value)))


def _baseline(result: Aggregates, ranking: Sequence[str], requested: str | None) -> str:
    if requested in ranking:
        return str(requested)
    reaching = [agent for agent in ranking if result.interquartile_mean[agent].value.max() >= LEVELS[0]]
    weakest = (reaching or ranking)[-1]
    if requested is not None:
        log.warning("baseline %s is not among the agents that are compared over tasks: using %s", requested, weakest)
    return weakest


def _without_short_agents(curves: Sequence[Curve]) -> list[Curve]:
    """Drop agents whose curves end within the first 5 % of the x-axis.

    The aggregates end where the shortest agent does. A random policy has no gradient steps, and a cloned one no env
    steps: either would leave nothing to compare.
    """
    ends: dict[str, float] = {}
    for curve in curves:
        ends[curve.agent] = max(ends.get(curve.agent, 0.0), float(curve.steps[-1]))
    min_end = MIN_SHARE * max(ends.values(), default=0.0)
    for agent in sorted(ends):
        if ends[agent] <= min_end:
            log.warning("over tasks, %s is left out: its curves end at %g", agent, ends[agent])
    return [curve for curve in curves if ends[curve.agent] > min_end]


def _shared_tasks(curves: Sequence[Curve]) -> tuple[list[str], list[str]]:
    """The agents that are compared and the tasks that they have in common.

    Agents with the fewest tasks are dropped until there is such a task.
    """
    tasks: dict[str, set[str]] = {}
    for curve in curves:
        tasks.setdefault(curve.agent, set()).add(curve.task)
    agents = sorted(tasks, key=lambda agent: (-len(tasks[agent]), agent))
    every = set().union(*tasks.values())

    def common() -> set[str]:
        return set.intersection(*(tasks[agent] for agent in agents)) if agents else set()

    while len(agents) > MIN_AGENTS and not common():
        log.warning("over tasks, %s is left out: it has no task in common with the others", agents.pop())
    shared = common()
    if shared and shared < every:
        log.warning("over tasks, %s is left out: not every agent has it", ", ".join(sorted(every - shared)))
    return sorted(agents), sorted(shared)


def _shared_steps(curves: Sequence[Curve]) -> Floats:
    """The steps at which any run was evaluated, where all runs have data."""
    shared = shared_range(curves) if curves else None
    if shared is None:
        return np.zeros(0)
    first, last = shared
    shortest = min(curves, key=lambda curve: curve.steps[-1])
    if last < WARN_SHARE * max(curve.steps[-1] for curve in curves):
        run = (shortest.agent, shortest.task, shortest.seed)
        log.warning("over tasks, all runs count until %g only: there %s on %s, seed %s, ends", last, *run)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    return steps[(steps >= first) & (steps <= last)]


def _success(agent: str, curves: Sequence[Curve], tasks: Sequence[str], steps: Floats) -> Scores:
    """Success [runs, tasks, steps] of an agent. Every task counts with as many seeds as the task with the fewest."""
    by_task = {
        task: sorted((c for c in curves if (c.agent, c.task) == (agent, task)), key=lambda c: (len(c.seed), c.seed))
        for task in tasks
    }
    count = min(len(seeds) for seeds in by_task.values())
    for task, seeds in by_task.items():
        if left := [curve.seed for curve in seeds[count:]]:
            reason = f"another task has {count} only"
            log.warning("over tasks, %s on %s counts without seed %s: %s", agent, task, ", ".join(left), reason)
    values = [[np.interp(steps, c.steps, c.success) for c in seeds[:count]] for seeds in by_task.values()]
    folders = [[seeds[row].run for seeds in by_task.values()] for row in range(count)]
    joint = all(None not in row and len(set(row)) == 1 for row in folders)
    return Scores(np.array(values).swapaxes(0, 1), joint)
