"""Learning curves as data: read from run folders and CSV files, and summed up over seeds."""

import csv
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mbrl.errors import UserError
from mbrl.results.protocol import Settings, distinct_names
from mbrl.run_folder.config import load_settings
from mbrl.run_folder.state import EVAL_TASKS

Floats = NDArray[np.float64]

Points = dict[tuple[str, str], dict[float, float]]  # (one task of several, seed) -> step -> success

OF_RUNS = ("eval.csv", EVAL_TASKS)  # written by runs, each line ended
OF_SEVERAL = " · "  # between what several tasks are called together and the name of one
PUBLISHED = " (published)"  # how the names of agents from elsewhere end
# what curves can be drawn over: column of metrics.jsonl -> how it is called, and its size in the units drawn
AXES = {"env_steps": ("env steps", 1.0), "gradient_steps": ("gradient steps", 1.0), "wall_time": ("hours", 3600.0)}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """Success rates [N] in [0, 1] of one seed at env steps [N] (or along another of AXES), which rise.

    `run` is the run's folder; None where the curve is from a CSV file.
    """

    task: str
    agent: str
    seed: str
    steps: Floats
    success: Floats
    run: Path | None = None


@dataclass(frozen=True)
class Band:
    """Mean success [N] over the seeds at env steps [N], between the ends of its 95 % interval [N]."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


class _Read(NamedTuple):
    """The curves of one file, and what is known of the experiment."""

    agent: str
    settings: Settings | None
    curves: list[Curve]


def read_curves(paths: Iterable[Path], axis: str = "env_steps") -> list[Curve]:
    """The curves in run folders, in folders of them at any depth, and in CSV files of step,success,seed.

    Runs with several tasks have a curve of their mean, and one of each. Runs of one agent whose settings differ, or of
    any whose protocols do, have these in the agent's name. What cannot be read is skipped and named in a warning.

    Args:
        axis: of AXES; CSV files have env steps alone.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: none of them holds a curve.
    """
    files: dict[Path, Path] = {}  # each once
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no run folder or CSV file {path}")
        for file in curve_files(path):
            files.setdefault(file.resolve(), file)
    found = [read for file in files.values() if (read := _read_file(file, axis)) is not None]
    if not found:
        named = ", ".join(str(path) for path in paths)
        raise UserError(f"no evaluations to draw in {named}: give run folders (runs/AGENT/TASK/seedN) or CSV files")
    names = distinct_names([read.agent for read in found], [read.settings for read in found])
    return [replace(curve, agent=name) for read, name in zip(found, names, strict=True) for curve in read.curves]


def curve_files(path: Path) -> list[Path]:
    """The file itself, the eval.csv of each run in a folder, or a folder's CSV files where it has no runs."""
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("eval.csv")) or sorted(path.rglob("*.csv")) if file.is_file()]


def _read_file(file: Path, axis: str) -> _Read | None:
    try:
        agent, task, settings = _experiment(file)
        run = None if settings is None else file.parent
        points, along = _all_points(file), _axis(axis, file)
        curves = []
        for (part, seed), rows in points.items():
            steps, success = along(np.array(sorted(rows))), np.array([rows[step] for step in sorted(rows)])
            kept = np.append(steps[1:] > steps[:-1], True)  # of evaluations at one place on the axis the last counts
            named = f"{task}{OF_SEVERAL}{part}" if part else task
            curves.append(Curve(named, agent, seed, steps[kept], success[kept], run))
    except (OSError, UserError, UnicodeDecodeError, YAMLError, OmegaConfBaseException, csv.Error) as error:
        log.warning("skipped %s: %s", file, " ".join(str(error).split()))
        return None
    return _Read(agent, settings, curves)


def _axis(axis: str, file: Path) -> Callable[[Floats], Floats]:
    """Where evaluations after so many env steps lie on an axis, by the run's metrics.jsonl."""
    if axis == "env_steps":
        return lambda env_steps: env_steps
    metrics = file.parent / "metrics.jsonl"
    if file.name != "eval.csv" or not metrics.is_file():
        raise UserError(f"it has env steps, but no {AXES[axis][0]}")
    rows = []
    for line in metrics.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows.append((row["env_steps"], row[axis] / AXES[axis][1]))
        except (ValueError, KeyError, TypeError):
            continue  # an evaluation's row, or a line that was broken off
    if not rows:
        raise UserError(f"{metrics} has no {axis}")
    known, values = np.array(rows).T
    return lambda env_steps: np.interp(env_steps, known, values)


