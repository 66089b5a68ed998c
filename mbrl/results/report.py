"""`mbrl report`: one self-contained HTML page about a folder of runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from mbrl.errors import UserError, one_line
from mbrl.results.aggregate_figure import aggregate_figure
from mbrl.results.aggregates import aggregate
from mbrl.results.curve_figure import curve_figure
from mbrl.results.curves import AXES, METRICS, Curve
from mbrl.results.gap_figure import gap_figure
from mbrl.results.plot import is_comparison
from mbrl.results.read_curves import published_curves
from mbrl.results.report_data import differences, gather_runs, origins, results
from mbrl.results.report_figures import as_image, videos, world_model_figure
from mbrl.results.run_metric import read_judged
from mbrl.results.style import Style, agent_styles
from mbrl.run_folder.files import write_atomically
from mbrl.run_folder.state import run_folders

LABEL = AXES["env_steps"][0]


def report(
    folder: Path,
    output: Path | None = None,
    reference: Path | None = None,
    on_progress: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write figures, results with intervals, videos, settings, versions and commands into one HTML file.

    Args:
        folder: folder of runs.
        output: file to write; None for report.html in the folder.
        reference: folder AGENT/TASK.csv of published curves, drawn with the learning curves.
        on_progress: called with a text when a step begins.

    Returns:
        The file.

    Raises:
        FileNotFoundError: The folder does not exist.
        UserError: It holds no run that was evaluated and can be read.
    """
    run_folders(folder)  # raises a clearer error if there are no runs
    output = output or folder / "report.html"
    with _warnings() as left_out:
        on_progress("reading the runs")
        curves = read_judged([folder])
        metric = curves[0].metric
        runs = gather_runs(folder, curves)
        kept = {run.state.folder for run in runs}
        curves = [curve for curve in curves if curve.run is None or curve.run in kept]
        if not curves:
            raise UserError(f"{folder} holds no run that can be reported: {left_out[-1]}")
        overlaid = published_curves(reference, curves) if reference else []
        styles = agent_styles([*(curve.agent for curve in (*curves, *overlaid)), *(run.agent for run in runs)])
        on_progress(f"drawing {len(runs)} runs")
        agents, settings = differences(runs)
        model, gap = world_model_figure(runs, styles), gap_figure(runs, styles)
        page = _template().render(
            title=one_line(folder.resolve().name),
            metric=METRICS[metric][0],
            learning=as_image(curve_figure([*curves, *overlaid], LABEL, styles)),
            over_tasks=_over_tasks(curves, styles),
            results=results(curves),
            videos=videos(runs, output),
            gap=None if gap is None else as_image(gap),
            world_model=None if model is None else as_image(model),
            runs=runs,
            agents=agents,
            settings=settings,
            origins=origins(runs),
            left_out=list(dict.fromkeys(left_out)),
        )
    write_atomically(output, page.encode(errors="replace"))  # JSON can hold halves of characters
    return output


def _over_tasks(curves: Sequence[Curve], styles: Mapping[str, Style]) -> str | None:
    result = aggregate(curves) if is_comparison(curves) and curves[0].metric == "success" else None
    return None if result is None else as_image(aggregate_figure(result, LABEL, styles))


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["interval"] = _interval
    return environment.from_string(files("mbrl.results").joinpath("report.html").read_text(encoding="utf-8"))


def _interval(values: tuple[float, float, float]) -> str:
    mean, low, high = values
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings that are logged meanwhile: the page lists what it leaves out."""
    lines: list[str] = []
    handler, logger = _Collector(lines), logging.getLogger("mbrl")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
