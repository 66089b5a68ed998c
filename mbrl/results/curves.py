"""Learning curves as data, and their mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mbrl.results.intervals import Floats, mean_interval

SUBTASK = " · "  # joins the name of a multi-task environment and the name of one of its tasks
PUBLISHED = " (published)"  # suffix of the names of agents whose curves were published elsewhere
# x-axes: column of metrics.jsonl -> label, and the number of the column's units in one unit of the axis
AXES = {"env_steps": ("env steps", 1.0), "gradient_steps": ("gradient steps", 1.0), "wall_time": ("hours", 3600.0)}


# y-axes: column of a CSV file -> label, and the range of its values
METRICS = {"success": ("success rate", (0.0, 1.0)), "return": ("return", (-np.inf, np.inf))}


@dataclass(frozen=True)
class Curve:
    """Success rate, or another metric, of one seed over an x-axis.

    Attributes:
        task: name of the task.
        agent: name of the agent, which distinguishes it from agents with other settings.
        seed: seed of the run.
        steps: positions on the x-axis, strictly increasing, [N]. Env steps unless another of AXES was read.
        success: success rates in [0, 1], [N], or the values of another metric.
        run: folder of the run. None if the curve was read from a CSV file.
        truncated: whether the last point was interpolated where the curve was cut, and is no evaluation.
        metric: a key of METRICS.
        protocol: name of the protocol, one of configs/protocol. None if the curve was read from a CSV file.
    """

    task: str
    agent: str
    seed: str
    steps: Floats
    success: Floats
    run: Path | None = None
    truncated: bool = False
    metric: str = "success"
    protocol: str | None = None


@dataclass(frozen=True)
class Band:
    """Mean success over seeds [N] at steps [N], with the ends of its 95 % interval [N], which are NaN for one seed."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


def truncate(curve: Curve, last: float) -> Curve:
    """The points of a curve up to `last` env steps. A point at `last` is interpolated if the curve goes on."""
    within = curve.steps <= last
    steps, success = curve.steps[within], curve.success[within]
    cut = 0 < len(steps) < len(curve.steps) and steps[-1] < last
    if cut:
        steps = np.append(steps, last)
        success = np.append(success, np.interp(last, curve.steps, curve.success))
    return replace(curve, steps=steps, success=success, truncated=bool(cut))


def shared_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """The first and the last step between which every curve has data; None if there are no such steps."""
    first, last = max(float(curve.steps[0]) for curve in curves), min(float(curve.steps[-1]) for curve in curves)
    return (first, last) if first <= last else None


def between(curve: Curve, first: float, last: float) -> Curve:
    """The curve from first to last, two steps within it, where it is interpolated linearly."""
    steps = np.unique([first, last, *curve.steps[(curve.steps > first) & (curve.steps < last)]])
    return replace(curve, steps=steps, success=np.interp(steps, curve.steps, curve.success))


def summarise(curves: Sequence[Curve]) -> Band | None:
    """Mean over the runs with its 95 % t interval.

    The mean covers the steps where every run has data: a mean over the longest runs alone would mislead. Runs are
    interpolated linearly between their evaluations.

    Returns:
        The band, or None if the runs have no steps in common.
    """
    shared = shared_range(curves)
    if shared is None:
        return None
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(steps >= shared[0]) & (steps <= shared[1])]
    values = np.stack([np.interp(steps, curve.steps, curve.success) for curve in curves])  # [runs, N]
    return Band(steps, *mean_interval(values, METRICS[curves[0].metric][1]))


def area(curve: Curve) -> float:
    """Mean success in [0, 1] over the steps of a curve: the area under it, divided by its length."""
    length = curve.steps[-1] - curve.steps[0]
    return float(np.trapezoid(curve.success, curve.steps) / length) if length else float(curve.success[-1])
