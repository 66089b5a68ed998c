"""The grid of learning curves, one panel per task."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbrl.results.curves import Band, Curve, summarise
from mbrl.results.style import Style, dress, is_published, legend, steps_formatter, styles_of

FEW_SEEDS = 5  # below this an interval says little: each run is shown instead
COLUMNS = 3

Panels = Mapping[str, Mapping[str, Sequence[Curve]]]  # task -> agent -> its runs


def learning_curves(curves: Sequence[Curve], x_label: str) -> Figure:
    """Success over steps, one panel per task.

    Below five seeds each run is a thin line beside their mean; from five on, the mean with its 95 % interval.
    """
    panels = _grouped(curves)
    styles = styles_of(curve.agent for curve in curves)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 4.0 * columns, 0.9 + 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (task, agents) in zip(axes, panels.items(), strict=False):
        for agent, runs in agents.items():
            _draw(axis, runs, styles[agent], each=not is_published(agent))
        _label(axis, task, x_label)
    labels = {agent: f"{agent} ({_seeds(panels, agent)})" for agent in styles}
    legend(figure, styles, labels, columns + 1)
    return figure


def _grouped(curves: Sequence[Curve]) -> Panels:
    """Task -> agent -> its runs."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda curve: (curve.task, curve.agent, curve.seed)):
        panels.setdefault(curve.task, {}).setdefault(curve.agent, []).append(curve)
    return panels


def _draw(axis: Axes, curves: Sequence[Curve], style: Style, *, each: bool) -> None:
    band = summarise(curves)
    few = len(curves) < FEW_SEEDS
    if few and each and (len(curves) > 1 or band is None):
        for curve in curves:
            axis.plot(curve.steps, curve.success, color=style["color"], linewidth=0.8, alpha=0.6)
    if band is None:
        return
    if not few:
        axis.fill_between(band.steps, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
    marker = "o" if len(band.steps) == 1 else ""
    axis.plot(band.steps, band.mean, **style, marker=marker)  # type: ignore[arg-type]


def _label(axis: Axes, task: str, x_label: str) -> None:
    axis.set_title(task)
    axis.set_xlabel(x_label)
    axis.set_ylabel("success rate")
    axis.set_ylim(-0.03, 1.03)
    axis.tick_params(labelleft=True)
    axis.xaxis.set_major_formatter(steps_formatter(x_label))
    dress(axis)


def _seeds(panels: Panels, agent: str) -> str:
    counts = sorted({len(agents[agent]) for agents in panels.values() if agent in agents})
    return f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} seeds"


def write_learning_curves(curves: Sequence[Curve], file: Path) -> None:
    """The drawn lines: one row per run and step, and per mean and step with its interval."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["task", "agent", "line", "step", "success", "low", "high"])
        for task, agents in _grouped(curves).items():
            for agent, runs in agents.items():
                for curve in runs:
                    points = zip(curve.steps, curve.success, strict=True)
                    writer.writerows(
                        [task, agent, f"seed {curve.seed}", f"{x:.12g}", f"{y:.4g}", "", ""] for x, y in points
                    )
                writer.writerows([task, agent, "mean", *row] for row in _band_rows(summarise(runs)))


def _band_rows(band: Band | None) -> list[list[str]]:
    if band is None:
        return []
    columns = zip(band.steps, band.mean, band.low, band.high, strict=True)
    return [[f"{step:.12g}", *(f"{value:.4g}" for value in values)] for step, *values in columns]
