"""Figure of what a world model costs its agent: what separates each run from one with a perfect model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mbrl.results.intervals import Floats
from mbrl.results.metric_rows import Series, averaged, metric_rows
from mbrl.results.report_data import ReportedRun
from mbrl.results.style import Style, draw_run, drawing, grid, legend, small_panel

COLUMNS = 3
PREFIXES = ("model_error/", "policy/q_", "eval/value")


class Panel(NamedTuple):
    """One measure.

    Attributes:
        title: what is drawn.
        perfect: its value for a model without error.
        names: metrics that it is computed from.
        value: the measure, of an array [N] for each name.
    """

    title: str
    perfect: float
    names: tuple[str, ...]
    value: Callable[..., Floats]


def _same(values: Floats) -> Floats:
    return values


def _level(level: str, words: str) -> Panel:
    names = (f"model_error/reward_{level}", f"model_error/true_reward_{level}")
    return Panel(f"imagined reward minus true reward\nwhere the true one is {words}", 0.0, names, np.subtract)


PANELS = (
    Panel(
        "plans from one start: rank\ncorrelation of returns with the simulator's",
        1.0,
        ("model_error/plan_rank_correlation",),
        _same,
    ),
    Panel("rewards of new episodes:\ncorrelation with the true ones", 1.0, ("model_error/reward_correlation",), _same),
    Panel(
        "imagined return minus true return\nof the same actions in new episodes",
        0.0,
        ("model_error/return", "model_error/true_return"),
        np.subtract,
    ),
    Panel(
        "moving pixels of new episodes: dB above\na copy of the last frame (0: no better)",
        np.nan,
        ("model_error/psnr_moving", "model_error/psnr_moving_copy"),
        np.subtract,
    ),
    _level("low", "below 2"),
    _level("middle", "2 to 8"),
    _level("high", "8 or more"),
    Panel(
        "Q of imagined transitions\nminus Q of real ones", np.nan, ("policy/q_imagined", "policy/q_real"), np.subtract
    ),
    Panel(
        "value where the evaluated policy goes\nminus the discounted return that follows",
        0.0,
        ("eval/value", "eval/value_true"),
        np.subtract,
    ),
)


@drawing()
def gap_figure(runs: Sequence[ReportedRun], styles: Mapping[str, Style]) -> Figure | None:
    """Draw each measure that a run has over env steps, one line for each run; a dotted line is a model without error.

    Args:
        runs: the runs.
        styles: agent -> style, see `agent_styles`.

    Returns:
        The figure, or None if no run measured its world model (`agent.model_error`).
    """
    measured = {run.state.folder: metric_rows(run.state.folder, PREFIXES) for run in runs}
    if not any(name.startswith("model_error/") for metrics in measured.values() for name in metrics):
        return None
    drawn = {panel: [_series(panel, measured[run.state.folder]) for run in runs] for panel in PANELS}
    panels = [panel for panel, series in drawn.items() if any(len(steps) for steps, _ in series)]
    figure, axes = grid(len(panels), COLUMNS, (3.5, 2.8), (0.5, 0.5))
    shown = {}
    for axis, panel in zip(axes, panels, strict=True):
        for run, (steps, values) in zip(runs, drawn[panel], strict=True):
            if len(steps):
                shown[run.agent] = run.agent
                draw_run(axis, steps, values, styles[run.agent])
        if np.isfinite(panel.perfect):
            axis.axhline(panel.perfect, color="#444444", linestyle=":", linewidth=1.2)
        small_panel(axis, panel.title)
    legend(figure, styles, shown, COLUMNS)
    return figure


def _series(panel: Panel, metrics: Mapping[str, Floats]) -> Series:
    """Env steps and values of a measure, at the steps that have all of its metrics."""
    if any(name not in metrics for name in panel.names):
        return np.empty(0), np.empty(0)
    by_step = [dict(metrics[name]) for name in panel.names]
    steps = sorted(set.intersection(*(set(values) for values in by_step)))
    if not steps:
        return np.empty(0), np.empty(0)
    values = panel.value(*(np.array([metric[step] for step in steps]) for metric in by_step))
    return averaged(np.column_stack([steps, values]))
