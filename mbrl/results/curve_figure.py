"""Figure of learning curves, one panel for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl.results.curves import METRICS, Band, Curve, summarise
from mbrl.results.read_curves import CURVE_COLUMNS
from mbrl.results.style import Style, drawing, grid, is_published, legend, steps_formatter, style_axes
from mbrl.run_folder.files import csv_text, write_atomically

MIN_SEEDS = 5  # for an interval; with fewer seeds it says little
MAX_MARKERS = 12  # published curves with so many evaluations or fewer have a marker at each
COLUMNS = 3

Panels = Mapping[str, Mapping[str, Sequence[Curve]]]  # task -> agent -> runs


@drawing()
def curve_figure(curves: Sequence[Curve], x_label: str, styles: Mapping[str, Style]) -> Figure:
    """Draw success, or another metric, over steps, one panel for each task.

    Each run is a thin line beside the mean, but for published curves, of which only the mean is shown. From five seeds
    on, the mean has its 95 % t interval. Panels of success share their y-axis; returns of different tasks have
    different scales.

    Args:
        curves: the curves, all of one metric.
        x_label: label of the x-axis.
        styles: agent -> style, see `agent_styles`.
    """
    panels = _grouped(curves)
    columns = min(COLUMNS, len(panels))
    figure, axes = grid(len(panels), columns, (4.0, 3.0), (1.5, 0.6), sharey=curves[0].metric == "success")
    styles = {agent: {**style, **_marker(panels, agent)} for agent, style in styles.items()}
    for axis, (task, agents) in zip(axes, panels.items(), strict=True):
        for agent, runs in agents.items():
            _draw(axis, runs, styles[agent], each=not is_published(agent))
        _label(axis, task, x_label, curves[0].metric)
    drawn = {curve.agent for curve in curves}
    labels = {agent: f"{agent} ({_seeds(panels, agent)})" for agent in drawn}
    legend(figure, styles, labels, columns + 1, _note(panels))
    return figure


def _grouped(curves: Sequence[Curve]) -> Panels:
    panels: dict[str, dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda curve: (curve.task, curve.agent, curve.seed)):
        panels.setdefault(curve.task, {}).setdefault(curve.agent, []).append(curve)
    return panels


def _marker(panels: Panels, agent: str) -> Style:
    """A marker if the agent's curves were published and are sparse: a straight line between them hides how sparse."""
    evaluations = [len(curve.steps) for agents in panels.values() for curve in agents.get(agent, ())]
    sparse = is_published(agent) and max(evaluations, default=0) <= MAX_MARKERS
    return {"marker": "o", "markersize": 4} if sparse else {}


def _draw(axis: Axes, curves: Sequence[Curve], style: Style, *, each: bool) -> None:
    band = summarise(curves)
    if each and (len(curves) > 1 or band is None):
        for curve in curves:
            axis.plot(curve.steps, curve.success, color=style["color"], linewidth=0.8, alpha=0.6)
    if band is None:
        return
    if len(curves) >= MIN_SEEDS:
        axis.fill_between(band.steps, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
    if len(band.steps) == 1:
        style = {**style, "marker": "o"}
    axis.plot(band.steps, band.mean, **style, markevery=_evaluated(curves, band))


def _note(panels: Panels) -> str:
    """Notes of the legend: what lines and bands show, as far as they are drawn."""
    counts = [(agent, len(runs)) for agents in panels.values() for agent, runs in agents.items()]
    lines = ["thin: one seed · thick: mean"] if any(n > 1 and not is_published(agent) for agent, n in counts) else []
    band = f"band: 95 % t interval of the mean ({MIN_SEEDS} seeds or more)"
    return " · ".join([*lines, band] if any(n >= MIN_SEEDS for _, n in counts) else lines)


def _evaluated(curves: Sequence[Curve], band: Band) -> list[int]:
    """The positions in a band where a run was evaluated. Where a curve was cut, its last point is no evaluation."""
    steps = np.concatenate([curve.steps[: len(curve.steps) - curve.truncated] for curve in curves])
    return np.flatnonzero(np.isin(band.steps, steps)).tolist()


def _label(axis: Axes, task: str, x_label: str, metric: str) -> None:
    axis.set_title(task)
    axis.set_xlabel(x_label)
    label, (low, high) = METRICS[metric]
    axis.set_ylabel(label)
    if np.isfinite(high):
        axis.set_ylim(low - 0.03, high + 0.03)
    axis.tick_params(labelleft=True)
    axis.xaxis.set_major_formatter(steps_formatter(x_label))
    style_axes(axis)


def _seeds(panels: Panels, agent: str) -> str:
    counts = sorted({len(agents[agent]) for agents in panels.values() if agent in agents})
    return f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} seeds"


def write_curves(curves: Sequence[Curve], file: Path) -> None:
    """Write the drawn lines as CSV: one row for each run and step, and for each mean and step with its interval."""
    metric = curves[0].metric if curves else "success"
    header = [metric if column == "success" else column for column in CURVE_COLUMNS]
    rows: list[list[str]] = []
    for task, agents in _grouped(curves).items():
        for agent, runs in agents.items():
            for curve in runs:
                points = zip(curve.steps, curve.success, strict=True)
                rows += ([task, agent, f"seed {curve.seed}", f"{x:.12g}", f"{y:.4g}", "", ""] for x, y in points)
            rows += ([task, agent, "mean", *row] for row in _band_rows(summarise(runs)))
    write_atomically(file, csv_text(header, rows))


def _band_rows(band: Band | None) -> list[list[str]]:
    if band is None:
        return []
    columns = zip(band.steps, band.mean, band.low, band.high, strict=True)
    return [
        [f"{step:.12g}", *(f"{value:.4g}" if np.isfinite(value) else "" for value in values)]
        for step, *values in columns
    ]
