"""`mbrl report`: one self-contained page of a folder of runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from mbrl.results.aggregates import aggregate
from mbrl.results.curves import AXES, Curve, published, read_curves
from mbrl.results.learning_curves import learning_curves
from mbrl.results.over_tasks import over_tasks
from mbrl.results.report_data import differences, gather_runs, origins, results
from mbrl.results.report_figures import as_image, videos, world_model_figure
from mbrl.run_folder.files import write_atomically
from mbrl.run_folder.state import run_folders

LABEL = AXES["env_steps"][0]


def report(folder: Path, output: Path | None = None, reference: Path | None = None) -> Path:
    """Writes figures, results with intervals, videos, settings, versions and commands into one HTML file.

    Args:
        folder: a folder of runs.
        output: the page; None: report.html in the folder.
        reference: a folder AGENT/TASK.csv of published curves, laid over the learning curves.

    Returns:
        The page.

    Raises:
        FileNotFoundError: there is no such folder. ValueError: it holds no run that was evaluated.
    """
    run_folders(folder)  # says what is wrong with a folder without runs
    output = output or folder / "report.html"
    with _noted() as left_out:
        curves = read_curves([folder])
        runs = gather_runs(folder, curves)
        agents, settings = differences(runs)
        model = world_model_figure(runs)
        page = _template().render(
            title=folder.resolve().name,
            learning=as_image(learning_curves([*curves, *(published(reference, curves) if reference else [])], LABEL)),
            over_tasks=_over_tasks(curves),
            results=results(curves),
            videos=videos(runs),
            world_model=None if model is None else as_image(model),
            runs=runs,
            agents=agents,
            settings=settings,
            origins=origins(runs),
            left_out=list(dict.fromkeys(left_out)),
        )
    write_atomically(output, page)
    return output


def _over_tasks(curves: Sequence[Curve]) -> str | None:
    several = max(len({curve.agent for curve in curves}), len({curve.task for curve in curves})) > 1
    said = aggregate(curves) if several else None
    return None if said is None else as_image(over_tasks(said, LABEL, [curve.agent for curve in curves]))


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["interval"] = _interval
    return environment.from_string(files("mbrl.results").joinpath("report.html").read_text())


def _interval(values: tuple[float, float, float]) -> str:
    mean, low, high = values
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


class _Notes(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _noted() -> Iterator[list[str]]:
    """What is warned of meanwhile, which a page should say too."""
    lines: list[str] = []
    handler, logger = _Notes(lines), logging.getLogger("mbrl")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
