"""The figures of a report, each as a data URI, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mbrl.results.curves import Floats
from mbrl.results.report_data import Run
from mbrl.results.style import dress, legend, styles_of

MODEL = ("world_model/", "imagination/")  # metrics of the world model
COUNTERS = ("world_model/updates", "world_model/gradient_steps")
POINTS = 60  # of a line: thousands of rows are averaged down to these
COLUMNS = 3
VIDEO = "imagination.mp4"

Series = tuple[Floats, Floats]  # env steps, values


def as_image(figure: Figure) -> str:
    """SVG that is the same to the bit for the same data."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "mbrl"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _uri(stream.getvalue(), "image/svg+xml")


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def videos(runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """Run, name and data of each video of the first run of every agent on every task; imagination comes first."""
    found, seen = [], set()
    for run in runs:
        files = sorted(run.state.folder.glob("*.mp4"), key=lambda file: (file.name != VIDEO, file.name))
        if files and (run.agent, run.task) not in seen:
            seen.add((run.agent, run.task))
            found += [(run, file.name, _uri(file.read_bytes(), "video/mp4")) for file in files]
    return found


def world_model_figure(runs: Sequence[Run]) -> Figure | None:
    """Every metric of the world models over env steps, a line a run; None where there is none."""
    series = [(run, _model_metrics(run.state.folder)) for run in runs]
    names = sorted({name for _, own in series for name in own})
    if not names:
        return None
    styles = styles_of((run.agent for run in runs), {run.agent for run, own in series if own})
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(12.0, 0.7 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        for run, own in series:
            if name in own:
                style = {**styles[run.agent], "linewidth": 1.0}
                axis.plot(*own[name], **style, alpha=0.8, marker="" if len(own[name][0]) > 1 else ".")
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("env steps", fontsize="small")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        dress(axis)
    legend(figure, styles, {agent: agent for agent in styles}, COLUMNS)
    return figure


def _model_metrics(folder: Path) -> Mapping[str, Series]:
    """Metric -> its averages over at most POINTS groups of rows in a row."""
    rows: dict[str, list[tuple[float, float]]] = {}
    file = folder / "metrics.jsonl"
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
            steps = float(row["env_steps"])
        except (ValueError, KeyError, TypeError):
            continue  # broken off
        for name, value in row.items():
            if name.startswith(MODEL) and name not in COUNTERS and isinstance(value, int | float):
                rows.setdefault(name, []).append((steps, value))
    return {name: _thinned(np.array(own)) for name, own in rows.items()}


def _thinned(rows: Floats) -> Series:
    """[N, 2] -> at most POINTS points of each."""
    groups = np.array_split(rows, min(POINTS, len(rows)))
    steps, values = np.array([group.mean(axis=0) for group in groups]).T
    return steps, values
