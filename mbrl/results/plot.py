"""`mbrl plot`: figures of learning curves and of aggregates over tasks, each with a CSV of what it shows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from mbrl.errors import UserError
from mbrl.results.aggregate_figure import aggregate_figure, write_aggregates
from mbrl.results.aggregates import aggregate
from mbrl.results.curve_figure import curve_figure, write_curves
from mbrl.results.curves import AXES, METRICS, Curve
from mbrl.results.read_curves import curve_files, drawn_data, published_curves
from mbrl.results.run_metric import read_judged
from mbrl.results.style import FORMATS, Style, agent_styles, save

OVER_TASKS = "-over-tasks"  # ends the name of the second figure
DEFAULT_NAME = "curves"

log = logging.getLogger(__name__)


def plot(
    runs: Sequence[Path],
    output: Path | None = None,
    reference: Path | None = None,
    axis: str = "env_steps",
    *,
    labels: Sequence[str] = (),
    agents: Sequence[str] = (),
    baseline: str | None = None,
    metric: str | None = None,
    aggregates: bool = True,
    on_progress: Callable[[str], object] = lambda text: None,
) -> list[Path]:
    """Draw learning curves, and their aggregates over tasks, with a CSV of the drawn data beside each figure.

    Args:
        runs: run folders, folders of runs, or CSV files with columns step,success,seed.
        output: file in .png, .svg or .pdf; a name without suffix gives .png and .svg. None for `curves` in the
            innermost folder that holds all runs.
        reference: folder AGENT/TASK.csv of published curves, whose means are drawn up to the end of the runs.
        axis: env_steps, gradient_steps or wall_time.
        labels: names of the curves, one for each of `runs`; empty to name them by agent and settings.
        agents: names of the agents to draw; empty for all. Colours are those of a figure with all agents.
        baseline: agent that the others are compared with in the second figure, see `aggregate` and `_baseline`.
        metric: success or return; None for that of `judged_metric`, by the chosen agents.
        aggregates: whether to draw the second figure, OUTPUT-over-tasks, which needs two agents or two tasks. Returns
            of different tasks have different scales and are not aggregated.
        on_progress: called with a text when a step begins.

    Returns:
        The files of the figures.

    Raises:
        FileNotFoundError: A path does not exist.
        UserError: Suffix, axis, metric, label or agent is unknown, no curve was found, published curves were asked for
            on an axis or of a metric that they do not have, or a CSV would overwrite an input.
    """
    stem, suffixes = output_names(output or _common_folder(runs) / DEFAULT_NAME)
    _check_choices(axis, metric, reference)
    inputs = _input_files([*runs, *([reference] if reference else [])])
    _require_no_overwriting(stem, inputs)
    if inputs:
        on_progress(f"reading {_count(len(inputs), 'file')}")
    every = read_judged(runs, axis, labels, metric, partial(_choose, agents=agents))
    curves = _choose(every, agents)
    baseline = None if baseline is None else _baseline(baseline, curves)
    _tell_repeated(curves)
    overlaid = published_curves(reference, curves) if reference else []
    _tell_protocols([*curves, *overlaid])
    styles = agent_styles(curve.agent for curve in (*every, *overlaid))
    on_progress(f"drawing {_count(len(curves), 'curve')} of {_count(len({c.agent for c in curves}), 'agent')}")
    pictures = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    write_curves([*curves, *overlaid], stem.with_name(f"{stem.name}.csv"))  # first, as a run's figure marks its end
    save(curve_figure([*curves, *overlaid], AXES[axis][0], styles), pictures)
    if aggregates and curves[0].metric == "success":
        on_progress("computing aggregates over tasks")
        over_tasks = [stem.with_name(stem.name + OVER_TASKS + suffix) for suffix in suffixes]
        pictures += _over_tasks(curves, over_tasks, AXES[axis][0], styles, baseline)
    return pictures


def _check_choices(axis: str, metric: str | None, reference: Path | None) -> None:
    """Check the arguments of `plot` of these names."""
    if axis not in AXES:
        raise UserError(f"no x-axis {axis!r}: choose one of {', '.join(AXES)}")
    if metric is not None and metric not in METRICS:
        raise UserError(f"no metric {metric!r}: choose one of {', '.join(METRICS)}")
    if reference and axis != "env_steps":
        raise UserError(f"published curves have env steps only: leave out --reference, or --x {axis}")


def _baseline(name: str, curves: Sequence[Curve]) -> str:
    """The agent of this name, which may lack what its name has in brackets."""
    if curves[0].metric != "success":
        raise UserError("comparisons over tasks are of success: leave out --baseline, or give --metric success")
    found = {curve.agent for curve in curves if _is_named(curve, name)}
    if name in found or len(found) == 1:
        return name if name in found else found.pop()
    if found:
        raise UserError(f"--baseline {name} stands for several agents: choose from {', '.join(sorted(found))}")
    raise _unknown_agent(name, curves)


def _tell_repeated(curves: Sequence[Curve]) -> None:
    """Warn of a seed that was read more than once: a copied run is no further seed."""
    read: dict[tuple[str, str, str], list[str]] = {}
    for curve in curves:
        read.setdefault((curve.seed, curve.agent, curve.task), []).append(str(curve.run or "a CSV file"))
    repeated = {key: places for key, places in read.items() if len(places) > 1}
    for (seed, agent, task), places in list(repeated.items())[:1]:
        more = f"; so do {len(repeated) - 1} more" if len(repeated) > 1 else ""
        where = ", ".join(places)
        log.warning("seed %s of %s on %s counts as %d runs (%s)%s", seed, agent, task, len(places), where, more)


def _tell_protocols(curves: Sequence[Curve]) -> None:
    names = sorted({curve.protocol for curve in curves if curve.protocol is not None})
    if len(names) > 1:
        log.warning("the figure mixes protocols, whose success rates are not comparable: %s", ", ".join(names))


def _common_folder(runs: Sequence[Path]) -> Path:
    """The innermost folder that holds all runs, relative to the current folder if it is inside it."""
    folders = [(path if path.is_dir() else path.parent).resolve() for path in runs]
    common = Path(os.path.commonpath(folders))
    if common == Path(common.anchor) and common not in folders:
        raise UserError("the runs have no folder in common: say with --output where the figures go")
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common


def output_names(output: Path) -> tuple[Path, list[str]]:
    """The path without suffix, and the suffixes to write."""
    if output.suffix not in ("", *FORMATS):
        raise UserError(f"cannot draw {output}: the name must end in {', '.join(FORMATS)}")
    return output.with_suffix(""), [output.suffix] if output.suffix else [".png", ".svg"]


def _input_files(paths: Sequence[Path]) -> set[Path]:
    return {file.resolve() for path in paths if path.exists() for file in curve_files(path)}


def _require_no_overwriting(stem: Path, inputs: Collection[Path]) -> None:
    for name in (stem.name, stem.name + OVER_TASKS):
        data = stem.with_name(f"{name}.csv")
        if data.resolve() in inputs and not drawn_data(data):
            raise UserError(f"the drawn data would overwrite {data}: choose another name with --output")


def _choose(curves: Sequence[Curve], agents: Sequence[str]) -> list[Curve]:
    """The curves of some agents. A name without brackets stands for all agents that differ in the brackets."""
    for agent in agents:
        if not any(_is_named(curve, agent) for curve in curves):
            raise _unknown_agent(agent, curves)
    return [curve for curve in curves if not agents or any(_is_named(curve, agent) for agent in agents)]


def _unknown_agent(agent: str, curves: Sequence[Curve]) -> UserError:
    return UserError(f"no curve of agent {agent!r}: choose from {', '.join(sorted({curve.agent for curve in curves}))}")


def _is_named(curve: Curve, agent: str) -> bool:
    return curve.agent == agent or curve.agent.startswith(f"{agent} [")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _over_tasks(
    curves: Sequence[Curve], files: list[Path], x_label: str, styles: Mapping[str, Style], baseline: str | None
) -> list[Path]:
    """Draw the second figure, if there are two agents or two tasks.

    Returns:
        The files; empty if there is no figure, and then files of an earlier call are removed.
    """
    data = files[0].with_suffix(".csv")
    for file in (*files, data):
        file.unlink(missing_ok=True)
    result = aggregate(curves, baseline) if is_comparison(curves) else None
    if result is None:
        return []
    save(aggregate_figure(result, x_label, styles), files)
    write_aggregates(result, data)
    return files


def is_comparison(curves: Sequence[Curve]) -> bool:
    """Whether there are two agents or two tasks."""
    return max(len({curve.agent for curve in curves}), len({curve.task for curve in curves})) > 1