def _all_points(file: Path) -> Points:
    """Of a run with several tasks also those of each."""
    of_each = file.with_name(EVAL_TASKS)
    if file.name != "eval.csv" or not of_each.is_file():
        return _points(file)
    try:
        parts = {key: rows for key, rows in _points(of_each).items() if key[0]}
    except (UserError, UnicodeDecodeError) as error:
        log.warning("skipped %s: %s", of_each, error)
        parts = {}
    return _points(file) | parts


def _points(file: Path) -> Points:
    """A last line that was broken off in writing is left out."""
    points: Points = {}
    with file.open(newline="") as stream:
        lines = stream.readlines()
        if file.name in OF_RUNS and lines and not lines[-1].endswith("\n"):
            log.warning("skipped line %d of %s, which is broken off", len(lines), file)
            lines.pop()
        reader = csv.DictReader(lines)
        if not {"step", "success", "seed"} <= set(reader.fieldnames or ()):
            raise UserError("its first line is not step,success,seed")
        for row in reader:
            try:
                step, success = float(row["step"]), float(row["success"])
            except (TypeError, ValueError):
                log.warning("skipped line %d of %s, which is broken off", reader.line_num, file)
                continue
            if not np.isfinite([step, success]).all():
                log.warning("skipped line %d of %s, which has no finite numbers", reader.line_num, file)
                continue
            points.setdefault((row.get("task") or "", row["seed"] or ""), {})[step] = success
    if not points:
        raise UserError("it has no evaluations yet")
    values = [value for rows in points.values() for value in rows.values()]
    if min(values) < 0 or max(values) > 1:
        raise UserError(f"success of {min(values):g} to {max(values):g} is no rate in [0, 1]")
    return points


def _experiment(file: Path) -> tuple[str, str, Settings | None]:
    """Agent, task and settings of a run, or agent and task from the path of a published curve, AGENT/TASK.csv."""
    configuration = file.parent / "config.yaml"
    if file.name != "eval.csv":
        return file.resolve().parent.name, file.stem.removeprefix("mw-"), None
    if not configuration.is_file():
        raise UserError("its folder has no config.yaml")
    settings = load_settings(configuration.parent)
    agent = settings.get("agent.name")
    if agent is None:
        raise UserError(f"{configuration} names no agent")
    demos = settings.get("replay.demos")  # never one curve with those that had none
    return str(agent) if demos is None else f"{agent} + demos", str(settings.get("env.task", "toy")), settings


def published(folder: Path, beside: Sequence[Curve]) -> list[Curve]:
    """The curves in a folder AGENT/TASK.csv of the tasks of others, as far as these go; agents are named as published.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds no curve of these tasks.
    """
    ends: dict[str, float] = {}
    for curve in beside:
        ends[curve.task] = max(ends.get(curve.task, 0.0), float(curve.steps[-1]))
    found = [until(curve, ends[curve.task]) for curve in read_curves([folder]) if curve.task in ends]
    if not found:
        raise UserError(f"{folder} holds no curve of {', '.join(sorted(ends))}")
    return [replace(curve, agent=curve.agent + PUBLISHED) for curve in found if len(curve.steps)]


def until(curve: Curve, last: float) -> Curve:
    """Its points up to `last` env steps, the straight line to the next one cut there."""
    within = curve.steps <= last
    steps, success = curve.steps[within], curve.success[within]
    if 0 < len(steps) < len(curve.steps) and steps[-1] < last:
        steps = np.append(steps, last)
        success = np.append(success, np.interp(last, curve.steps, curve.success))
    return replace(curve, steps=steps, success=success)


def mean_interval(values: Floats, resamples: int = 2000) -> tuple[Floats, Floats, Floats]:
    """Mean over the runs of values [runs, ...], and the ends of its bootstrap 95 % interval."""
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5], axis=0)
    return values.mean(axis=0), low, high


def summarise(curves: Sequence[Curve]) -> Band | None:
    """Mean over the runs with a bootstrap 95 % interval; None where the runs have no env steps in common.

    Runs of unequal length count where all of them have data, as a mean over the longest alone would mislead;
    between its evaluations a run counts with the straight line that joins them.
    """
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    if len(steps) == 0:
        return None
    values = np.stack([np.interp(steps, curve.steps, curve.success) for curve in curves])  # [runs, N]
    return Band(steps, *mean_interval(values))


def area(curve: Curve) -> float:
    """The area under a curve over its env steps, in [0, 1]: its mean success, joined by straight lines."""
    length = curve.steps[-1] - curve.steps[0]
    return float(np.trapezoid(curve.success, curve.steps) / length) if length else float(curve.success[-1])
