"""Read learning curves from run folders and CSV files."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mbrl.errors import UserError
from mbrl.results.curves import AXES, METRICS, PUBLISHED, SUBTASK, Curve, truncate
from mbrl.results.grouping import NAMED, Settings, distinct_names, names_by_study, short_name, task_name
from mbrl.results.intervals import Floats
from mbrl.results.metric_rows import metric_rows
from mbrl.run_folder.config import load_settings
from mbrl.run_folder.files import walk
from mbrl.run_folder.plain_json import MAX_INTEGER, parse_json
from mbrl.run_folder.state import EVAL_TASKS

Points = dict[tuple[str, str], dict[float, float]]  # (task of a multi-task run or "", seed) -> step -> success

WRITTEN_BY_RUNS = ("eval.csv", EVAL_TASKS)  # a run ends each of their lines, so that a line without an end is torn
# first lines of the files that `mbrl plot` writes, which are no input when it is called again
CURVE_COLUMNS = ("task", "agent", "line", "step", "success", "low", "high")
AGGREGATE_COLUMNS = ("figure", "agent", "x", "value", "low", "high")
PROTOCOL_FILE = "protocol.txt"  # in a folder of published curves: which of configs/protocol they follow
ROUNDING = 1e-6  # by which a rate may leave [0, 1]

log = logging.getLogger(__name__)


class _CurveFile(NamedTuple):
    """The curves of one file.

    Attributes:
        source: the path that it was found under.
        agent: name of the agent.
        settings: those of its run; None for a CSV file.
        study: folder of the agents' folders of a CSV file; None for a run.
        curves: what it holds.
    """

    source: Path
    agent: str
    settings: Settings | None
    study: Path | None
    curves: list[Curve]


def read_curves(
    paths: Iterable[Path], axis: str = "env_steps", labels: Sequence[str] = (), metric: str = "success"
) -> list[Curve]:
    """Read the curves in run folders, folders of runs at any depth, and CSV files with columns step,success,seed.

    A run with several tasks has one curve of their mean and one of each task. If runs of one agent differ in their
    settings, or any runs differ in their evaluation protocol, the agent's name contains these settings. If CSV files of
    one agent are from different studies (STUDY/AGENT/TASK.csv), or there are runs of it too, its name contains the
    study. Files that cannot be read are skipped with a warning.

    Args:
        paths: run folders, folders of runs, or CSV files.
        axis: x-axis, a key of AXES. CSV files have env steps only.
        labels: names of the agents, one for each path; empty to name them by their settings.
        metric: a key of METRICS. Other metrics than success come from a run's metrics.jsonl, or the column of that
            name in a CSV file.

    Returns:
        The curves; each file is read once.

    Raises:
        FileNotFoundError: A path does not exist.
        UserError: No path holds a curve, or a label does not stand for one agent.
    """
    paths = list(paths)
    if labels and len(labels) != len(paths):
        raise UserError(f"{len(labels)} labels for {len(paths)} paths: give --label once for each RUN, in their order")
    files: dict[Path, tuple[Path, Path]] = {}  # resolved file -> the file, the path it was found under
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no run folder or CSV file {path}")
        for file in curve_files(path):
            files.setdefault(file.resolve(), (file, path))
    found = [read for file, path in files.values() if (read := _read_file(file, path, axis, metric)) is not None]
    if not found:
        listed = ", ".join(str(path) for path in paths)
        raise UserError(f"no evaluations to draw in {listed}: give run folders (runs/AGENT/TASK/seedN) or CSV files")
    names = distinct_names([read.agent for read in found], [read.settings for read in found])
    names = names_by_study(names, [read.study for read in found])
    if labels:
        names = _labelled(names, [read.source for read in found], dict(zip(paths, labels, strict=True)))
    return [replace(curve, agent=name) for read, name in zip(found, names, strict=True) for curve in read.curves]


def _labelled(names: Sequence[str], sources: Sequence[Path], labels: dict[Path, str]) -> list[str]:
    """Replace agent names by labels. Different agents under one label would be averaged, so they are refused."""
    agents: dict[str, set[str]] = {}
    for name, source in zip(names, sources, strict=True):
        agents.setdefault(labels[source], set()).add(name)
    for label, several in agents.items():
        if len(several) > 1:
            listed = ", ".join(sorted(several))
            raise UserError(
                f"label {label!r} would name {len(several)} agents ({listed}): give each agent as a RUN of its own, "
                "with a --label of its own"
            )
    return [short_name(labels[source]) for source in sources]


def curve_files(path: Path) -> list[Path]:
    """The file itself, the eval.csv of each run in a folder, or the CSV files of a folder without runs."""
    if path.is_file():
        return [path]
    found = sorted(place / name for place, _, files in walk(path) for name in files if name.endswith(".csv"))
    regular = [file for file in found if file.is_file()]
    evaluations = [file for file in regular if file.name == "eval.csv"]
    return evaluations or [file for file in regular if not drawn_data(file)]


def drawn_data(file: Path) -> bool:
    """Whether `mbrl plot` wrote the file."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        curves = (",".join(CURVE_COLUMNS).replace("success", metric) for metric in METRICS)
        return stream.readline().rstrip("\n") in {*curves, ",".join(AGGREGATE_COLUMNS)}


