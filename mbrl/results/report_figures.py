"""Figures and videos of a report, each as a data URI, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from matplotlib.figure import Figure

from mbrl.errors import one_line
from mbrl.results.grouping import short_name
from mbrl.results.metric_rows import Series, averaged, metric_rows
from mbrl.results.report_data import ReportedRun
from mbrl.results.style import Style, draw_run, drawing, grid, legend, small_panel

# prefixes of metrics of the world model; DreamerV3 trains its model in one update with the policy
MODEL = ("world_model/", "imagination/", "policy/model_")
COUNTERS = ("world_model/updates", "world_model/gradient_steps")  # grow steadily and say nothing about the model
MAX_PANELS = 36  # metrics that are drawn
COLUMNS = 3
VIDEO = "imagination.mp4"
MAX_EMBEDDED = 8 * 2**20  # bytes of a video in the page; a page of many larger ones could not be opened

_log = logging.getLogger(__name__)


def as_image(figure: Figure) -> str:
    """A figure as SVG data URI. The same data give the same bytes."""
    stream = io.BytesIO()
    with drawing():
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _uri(stream.getvalue(), "image/svg+xml")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Video(NamedTuple):
    """A video of a run: its file's name, and its data URI; or, of a large one, the address relative to the page."""

    run: ReportedRun
    name: str
    source: str
    embedded: bool


def videos(runs: Sequence[ReportedRun], page: Path) -> list[Video]:
    """The videos of the first run with any of each agent on each task. `page` is the file that shows them."""
    found: list[Video] = []
    seen = set()
    for run in runs:
        files = [file for file in run.state.folder.glob("*.mp4") if file.is_file()]
        if files and (run.agent, run.task) not in seen:
            seen.add((run.agent, run.task))
            files.sort(key=lambda file: (file.name != VIDEO, file.name))
            found += [_video(run, file, page) for file in files]
    return found


def _video(run: ReportedRun, file: Path, page: Path) -> Video:
    if file.stat().st_size <= MAX_EMBEDDED:
        return Video(run, one_line(file.name), _uri(file.read_bytes(), "video/mp4"), embedded=True)
    place = os.path.relpath(file.absolute(), page.absolute().parent)
    return Video(run, one_line(file.name), quote(os.fsencode(place)), embedded=False)


@drawing()
def world_model_figure(runs: Sequence[ReportedRun], styles: Mapping[str, Style]) -> Figure | None:
    """Draw every metric of the world models over env steps, one line for each run.

    Args:
        runs: the runs.
        styles: agent -> style, see `agent_styles`.

    Returns:
        The figure, or None if no run has such metrics.
    """
    series = [(run, model_metrics(run.state.folder)) for run in runs]
    every = sorted({name for _, metrics in series for name in metrics})
    names = every[:MAX_PANELS]
    if every[MAX_PANELS:]:
        _log.warning("drew the first %d of %d metrics of the world models", MAX_PANELS, len(every))
    if not names:
        return None
    figure, axes = grid(len(names), COLUMNS, (4.0, 2.4), (0.0, 0.5))
    for axis, name in zip(axes, names, strict=True):
        for run, metrics in series:
            if name in metrics:
                draw_run(axis, *metrics[name], styles[run.agent])
        small_panel(axis, short_name(name))
    legend(figure, styles, {run.agent: run.agent for run, metrics in series if metrics}, COLUMNS)
    return figure


def model_metrics(folder: Path) -> Mapping[str, Series]:
    """Metric of the world model of a run -> env steps and values."""
    return {name: averaged(rows) for name, rows in metric_rows(folder, MODEL, COUNTERS).items()}
