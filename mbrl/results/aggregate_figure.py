"""Figure of aggregates over several tasks, see `mbrl.results.aggregates`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mbrl.results.aggregates import Aggregates
from mbrl.results.intervals import Estimate
from mbrl.results.read_curves import AGGREGATE_COLUMNS
from mbrl.results.style import Style, drawing, legend, steps_formatter, style_axes
from mbrl.run_folder.files import csv_text, write_atomically

EQUAL = 0.5  # probability of improvement of two agents that are equally good
TITLE_CHARACTERS, TICK_CHARACTERS = 40, 26  # characters in a line of a title, and of a label beside a y-axis
BAR_POINTS = 6  # thickness of a bar
PANEL_INCHES = 3.0  # height of a panel with its title
FRAME_INCHES, LINE_INCHES = 1.0, 0.17  # of the probability of improvement: title and x-axis, a line of a tick label


@drawing()
def aggregate_figure(result: Aggregates, x_label: str, styles: Mapping[str, Style]) -> Figure:
    """Draw interquartile mean and performance profile and, for two agents or more, improvement and ratio of steps.

    Args:
        result: the aggregates.
        x_label: label of the x-axis of the learning curves.
        styles: agent -> style, see `agent_styles`.
    """
    heights = [PANEL_INCHES, _improvement_height(result)] if result.improvement else [PANEL_INCHES]
    figure = Figure(figsize=(9.5, 0.8 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights).flatten()
    tasks = f"{len(result.tasks)} task{'s' * (len(result.tasks) > 1)}"
    end = f"{steps_formatter(x_label)(result.end)} {x_label}"
    _lines(axes[0], result.interquartile_mean, styles, f"Interquartile mean over {tasks}", (x_label, "success rate"))
    axes[0].xaxis.set_major_formatter(steps_formatter(x_label))
    profile = f"Performance profile until {end}"
    _lines(axes[1], result.profile, styles, profile, ("mean success rate τ", "share of runs above τ"))
    if result.improvement:
        _improvement(axes[2], result, styles, end)
        _steps_ratio(axes[3], result, styles, x_label)
    labels = {agent: f"{agent} ({_runs(count)})" for agent, count in result.runs.items()}
    areas = "areas and bars: 95 % intervals" if result.improvement else "areas: 95 % intervals"
    legend(figure, styles, labels, 3, areas if max(result.runs.values()) > 1 else "")
    return figure


def _runs(count: int) -> str:
    return f"{count} seeds a task" if count > 1 else "1 seed a task: no intervals"


def _lines(
    axis: Axes, estimates: Mapping[str, Estimate], styles: Mapping[str, Style], title: str, labels: tuple[str, str]
) -> None:
    for agent, one in estimates.items():
        single = np.isfinite(one.value).sum() == 1
        width = BAR_POINTS if single else 0  # an area of one x has no width of its own
        axis.fill_between(one.x, one.low, one.high, color=styles[agent]["color"], alpha=0.15, linewidth=width)
        axis.plot(one.x, one.value, **styles[agent], marker="o" if single else "")
    axis.set_title(fill(title, TITLE_CHARACTERS))
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.set_ylim(-0.03, 1.03)
    style_axes(axis)


def _improvement(axis: Axes, result: Aggregates, styles: Mapping[str, Style], end: str) -> None:
    pairs = result.improvement
    rows = np.arange(len(pairs))[::-1]
    for row, ((agent, _), one) in zip(rows, pairs.items(), strict=True):
        colour = styles[agent]["color"]
        axis.hlines(row, one.low, one.high, color=colour, linewidth=BAR_POINTS, alpha=0.35)
        axis.plot(one.value, [row], "o", color=colour)
    axis.axvline(EQUAL, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(rows, _pair_labels(result), fontsize="small")
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.7, len(pairs) - 0.3)
    over = f" over {result.baseline}" if _against_baseline(result) else ""
    axis.set_title(fill(f"Probability of improvement{over} until {end}", TITLE_CHARACTERS))
    axis.set_xlabel("P(higher mean success rate)")
    style_axes(axis)


def _against_baseline(result: Aggregates) -> bool:
    return {other for _, other in result.improvement} == {result.baseline}


def _pair_labels(result: Aggregates) -> list[str]:
    pairs = result.improvement
    return [fill(one if _against_baseline(result) else f"{one} > {other}", TICK_CHARACTERS) for one, other in pairs]


def _improvement_height(result: Aggregates) -> float:
    """Height in inches at which the labels of the pairs do not overlap."""
    labels = _pair_labels(result)
    lines = max(label.count("\n") + 1 for label in labels)
    return max(PANEL_INCHES, FRAME_INCHES + LINE_INCHES * lines * len(labels))


def _steps_ratio(axis: Axes, result: Aggregates, styles: Mapping[str, Style], x_label: str) -> None:
    title = f"Speed-up over {result.baseline} in {x_label}"
    ratio = fill(f"{x_label} of {result.baseline}", TICK_CHARACTERS)
    labels = (
        "success rate to reach (interquartile mean)\nno area where it is often not reached",
        f"{ratio}\n/ of the agent",
    )
    _lines(axis, result.steps_ratio, styles, title, labels)
    axis.axhline(1.0, **{**styles[result.baseline], "linewidth": 1.2})
    axis.set_xlim(0.0, 1.0)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    estimates = result.steps_ratio.values()
    values = np.concatenate([[0.5, 2.0], *((one.value, one.low, one.high) for one in estimates)], None)
    finite = values[np.isfinite(values) & (values > 0)]
    axis.set_ylim(finite.min() / 1.1, finite.max() * 1.1)


def write_aggregates(result: Aggregates, file: Path) -> None:
    """Write the drawn values as CSV: figure, agent (or pair), x, value, and the ends of its interval."""
    rows = (
        [figure, agent, *(f"{value:.6g}" if np.isfinite(value) else "" for value in row)]
        for figure, agent, one in _all(result)
        for row in zip(one.x, one.value, one.low, one.high, strict=True)
    )
    write_atomically(file, csv_text(AGGREGATE_COLUMNS, rows))


def _all(result: Aggregates) -> Iterator[tuple[str, str, Estimate]]:
    for agent, one in result.interquartile_mean.items():
        yield "interquartile_mean", agent, one
    for agent, one in result.profile.items():
        yield "profile", agent, one
    for (agent, other), one in result.improvement.items():
        yield "improvement", f"{agent} > {other}", one
    for agent, one in result.steps_ratio.items():
        yield f"steps_ratio to {result.baseline}", agent, one
