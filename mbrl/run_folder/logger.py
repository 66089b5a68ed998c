"""Logging of a run: metrics.jsonl, eval.csv, TensorBoard events, and progress on stderr."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from mbrl.processes.usage import BusyCores
from mbrl.run_folder.files import write_atomically
from mbrl.run_folder.plain_json import finite_or_none, parse_json
from mbrl.run_folder.progress import Progress
from mbrl.run_folder.state import EVAL_TASKS
from mbrl.run_folder.wandb import WandbTracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVAL_HEADER = "step,success,seed,return"
EARLIER_HEADER = "step,success,seed"  # of runs of an earlier version, which go on with it
HEARTBEAT_SECONDS = 30.0  # well below what mbrl.run_folder.state takes for silence
TASKS_HEADER = "step,success,seed,task"


_log = logging.getLogger(__name__)


class EvaluationResult(Protocol):
    """An evaluation: its means by name, `success` among them, and the success of each task where there are several."""

    def summary(self) -> dict[str, float]: ...

    def success_of_tasks(self) -> dict[str, float]: ...


class MetricsWriter:
    """metrics.jsonl and TensorBoard events of a run folder. Writes each row as it comes: a killed run keeps them all.

    A resumed run drops what was logged after its checkpoint and goes on there; its files then equal those of
    a run that was never interrupted, but for `wall_time` and the keys that begin with `time/` or `memory/`.

    Args:
        run_dir: the run's folder, made where it is missing.
        counter: the key of every row that says when it was written.
        last: its value at the checkpoint that the run goes on from; -1 is a new run, and what another left goes.
    """

    def __init__(self, run_dir: Path, counter: str, last: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # costs a second

        run_dir.mkdir(parents=True, exist_ok=True)
        self._counter = counter
        _cut(run_dir / "metrics.jsonl", lambda line: _metrics_step(line, counter) <= last)
        self.file = run_dir / "metrics.jsonl"
        self._rows = _open(self.file)
        self._events = run_dir / "tensorboard"
        self._board = SummaryWriter(str(self._events), purge_step=last + 1)

    def write(self, counters: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Writes one row of counters (seconds in `wall_time`, if it is there) and values."""
        finite = {name: finite_or_none(value) for name, value in values.items()}
        _append(self._rows, json.dumps({**counters, **finite}))
        step = int(counters[self._counter])
        timed = {"time/wall_time": counters["wall_time"]} if "wall_time" in counters else {}

        def add(board: SummaryWriter) -> None:
            for name, value in {**values, **timed}.items():
                board.add_scalar(name, value, step)

        self._on_board(add)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Flat settings, as hyper-parameters in TensorBoard."""
        from mbrl.run_folder.tensorboard import add_settings

        self._on_board(lambda board: add_settings(board, settings))

    def video(self, name: str, frames: Tensor, step: int) -> None:
        """Frames uint8 [T, 3, H, W], in TensorBoard."""
        from mbrl.run_folder.tensorboard import add_video

        self._on_board(lambda board: add_video(board, name, frames, step))

    def _on_board(self, write: Callable[[SummaryWriter], None]) -> None:
        """Write events, also where somebody has removed their folder: a thread writes them there some time later."""
        if not self._events.is_dir():
            _log.warning("%s was removed: it begins anew; %s has every row", self._events, self.file.name)
            self._events.mkdir(parents=True)
        try:
            write(self._board)
        except FileNotFoundError:  # that thread came before this one, and has ended
            self._board = type(self._board)(str(self._events))
            write(self._board)

    def close(self) -> None:
        self._on_board(lambda board: board.close())
        self._rows.close()


class Logger:
    """Logger of a training run; see MetricsWriter for what a resumed run does with it.

    Args:
        run_dir: the run's folder, made where it is missing.
        total_env_steps: where the progress bar ends.
        resume_env_steps: env steps at the checkpoint that the run goes on from; None is a new run, and what
            another left in these files goes.
        tracker: where rows and videos go besides.
        may_lack_success: see `Progress`.
    """

    def __init__(
        self,
        run_dir: Path,
        total_env_steps: int,
        resume_env_steps: int | None = None,
        tracker: WandbTracker | None = None,
        *,
        may_lack_success: bool = False,
    ) -> None:
        last = -1 if resume_env_steps is None else resume_env_steps
        self._metrics = MetricsWriter(run_dir, "env_steps", last)
        self._evals, self._eval_header = _open_evals(run_dir / "eval.csv", last)
        self.evaluated = _last_eval(run_dir / "eval.csv")  # env steps at the last evaluation; 0 before the first
        self._tasks = run_dir / EVAL_TASKS
        _cut(self._tasks, lambda line: line == TASKS_HEADER or _eval_step(line) <= last)
        self._progress = Progress(total_env_steps, max(last, 0), may_lack_success=may_lack_success)
        self._last_heartbeat = time.monotonic()
        self._tracker = tracker
        self._previous = (0, 0.0)
        self._busy_cores = BusyCores()

    def log(
        self,
        metrics: Mapping[str, float | Tensor],
        *,
        env_steps: int,
        agent_steps: int,
        gradient_steps: int,
        wall_time: float,
    ) -> None:
        """Writes one row. Keys are grouped by prefix (`policy/`, `world_model/`, …); wall_time in seconds."""
        values = {name: float(value) for name, value in metrics.items()}
        steps, seconds = self._previous
        if wall_time > seconds > 0:
            values["time/updates_per_second"] = (gradient_steps - steps) / (wall_time - seconds)
        values["time/busy_cores"] = self._busy_cores()
        self._previous = (gradient_steps, wall_time)
        counters = {"env_steps": env_steps, "agent_steps": agent_steps, "gradient_steps": gradient_steps}
        self._write({**counters, "wall_time": round(wall_time, 3)}, values)
        self._progress.advance(env_steps, values.get("collect/success"), values.get("collect/return", 0.0))

    def log_eval(self, evaluation: EvaluationResult, *, env_steps: int, seed: int) -> None:
        """Writes a row of eval.csv, and the evaluation's means as `eval/…` beside the other metrics.

        Of several tasks each has a row in eval_tasks.csv.
        """
        means = evaluation.summary()
        self._log_tasks(evaluation.success_of_tasks(), env_steps, seed)
        written = f"{env_steps},{means['success']:.6g},{seed}"
        _append(self._evals, written if self._eval_header == EARLIER_HEADER else f"{written},{means['return']:.6g}")
        self.evaluated = env_steps
        self._write({"env_steps": env_steps}, {f"eval/{name}": value for name, value in means.items()})
        self._progress.advance(env_steps, means["success"], means["return"])

    def _log_tasks(self, successes: Mapping[str, float], env_steps: int, seed: int) -> None:
        if not successes:
            return
        with _open(self._tasks) as file:
            if file.tell() == 0:
                _append(file, TASKS_HEADER)
            for task, success in successes.items():
                _append(file, f"{env_steps},{success:.6g},{seed},{task}")

    def _write(self, counters: Mapping[str, float], values: Mapping[str, float]) -> None:
        self._metrics.write(counters, values)
        if self._tracker is not None:
            self._tracker.log({**counters, **values})

    def describe(self, settings: Mapping[str, Any]) -> None:
        """A run's flat settings, as hyper-parameters in TensorBoard."""
        self._metrics.describe(settings)

    def video(self, file: Path, frames: Tensor, env_steps: int) -> None:
        """The frames uint8 [T, 3, H, W] of a video file, in TensorBoard under its name."""
        self._metrics.video(file.stem, frames, env_steps)
        if self._tracker is not None:
            self._tracker.video(file.stem, file, env_steps)

    def tick(self) -> None:
        """Counts one gradient step in the progress bar."""
        self._progress.tick()
        self.heartbeat()

    def heartbeat(self) -> None:
        """Lets `mbrl status` know that the run goes on, where it writes no row for long: evaluations, fits."""
        now = time.monotonic()
        if now - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            os.utime(self._metrics.file)

    def close(self) -> None:
        self._progress.close()
        self._metrics.close()
        self._evals.close()
        if self._tracker is not None:
            self._tracker.close()


