"""Which metric runs are judged by, in their figures, reports and summaries, where none is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mbrl.results.curves import Curve
from mbrl.results.metric_rows import metric_rows
from mbrl.results.read_curves import read_curves
from mbrl.run_folder.config import load_settings
from mbrl.run_folder.state import MAY_LACK_SUCCESS

log = logging.getLogger(__name__)


def judged_metric(curves: Sequence[Curve]) -> str:
    """Success; or the return, where no run has ever reported a success and no environment need report one.

    Where that holds for some tasks only, all are judged by success, and a warning names those tasks.

    Args:
        curves: of success.

    Returns:
        success or return.
    """
    tasks = {curve.task for curve in curves}
    with_success = {curve.task for curve in curves if not _lacks_success(curve)}
    if tasks and not with_success:
        return "return"
    for task in sorted(tasks - with_success):
        log.warning("no run of %s reports a success, so that it counts as 0: mbrl plot --metric return draws all", task)
    return "success"


def _lacks_success(curve: Curve) -> bool:
    """Whether a run has never reported a success and need not. A run whose returns are lost counts as one with it."""
    if curve.run is None or curve.success.any():
        return False
    optional = load_settings(curve.run).get("env._target_") in MAY_LACK_SUCCESS
    return optional and bool(metric_rows(curve.run, ("eval/return",)))


def read_judged(
    paths: Sequence[Path],
    axis: str = "env_steps",
    labels: Sequence[str] = (),
    metric: str | None = None,
    choose: Callable[[list[Curve]], list[Curve]] = lambda curves: curves,
) -> list[Curve]:
    """Read curves by a metric, or by that of `judged_metric`.

    Args:
        paths, axis, labels: see `read_curves`.
        metric: success or return; None for that of `judged_metric`.
        choose: which of the curves decide about the metric, where none is given.

    Raises:
        FileNotFoundError, UserError: see `read_curves`.
    """
    curves = read_curves(paths, axis, labels, metric or "success")
    metric = metric or judged_metric(choose(curves))
    return curves if metric == curves[0].metric else read_curves(paths, axis, labels, metric)


def judged_curve(folder: Path) -> Curve:
    """The learning curve of a run, by the metric that it is judged by.

    Args:
        folder: the run folder.

    Returns:
        The curve, of the mean over tasks where there are several; `metric` is success or return.

    Raises:
        UserError: it holds no evaluation.
    """
    return read_judged([folder / "eval.csv"])[0]
