"""Status of a run, read from the ends of its files."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbrl.errors import UserError
from mbrl.run_folder.config import read_config
from mbrl.run_folder.files import walk
from mbrl.run_folder.lock import is_locked
from mbrl.run_folder.paths import CHECKPOINTS, CONFIG, METRICS, TRAINED_ON, checkpoint_folders
from mbrl.run_folder.plain_json import MAX_INTEGER, parse_json

FAILURE = "failure.txt"  # why the run's last attempt in a sweep ended
CURVE = "curve.png"  # drawn at the end
EVAL_TASKS = "eval_tasks.csv"  # the success of each task, where a run has several
TAIL_BYTES = 65536  # bytes of metrics.jsonl that are read
# Environments whose steps need not report success: an evaluation then counts none.
MAY_LACK_SUCCESS = ("mbrl.envs.dmc.make_env", "mbrl.envs.registered.make_env")
STALE_SECONDS = 300  # seconds without a new row after which a run of another machine counts as stopped


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        state: done, running, failed, stopped (its process has ended; or, where that cannot be seen from here, there was
            no word for STALE_SECONDS seconds) or waiting (it has not begun).
        success: of its last evaluation; None before the first.
        seconds_left: at its mean pace so far; None where that is not known, 0 where it is done.
        returned: return of its last evaluation, where its environment need not report success and never has; else None.
    """

    folder: Path
    state: str
    env_steps: int
    total_env_steps: int
    success: float | None
    seconds_left: float | None
    returned: float | None = None


def run_folders(folder: Path) -> list[Path]:
    """The run folders in a folder, at any depth, or the folder itself. A config.yaml of something else hides none.

    A world model that was trained without a run (`mbrl predict --train`) is none, though its folder is alike.

    Raises:
        FileNotFoundError: there is no such folder. ValueError: it holds no run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    runs, torn = [], []
    for place, folders, files in walk(folder):
        if TRAINED_ON in files:
            folders.clear()
        if CONFIG not in files or TRAINED_ON in files:
            continue
        if METRICS in files or CHECKPOINTS in folders or _total_env_steps(place) is not None:
            runs.append(place)
            folders.clear()  # within a run others keep files: wandb
        else:  # a run that was torn before it began, or no run: it hides none
            torn.append(place)
    above = {parent for run in runs for parent in run.parents}
    found = runs + [one for one in torn if one not in above and not set(torn) & set(one.parents)]
    if not found:
        raise UserError(f"{folder} holds no run folders: give runs, runs/AGENT or a run's folder")
    return sorted(found)


def _total_env_steps(folder: Path) -> int | None:
    """The length of the run in a folder; None where its config.yaml is of no run or torn."""
    try:
        total = int(read_config(folder / CONFIG).total_env_steps)
    except (OSError, ValueError, TypeError, OverflowError, OmegaConfBaseException):
        return None
    return total if 1 <= total <= MAX_INTEGER else None


def latest_env_steps(folder: Path) -> int:
    """Env steps at the run's newest checkpoint; 0 where there is none."""
    return max(checkpoint_folders(folder / CHECKPOINTS), default=0)


def is_done(folder: Path, total_env_steps: int) -> bool:
    """Whether the run came to its end: its last checkpoint is there and its curve is drawn.

    Where somebody has removed all checkpoints, its last row counts, so that what is done is not done again.
    """
    reached = latest_env_steps(folder) or int(last_row(folder / METRICS).get("env_steps", 0))
    return reached >= total_env_steps and (folder / CURVE).exists()


def run_state(folder: Path, now: float | None = None) -> RunState | None:
    """How far the run in a folder is; None where its config.yaml is of no run or torn."""
    total = _total_env_steps(folder)
    if total is None:
        return None
    rows = folder / METRICS
    last = last_row(rows)
    steps, (success, returned) = int(last.get("env_steps", 0)), _last_evaluation(folder)
    if is_done(folder, total):
        return RunState(folder, "done", max(steps, total), total, success, 0.0, returned)
    state = _unfinished(folder, rows, now or time.time())
    pace = last["wall_time"] / steps if steps and "wall_time" in last else None
    left = None if pace is None else pace * max(0, total - steps)
    return RunState(folder, state, steps, total, success, left, returned)


def _unfinished(folder: Path, rows: Path, now: float) -> str:
    at_work = is_locked(folder)
    if not at_work and (folder / FAILURE).exists():
        return "failed"
    if at_work is None:
        at_work = rows.is_file() and now - rows.stat().st_mtime < STALE_SECONDS
    if at_work:
        return "running"
    return "stopped" if rows.is_file() else "waiting"


def last_row(file: Path) -> dict[str, Any]:
    """The last whole row of a metrics.jsonl that counts the time."""
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = stream.read().decode(errors="replace").split("\n")
    for line in reversed(lines[:-1]):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(_is_count(row.get(key)) for key in ("env_steps", "wall_time")):
            return row
    return {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= MAX_INTEGER


def _last_evaluation(folder: Path) -> tuple[float | None, float | None]:
    """`RunState.success` and `RunState.returned`."""
    file = folder / "eval.csv"
    if not file.is_file():
        return None, None
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("success")]
        successes = [float(row["success"]) for row in rows]
        returned = float(rows[-1]["return"]) if rows and rows[-1].get("return") else None
    except (ValueError, csv.Error):  # torn, or no run's
        return None, None
    if any(successes) or OmegaConf.select(read_config(folder / CONFIG), "env._target_") not in MAY_LACK_SUCCESS:
        returned = None
    return (successes[-1] if successes else None), returned