def _open(path: Path) -> FileIO:
    # unbuffered: a row is on its way to the disk when log() returns, and a full disk is noticed there
    return FileIO(path, "a")


def _append(file: FileIO, line: str) -> None:
    data = f"{line}\n".encode()
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    except OSError as error:
        error.filename = error.filename or file.name
        raise


def _cut(path: Path, keep: Callable[[str], bool]) -> None:
    """Drops the lines that are not to be kept, and a last line that was broken off, in one atomic step."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = "".join(f"{line}\n" for line in lines[:-1] if keep(line))
    write_atomically(path, kept)


def _metrics_step(line: str, counter: str) -> float:
    """The counter's value in a row of metrics.jsonl; infinity where the row is unreadable."""
    try:
        return float(parse_json(line)[counter])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _open_evals(path: Path, last: float) -> tuple[FileIO, str]:
    """Open eval.csv behind the rows up to env step `last`, and return its header too."""
    headers = (EVAL_HEADER, EARLIER_HEADER)
    _cut(path, lambda line: last >= 0 and (line in headers or _eval_step(line) <= last))
    file = _open(path)
    if file.tell() == 0:
        _append(file, EVAL_HEADER)
    return file, path.read_text(encoding="utf-8").partition("\n")[0]


def _last_eval(path: Path) -> int:
    """The env steps of the last row of eval.csv; 0 where there is none."""
    last = _eval_step(path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")[2])
    return 0 if math.isinf(last) else int(last)


def _eval_step(line: str) -> float:
    """The env steps of a row of eval.csv; infinity where the row is unreadable."""
    parts = line.split(",")
    return float(parts[0]) if len(parts) in (3, 4) and parts[0].isdigit() else math.inf