def _read_file(file: Path, source: Path, axis: str, metric: str) -> _CurveFile | None:
    try:
        agent, task, settings = _experiment(file)
        run = None if settings is None else file.parent
        points, to_axis = _points_of_tasks(file) if metric == "success" else _others(file, metric), _axis(axis, file)
        protocol = None if settings is None else str(settings.get(NAMED, "default"))
        curves = []
        for (subtask, seed), rows in points.items():
            steps, success = to_axis(np.array(sorted(rows))), np.array([rows[step] for step in sorted(rows)])
            kept = np.append(steps[1:] > steps[:-1], True)  # the last of several evaluations at one place counts
            name = f"{task}{SUBTASK}{task_name(subtask)}" if subtask else task
            at, values = steps[kept], success[kept]
            curves.append(Curve(name, agent, seed, at, values, run, metric=metric, protocol=protocol))
    except (OSError, UserError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, csv.Error) as error:
        log.warning("skipped %s: %s", file, " ".join(str(error).split()))
        return None
    study = file.resolve().parent.parent if settings is None else None
    return _CurveFile(source, agent, settings, study, curves)


def _axis(axis: str, file: Path) -> Callable[[Floats], Floats]:
    """The function from env steps to positions on an axis, interpolated between rows of the run's metrics.jsonl."""
    if axis == "env_steps":
        return lambda env_steps: env_steps
    metrics = file.parent / "metrics.jsonl"
    if file.name != "eval.csv" or not metrics.is_file():
        raise UserError(f"it has env steps, but no {AXES[axis][0]}")
    rows = []
    for line in metrics.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        try:
            row = parse_json(line)
            rows.append((float(row["env_steps"]), float(row[axis]) / AXES[axis][1]))
        except (ValueError, KeyError, TypeError):
            continue  # the row of an evaluation, or a torn line
    if not rows:
        raise UserError(f"{metrics} has no {axis}")
    known, values = np.array(rows).T
    return lambda env_steps: np.interp(env_steps, known, values)


def _points_of_tasks(file: Path) -> Points:
    """The evaluations in a file and, for a run with several tasks, those of each task."""
    task_file = file.with_name(EVAL_TASKS)
    if file.name != "eval.csv" or not task_file.is_file():
        return _points(file)
    try:
        subtasks = {key: rows for key, rows in _points(task_file).items() if key[0]}
    except (UserError, UnicodeDecodeError) as error:
        log.warning("skipped %s: %s", task_file, error)
        subtasks = {}
    return _points(file) | subtasks


def _others(file: Path, metric: str) -> Points:
    """The evaluations in a file by a metric that is not success."""
    if file.name != "eval.csv":
        return _points(file, metric)
    (_, seed), *_ = _points(file)
    rows = metric_rows(file.parent, (f"eval/{metric}",)).get(f"eval/{metric}")
    if rows is None:
        raise UserError(f"the metrics.jsonl beside it has no eval/{metric}")
    return {("", seed): {float(step): float(value) for step, value in rows}}


