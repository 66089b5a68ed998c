"""Which metric a run is judged by, in its own curve and summary."""

from __future__ import annotations

from pathlib import Path

from mbrl.errors import UserError
from mbrl.results.curves import Curve
from mbrl.results.read_curves import read_curves
from mbrl.run_folder.config import load_settings
from mbrl.run_folder.state import MAY_LACK_SUCCESS


def judged_curve(folder: Path) -> Curve:
    """The learning curve of a run: success, or the return where its environment has never reported a success.

    Args:
        folder: the run folder.

    Returns:
        The curve, of the mean over tasks where there are several; `metric` is success or return.

    Raises:
        UserError: it holds no evaluation.
    """
    file = folder / "eval.csv"
    success = read_curves([file])[0]
    if success.success.any() or load_settings(folder).get("env._target_") not in MAY_LACK_SUCCESS:
        return success
    try:
        return read_curves([file], metric="return")[0]
    except UserError:  # Its metrics.jsonl is gone.
        return success
