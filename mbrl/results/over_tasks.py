"""The figure of what curves say over several tasks; see mbrl.results.aggregates."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mbrl.results.aggregates import Aggregates, Estimate
from mbrl.results.style import Style, dress, legend, steps_formatter, styles_of

HALF = 0.5  # a probability of improvement that says nothing
TITLE = 40  # characters of a line


def over_tasks(said: Aggregates, x_label: str, agents: Iterable[str]) -> Figure:
    """Interquartile mean and performance profile; with two agents or more, improvement and the ratio of steps too.

    Args:
        agents: all that the learning curves beside it show, which decides how each looks.
    """
    styles = styles_of(agents, said.interquartile_mean)
    rows = 2 if said.improvement else 1
    height = 1.4 + 3.0 * rows + 0.3 * max(0, len(said.improvement) - 6)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    where = f"{len(said.tasks)} task{'s' * (len(said.tasks) > 1)}"
    end = f"{steps_formatter(x_label)(said.end)} {x_label}"
    _lines(axes[0], said.interquartile_mean, styles, f"Interquartile mean over {where}", (x_label, "success rate"))
    axes[0].xaxis.set_major_formatter(steps_formatter(x_label))
    _lines(
        axes[1],
        said.profile,
        styles,
        f"Performance profile until {end}",
        ("mean success rate τ", "share of runs above τ"),
    )
    if said.improvement:
        _improvement(axes[2], said.improvement, end)
        _steps_ratio(axes[3], said, styles, x_label)
    labels = {agent: f"{agent} ({_runs(count)})" for agent, count in said.runs.items()}
    legend(figure, styles, labels, 3)
    return figure


def _runs(count: int) -> str:
    return f"{count} seeds a task" if count > 1 else "1 seed a task: no intervals"


def _lines(
    axis: Axes, estimates: Mapping[str, Estimate], styles: Mapping[str, Style], title: str, labels: tuple[str, str]
) -> None:
    for agent, its in estimates.items():
        axis.fill_between(its.x, its.low, its.high, color=styles[agent]["color"], alpha=0.15, linewidth=0)
        marker = "o" if np.isfinite(its.value).sum() == 1 else ""
        axis.plot(its.x, its.value, **styles[agent], marker=marker)  # type: ignore[arg-type]
    axis.set_title(fill(title, TITLE))
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.set_ylim(-0.03, 1.03)
    dress(axis)


def _improvement(axis: Axes, pairs: Mapping[tuple[str, str], Estimate], end: str) -> None:
    places = np.arange(len(pairs))[::-1]
    for place, its in zip(places, pairs.values(), strict=True):
        axis.plot([its.low[0], its.high[0]], [place, place], color="#777777", linewidth=6, alpha=0.5)
        axis.plot(its.value, [place], "o", color="black")
    axis.axvline(HALF, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(places, [f"{one}\n> {other}" for one, other in pairs], fontsize="small")
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.7, len(pairs) - 0.3)
    axis.set_title(fill(f"Probability of improvement until {end}", TITLE))
    axis.set_xlabel("P(mean success rate of one > other)")
    dress(axis)


def _steps_ratio(axis: Axes, said: Aggregates, styles: Mapping[str, Style], x_label: str) -> None:
    title = f"{x_label.capitalize()} of {said.baseline} over those of each"
    _lines(axis, said.steps_ratio, styles, title, ("success rate to reach (interquartile mean)", "ratio"))
    axis.axhline(1.0, **{**styles[said.baseline], "linewidth": 1.2})  # type: ignore[arg-type]
    axis.set_xlim(0.0, 1.0)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    values = np.concatenate([[0.5, 2.0], *((its.value, its.low, its.high) for its in said.steps_ratio.values())], None)
    finite = values[np.isfinite(values) & (values > 0)]
    axis.set_ylim(finite.min() / 1.1, finite.max() * 1.1)


def write_over_tasks(said: Aggregates, file: Path) -> None:
    """The drawn values: figure, agent (or pair), x, value, and the ends of its interval."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["figure", "agent", "x", "value", "low", "high"])
        for figure, agent, its in _all(said):
            for row in zip(its.x, its.value, its.low, its.high, strict=True):
                writer.writerow([figure, agent, *(f"{value:.6g}" if np.isfinite(value) else "" for value in row)])


def _all(said: Aggregates) -> Iterator[tuple[str, str, Estimate]]:
    for agent, its in said.interquartile_mean.items():
        yield "interquartile_mean", agent, its
    for agent, its in said.profile.items():
        yield "profile", agent, its
    for (one, other), its in said.improvement.items():
        yield "improvement", f"{one} > {other}", its
    for agent, its in said.steps_ratio.items():
        yield f"steps_ratio to {said.baseline}", agent, its
