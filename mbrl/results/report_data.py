"""Data of a report, read from run folders: results with intervals, differences in settings, and provenance."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.errors import UserError
from mbrl.results.curves import METRICS, Curve, area, between, shared_range
from mbrl.results.grouping import PER_RUN, Settings, short_name, task_name
from mbrl.results.intervals import Floats, mean_interval
from mbrl.run_folder.config import flatten, load_settings
from mbrl.run_folder.files import require_regular_files
from mbrl.run_folder.provenance import read_starts
from mbrl.run_folder.state import RunState, run_folders, run_state

ABSENT = "–"  # a run has no such setting

Interval = tuple[float, float, float]  # mean, lower and upper end; the ends are NaN for one seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportedRun:
    """One run folder.

    Attributes:
        agent: name of the agent, as its curve has it.
        task, seed: of the run.
        evaluated: whether there is a curve.
        state: how far the run is.
        settings: settings with dotted keys.
        config: text of config.yaml.
        starts: provenance of each start of the run, oldest first.
    """

    agent: str
    task: str
    seed: str
    evaluated: bool
    state: RunState
    settings: Settings
    config: str
    starts: Sequence[dict[str, Any]]

    @property
    def commands(self) -> list[str]:
        """The commands that started or continued the run, without repetitions."""
        return list(dict.fromkeys(str(start["command"]) for start in self.starts if "command" in start))


@dataclass(frozen=True)
class Result:
    """Results of an agent on a task.

    Attributes:
        task, agent: names.
        seeds: number of seeds.
        env_steps: the last env steps that all seeds have.
        last: success rate, or another metric, there.
        mean: its mean until there: the area under the curve, divided by its length.
    """

    task: str
    agent: str
    seeds: int
    env_steps: float
    last: Interval
    mean: Interval


def gather_runs(folder: Path, curves: Sequence[Curve]) -> list[ReportedRun]:
    """The runs of the curves, in their order, then the runs in the folder that were not evaluated yet.

    Folders whose config.yaml cannot be read, and folders with links, are skipped with a warning: a page that somebody
    publishes must not hold what a link in a stranger's run points to.
    """
    first: dict[Path, Curve] = {}  # a run with several tasks has several curves
    for curve in curves:
        if curve.run is not None:
            first.setdefault(curve.run, curve)
    runs = [run for path, curve in first.items() if (run := _read_run(path, curve)) is not None]
    others = [other for other in run_folders(folder) if other not in first]
    return runs + [run for other in others if (run := _read_run(other)) is not None]


def _read_run(folder: Path, curve: Curve | None = None) -> ReportedRun | None:
    state = run_state(folder)
    if state is None:
        log.warning("skipped %s: its config.yaml is incomplete or belongs to no run", folder)
        return None
    try:
        require_regular_files(folder)
    except UserError as error:
        log.warning("skipped %s: %s", folder, error)
        return None
    settings = load_settings(folder)
    agent = curve.agent if curve else short_name(str(settings.get("agent.name")))
    task, seed = task_name(str(settings.get("env.task", "toy"))), str(settings.get("seed"))
    config = (folder / "config.yaml").read_text(encoding="utf-8-sig")
    return ReportedRun(agent, task, seed, curve is not None, state, settings, config, read_starts(folder))


def results(curves: Sequence[Curve]) -> list[Result]:
    """One row for each task and agent whose seeds have steps in common."""
    rows = []
    for task, agent in sorted({(curve.task, curve.agent) for curve in curves}):
        seeds = [curve for curve in curves if (curve.task, curve.agent) == (task, agent)]
        shared = shared_range(seeds)
        if shared is None:
            log.warning("no result of %s on %s: its seeds have no env steps in common", agent, task)
            continue
        common = [between(curve, *shared) for curve in seeds]
        last, mean = np.array([curve.success[-1] for curve in common]), np.array([area(curve) for curve in common])
        intervals = (_interval(values, seeds[0]) for values in (last, mean))
        rows.append(Result(task, agent, len(seeds), shared[1], *intervals))
    return rows


def _interval(values: Floats, of: Curve) -> Interval:
    mean, low, high = (float(value) for value in mean_interval(values, METRICS[of.metric][1]))
    return mean, low, high


def differences(runs: Sequence[ReportedRun]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The settings in which agents differ.

    The first evaluated run stands for its agent: runs of one name are seeds of one experiment.

    Returns:
        The agents, and for each setting its key and the value of each agent, ABSENT if it has none.
    """
    first = {run.agent: run.settings for run in reversed(runs) if run.evaluated}
    agents = sorted(first)
    keys = sorted({key for settings in first.values() for key in settings} - PER_RUN - {"agent.name"})
    rows = [(key, [str(first[agent].get(key, ABSENT)) for agent in agents]) for key in keys]
    return agents, [(key, values) for key, values in rows if len(set(values)) > 1]


def origins(runs: Sequence[ReportedRun]) -> list[tuple[list[str], dict[str, Any]]]:
    """Each combination of code, packages and machine, with the runs whose last start had it."""
    found: list[tuple[list[str], dict[str, Any]]] = []
    for run in runs:
        if not run.starts:
            continue
        origin = flatten(run.starts[-1])
        for key in ("time", "env_steps", "command"):  # differ between all runs
            origin.pop(key, None)
        same = next((names for names, other in found if other == origin), None)
        if same is None:
            found.append(([_name(run)], origin))
        else:
            same.append(_name(run))
    return found


def _name(run: ReportedRun) -> str:
    return f"{run.agent} · {run.task} · seed {run.seed}"
