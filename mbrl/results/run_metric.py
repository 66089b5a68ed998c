"""Which metric runs are judged by, in their figures, reports and summaries, where none is asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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


def judged_curve(folder: Path) -> Curve:
    """The learning curve of a run, by the metric that it is judged by.

    Args:
        folder: the run folder.

    Returns:
        The curve, of the mean over tasks where there are several; `metric` is success or return.

    Raises:
        UserError: it holds no evaluation.
    """
    file = folder / "eval.csv"
    curves = read_curves([file])
    metric = judged_metric(curves)
    return curves[0] if metric == "success" else read_curves([file], metric=metric)[0]
