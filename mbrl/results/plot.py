"""`mbrl plot`: pictures of learning curves from files, and a CSV of what each shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbrl.errors import UserError
from mbrl.results.curves import AXES, Curve, curve_files, published, read_curves
from mbrl.results.learning_curves import learning_curves, write_learning_curves
from mbrl.results.style import FORMATS, save

OVER_TASKS = "-over-tasks"  # what the name of the second figure adds


def plot(
    runs: Sequence[Path], output: Path, reference: Path | None = None, axis: str = "env_steps", aggregates: bool = True
) -> list[Path]:
    """Draws the runs' learning curves, and what they say over the tasks, with the drawn data in a CSV beside each.

    Args:
        runs: run folders, folders of them, or CSV files of step,success,seed (published curves).
        output: .png, .svg or .pdf; a name without suffix gives both .png and .svg.
        reference: a folder AGENT/TASK.csv of published curves, whose means are drawn as far as the runs go.
        axis: env_steps, gradient_steps or wall_time.
        aggregates: whether to draw the second figure, OUTPUT-over-tasks, which needs two agents or two tasks.

    Returns:
        The pictures.

    Raises:
        ValueError: another suffix or axis, no run that could be drawn, published curves on another axis than theirs, or
            an input that a CSV would overwrite.
        FileNotFoundError: a path that does not exist.
    """
    if output.suffix not in ("", *FORMATS):
        raise UserError(f"cannot draw {output}: the name must end in {', '.join(FORMATS)}")
    if axis not in AXES:
        raise UserError(f"no x-axis {axis!r}: choose one of {', '.join(AXES)}")
    if reference and axis != "env_steps":
        raise UserError(f"published curves have env steps alone: leave out --reference, or --x {axis}")
    suffixes = [output.suffix] if output.suffix else [".png", ".svg"]
    stem = output.with_suffix("")
    beside = stem.with_name(stem.name + OVER_TASKS)
    inputs = [path for path in (*runs, reference) if path is not None and path.exists()]
    read = {file.resolve() for path in inputs for file in curve_files(path)}
    for data in (stem.with_suffix(".csv"), beside.with_suffix(".csv")):
        if data.resolve() in read:
            raise UserError(f"the drawn data would overwrite {data}: choose another name for {output}")
    curves = read_curves(runs, axis)
    drawn = [*curves, *(published(reference, curves) if reference else [])]
    pictures = [stem.with_suffix(suffix) for suffix in suffixes]
    save(learning_curves(drawn, AXES[axis][0]), pictures)
    write_learning_curves(drawn, stem.with_suffix(".csv"))
    if aggregates:
        pictures += _over_tasks(curves, [beside.with_suffix(suffix) for suffix in suffixes], AXES[axis][0])
    return pictures


def _over_tasks(curves: Sequence[Curve], files: list[Path], x_label: str) -> list[Path]:
    """The second figure, where there is more than one agent or task; its files, or none and none of an earlier call."""
    data = files[0].with_suffix(".csv")
    for file in (*files, data):
        file.unlink(missing_ok=True)
    if max(len({curve.agent for curve in curves}), len({curve.task for curve in curves})) < 2:
        return []
    from mbrl.results.aggregates import aggregate  # its statistics take a second to import
    from mbrl.results.over_tasks import over_tasks, write_over_tasks

    said = aggregate(curves)
    if said is None:
        return []
    save(over_tasks(said, x_label, [curve.agent for curve in curves]), files)
    write_over_tasks(said, data)
    return files