def _points(file: Path, metric: str = "success") -> Points:
    points: Points = {}
    with file.open(newline="", encoding="utf-8-sig") as stream:
        lines = stream.readlines()
    if file.name in WRITTEN_BY_RUNS and lines and not lines[-1].endswith("\n"):
        log.warning("skipped line %d of %s, which is incomplete", len(lines), file)
        lines.pop()
    reader = csv.DictReader(lines)
    if not {"step", metric, "seed"} <= set(reader.fieldnames or ()):
        raise UserError(f"its first line is not step,{metric},seed")
    for row in reader:
        try:
            step, success = float(row["step"]), float(row[metric])
        except (TypeError, ValueError):
            log.warning("skipped line %d of %s, which is incomplete", reader.line_num, file)
            continue
        if not (np.isfinite(success) and 0 <= step <= MAX_INTEGER):
            log.warning("skipped line %d of %s: its numbers are no step and no rate", reader.line_num, file)
            continue
        points.setdefault((row.get("task") or "", row["seed"] or ""), {})[step] = success
    if not points:
        raise UserError("it has no evaluations yet")
    if metric != "success":
        return points
    values = [value for rows in points.values() for value in rows.values()]
    if min(values) < -ROUNDING or max(values) > 1 + ROUNDING:
        raise UserError(f"success of {min(values):g} to {max(values):g} is no rate in [0, 1]")
    return {key: {step: min(max(rate, 0.0), 1.0) for step, rate in rows.items()} for key, rows in points.items()}


def _experiment(file: Path) -> tuple[str, str, Settings | None]:
    """Agent, task and settings of a run, or agent and task from the path AGENT/TASK.csv of a published curve."""
    if file.name != "eval.csv":
        return short_name(file.resolve().parent.name), task_name(file.stem.removeprefix("mw-")), None
    configuration = file.parent / "config.yaml"
    if not configuration.is_file():
        raise UserError("its folder has no config.yaml")
    settings = load_settings(configuration.parent)
    agent = settings.get("agent.name")
    if agent is None:
        raise UserError(f"{configuration} names no agent")
    demos = settings.get("replay.demos")  # runs with demonstrations are never averaged with runs without
    name = short_name(str(agent))
    return name if demos is None else f"{name} + demos", task_name(str(settings.get("env.task", "toy"))), settings


def published_curves(folder: Path, curves: Sequence[Curve]) -> list[Curve]:
    """Read published curves of the tasks of other curves, up to the env steps of those.

    Args:
        folder: folder with files AGENT/TASK.csv, and PROTOCOL_FILE with the name of their protocol if it is known.
        curves: the other curves.

    Returns:
        The curves. The names of their agents end in PUBLISHED. Before it stands their protocol, if it is known and one
        of the other curves does not follow it.

    Raises:
        FileNotFoundError: The folder does not exist.
        UserError: It holds no curve of these tasks, or these are not of success.
    """
    if any(curve.metric != "success" for curve in curves):
        raise UserError("published curves are of success, and these of the return: leave out --reference")
    ends: dict[str, float] = {}
    for curve in curves:
        ends[curve.task] = max(ends.get(curve.task, 0.0), float(curve.steps[-1]))
    found = [truncate(curve, ends[curve.task]) for curve in read_curves([folder]) if curve.task in ends]
    if not found:
        raise UserError(f"{folder} holds no curve of {', '.join(sorted(ends))}")
    protocol = _published_protocol(folder)
    named = protocol is not None and any(curve.protocol != protocol for curve in curves)
    suffix = f" [protocol={protocol}]{PUBLISHED}" if named else PUBLISHED
    return [replace(curve, agent=curve.agent + suffix, protocol=protocol) for curve in found if len(curve.steps)]


def _published_protocol(folder: Path) -> str | None:
    file = folder / PROTOCOL_FILE
    return short_name(file.read_text(encoding="utf-8-sig").strip()) if file.is_file() else None
