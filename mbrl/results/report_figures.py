"""Figures and videos of a report, each as a data URI, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mbrl.results.metric_rows import Series, averaged, metric_rows
from mbrl.results.report_data import ReportedRun
from mbrl.results.style import Style, legend, style_axes

# prefixes of metrics of the world model; DreamerV3 trains its model in one update with the policy
MODEL = ("world_model/", "imagination/", "policy/model_")
COUNTERS = ("world_model/updates", "world_model/gradient_steps")  # grow steadily and say nothing about the model
COLUMNS = 3
VIDEO = "imagination.mp4"


def as_image(figure: Figure) -> str:
    """A figure as SVG data URI. The same data give the same bytes."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "mbrl"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _uri(stream.getvalue(), "image/svg+xml")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def videos(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, str, str]]:
    """The videos of the first run with any of each agent on each task: run, file name, data URI."""
    found, seen = [], set()
    for run in runs:
        files = sorted(run.state.folder.glob("*.mp4"), key=lambda file: (file.name != VIDEO, file.name))
        if files and (run.agent, run.task) not in seen:
            seen.add((run.agent, run.task))
            found += [(run, file.name, _uri(file.read_bytes(), "video/mp4")) for file in files]
    return found


def world_model_figure(runs: Sequence[ReportedRun], styles: Mapping[str, Style]) -> Figure | None:
    """Draw every metric of the world models over env steps, one line for each run.

    Args:
        runs: the runs.
        styles: agent -> style, see `agent_styles`.

    Returns:
        The figure, or None if no run has such metrics.
    """
    series = [(run, model_metrics(run.state.folder)) for run in runs]
    names = sorted({name for _, metrics in series for name in metrics})
    if not names:
        return None
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(12.0, 0.5 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        for run, metrics in series:
            if name in metrics:
                style = {**styles[run.agent], "linewidth": 1.0}
                axis.plot(*metrics[name], **style, alpha=0.8, marker="" if len(metrics[name][0]) > 1 else ".")
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("env steps", fontsize="small")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        style_axes(axis)
    legend(figure, styles, {run.agent: run.agent for run, metrics in series if metrics}, COLUMNS)
    return figure


def model_metrics(folder: Path) -> Mapping[str, Series]:
    """Metric of the world model of a run -> env steps and values."""
    return {name: averaged(rows) for name, rows in metric_rows(folder, MODEL, COUNTERS).items()}
