"""What run folders say for a report: results with intervals, how settings differ, and where each run came from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbrl.results.curves import Curve, Floats, area, mean_interval
from mbrl.results.protocol import OF_ONE_RUN, Settings
from mbrl.run_folder.config import flat, load_settings
from mbrl.run_folder.provenance import read_starts
from mbrl.run_folder.state import RunState, run_folders, run_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run folder, under the name that its curve has."""

    agent: str
    task: str
    seed: str
    evaluated: bool
    state: RunState
    settings: Settings
    config: str  # config.yaml as it is
    starts: Sequence[dict[str, Any]]

    @property
    def commands(self) -> list[str]:
        """What it was started and gone on with, each command once."""
        return list(dict.fromkeys(str(start["command"]) for start in self.starts if "command" in start))


@dataclass(frozen=True)
class Result:
    """An agent on a task: mean over seeds and its interval, at the last steps that all seeds have and until there."""

    task: str
    agent: str
    seeds: int
    env_steps: float
    last: tuple[float, float, float]
    mean: tuple[float, float, float]


def gather_runs(folder: Path, curves: Sequence[Curve]) -> list[Run]:
    """The runs of the curves, in their order, and those in the folder that have none yet; what is torn is named."""
    first: dict[Path, Curve] = {}  # of a run with several tasks one curve names it
    for curve in curves:
        if curve.run is not None:
            first.setdefault(curve.run, curve)
    runs = [run for where, curve in first.items() if (run := _run(where, curve)) is not None]
    others = [other for other in run_folders(folder) if other not in first]
    return runs + [run for other in others if (run := _run(other)) is not None]


def _run(folder: Path, curve: Curve | None = None) -> Run | None:
    state = run_state(folder)
    if state is None:
        log.warning("skipped %s: its config.yaml is torn or of no run", folder)
        return None
    settings = load_settings(folder)
    agent = curve.agent if curve else str(settings.get("agent.name"))
    task, seed = str(settings.get("env.task", "toy")), str(settings.get("seed"))
    config = (folder / "config.yaml").read_text()
    return Run(agent, task, seed, curve is not None, state, settings, config, read_starts(folder))


def results(curves: Sequence[Curve]) -> list[Result]:
    """A row for each task and agent whose seeds have steps in common."""
    rows = []
    for task, agent in sorted({(curve.task, curve.agent) for curve in curves}):
        own = [curve for curve in curves if (curve.task, curve.agent) == (task, agent)]
        start, end = max(float(curve.steps[0]) for curve in own), min(float(curve.steps[-1]) for curve in own)
        if end < start:
            log.warning("no result of %s on %s: its seeds have no env steps in common", agent, task)
            continue
        last = np.array([np.interp(end, curve.steps, curve.success) for curve in own])
        mean = np.array([area(_between(curve, start, end)) for curve in own])
        rows.append(Result(task, agent, len(own), end, _interval(last), _interval(mean)))
    return rows


def _between(curve: Curve, start: float, end: float) -> Curve:
    """Joined by straight lines."""
    steps = np.unique([start, end, *curve.steps[(curve.steps > start) & (curve.steps < end)]])
    return replace(curve, steps=steps, success=np.interp(steps, curve.steps, curve.success))


def _interval(values: Floats) -> tuple[float, float, float]:
    mean, low, high = (float(its) for its in mean_interval(values))
    return (mean, low, high) if len(values) > 1 else (mean, float("nan"), float("nan"))


def differences(runs: Sequence[Run]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The agents, and every setting in which they differ with its value for each; "–": it has none.

    Of the first evaluated run of each agent: runs of one name differ in nothing that matters.
    """
    first = {run.agent: run.settings for run in reversed(runs) if run.evaluated}
    agents = sorted(first)
    keys = sorted({key for settings in first.values() for key in settings} - OF_ONE_RUN - {"agent.name"})
    rows = [(key, [str(first[agent].get(key, "–")) for agent in agents]) for key in keys]
    return agents, [(key, values) for key, values in rows if len(set(values)) > 1]


def origins(runs: Sequence[Run]) -> list[tuple[list[str], dict[str, Any]]]:
    """Each combination of code, packages and machine that runs were last started with, and these runs."""
    found: list[tuple[list[str], dict[str, Any]]] = []
    for run in runs:
        if not run.starts:
            continue
        origin = flat(run.starts[-1])
        for own in ("time", "env_steps", "command"):
            origin.pop(own, None)
        same = next((names for names, other in found if other == origin), None)
        if same is None:
            found.append(([_name(run)], origin))
        else:
            same.append(_name(run))
    return found


def _name(run: Run) -> str:
    return f"{run.agent} · {run.task} · seed {run.seed}"
