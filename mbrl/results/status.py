"""`mbrl status`: progress of the runs in a folder, printed once or updated until all have ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mbrl.errors import UserError, one_line
from mbrl.run_folder.state import RunState, run_folders, run_state

STATES = {"done": "green", "running": "cyan", "waiting": "default", "stopped": "yellow", "failed": "red"}


def status(folder: Path, watch: float | None = None, console: Console | None = None) -> None:
    """Print the progress of each run in a folder.

    Args:
        folder: a run folder, or a folder of runs at any depth.
        watch: seconds between updates, which go on until all runs have ended. None prints once.
        console: where to print; None for the terminal.

    Raises:
        FileNotFoundError: The folder does not exist.
        UserError: It holds no run.
    """
    console = console or Console()
    states = _states(folder)
    if watch is None:
        console.print(overview(states, folder))
        return
    with Live(overview(states, folder), console=console, auto_refresh=False) as live:
        while any(state.state in ("running", "waiting") for state in states):
            time.sleep(watch)
            states = _states(folder)
            live.update(overview(states, folder), refresh=True)


def _states(folder: Path) -> list[RunState]:
    states = [state for state in map(run_state, run_folders(folder)) if state is not None]
    if not states:
        raise UserError(f"{folder} holds no run whose config.yaml can be read")
    return states


def overview(states: Sequence[RunState], folder: Path) -> Table:
    """A table with a row for each run. Its caption counts the states and estimates the time left.

    A run whose environment has never reported a success, and need not, shows its return.
    """
    table = Table(caption=summary(states), caption_justify="left", box=None, pad_edge=False)
    returns = any(run.returned is not None for run in states)
    for name in ("run", "state", "env steps", "", "success", *(["return"] if returns else []), "time left"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", overflow="fold")
    for run in states:
        share = run.env_steps / run.total_env_steps
        left = "" if run.seconds_left is None or run.state == "done" else duration(run.seconds_left)
        success = "" if run.success is None or run.returned is not None else f"{run.success:.2f}"
        returned = "" if run.returned is None else f"{run.returned:.1f}"
        table.add_row(
            Text(one_line(str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name)),
            Text(run.state, STATES[run.state]), f"{run.env_steps}/{run.total_env_steps}", f"{share:.0%}",
            success, *([returned] if returns else []), left,
        )  # fmt: skip
    return table


def summary(states: Sequence[RunState]) -> str:
    """Counts of the states and time left, such as "2 of 9 done, 2 running, 5 waiting; about 3 h 20 min left"."""
    counts = Counter(run.state for run in states)
    others = [f"{counts[name]} {name}" for name in STATES if name != "done" and counts[name]]
    text = ", ".join([f"{counts['done']} of {len(states)} done", *others])
    left = seconds_left(states)
    return text if left is None else f"{text}; about {duration(left)} left"


def seconds_left(states: Sequence[RunState]) -> float | None:
    """Estimated seconds until all running and waiting runs have ended, if as many as now run in parallel.

    A waiting run, and a running one without an estimate, counts with the mean duration of the other running ones.

    Returns:
        Seconds, never fewer than any run alone takes; None if no running run has an estimate.
    """
    running = [run for run in states if run.state == "running"]
    known = [run.seconds_left for run in running if run.seconds_left is not None]
    if not known:
        return None
    whole = [
        run.seconds_left * run.total_env_steps / (run.total_env_steps - run.env_steps)
        for run in running
        if run.seconds_left is not None and run.env_steps < run.total_env_steps
    ]
    ahead = sum(run.state == "waiting" for run in states) + len(running) - len(known)  # whole runs
    if ahead and not whole:  # every running run is in its last evaluation, so that no duration is known
        return None
    return max(*known, (sum(known) + (ahead * mean(whole) if ahead else 0.0)) / len(running))


def duration(seconds: float) -> str:
    """A duration in hours and minutes, or in seconds if it is below a minute."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
