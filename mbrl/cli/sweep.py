"""Sweeps: many runs from one command (Hydra's multirun). All jobs are checked before the first one starts."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from mbrl.build import env_factory
from mbrl.checks.sizes import require_sizes
from mbrl.cli.apart import process_apart
from mbrl.cli.errors import RUN_ERROR, explain, one_line, root_cause
from mbrl.cli.summary import opening
from mbrl.compose import ROOT_CONFIG, composed_jobs, groups
from mbrl.device import find_device
from mbrl.errors import ProcessDied, UserError
from mbrl.run_folder.config import claim_run_folder, has_begun, require_own_folder
from mbrl.run_folder.files import write_atomically
from mbrl.run_folder.lock import FolderInUse
from mbrl.run_folder.state import FAILURE, is_done, latest_env_steps

LOG = "log.txt"  # file in the run folder with the output of a job, if jobs run in parallel

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


def prepare(
    arguments: Sequence[str],
    check: Callable[[DictConfig], None],
    config_dir: Path | None = None,
    command: str = ROOT_CONFIG,
    *,
    here: bool = True,
) -> list[Path]:
    """Check every job of a sweep and claim its folder, so that `mbrl status` lists all jobs from the start.

    Args:
        arguments: Hydra's overrides.
        check: raises UserError for a configuration that cannot be run.
        config_dir: a user's own folder of configurations.
        command: train, or another command with a configuration, whose jobs claim their folders when they run.
        here: whether the jobs run on this machine. Otherwise its memory and its OpenGL do not count.

    Returns:
        The run folders of the jobs; [] for another command.

    Raises:
        UserError: a job cannot be run, two jobs have the same folder, or a folder belongs to another configuration.
    """
    jobs = composed_jobs(arguments, command, config_dir)
    for overrides, config in jobs:
        with _naming_job(overrides):
            check(config)
    if command != ROOT_CONFIG:
        return []
    _build_each_kind(jobs, here)
    folders: dict[Path, list[str]] = {}
    for overrides, config in jobs:
        folder = Path(config.run_dir)
        if folder in folders:
            raise UserError(_shared_folder_error(folder, folders[folder], overrides, groups(config_dir, arguments)))
        folders[folder] = overrides
    configs = {folder: config for folder, (_, config) in zip(folders, jobs, strict=True)}
    for folder, config in configs.items():  # No folder is claimed if any is refused.
        require_own_folder(folder, config, longer=True)
    for folder, config in configs.items():
        if not has_begun(folder):  # Another one keeps its configuration until its job has its turn.
            claim_run_folder(folder, config)
    return list(folders)


def _build_each_kind(jobs: Sequence[tuple[list[str], DictConfig]], here: bool) -> None:
    """Build what `_build` does of one job of each kind, apart where there is a GPU: the jobs need its memory."""
    on_gpu = here and any(find_device(config.device).type == "cuda" for _, config in jobs)
    sizes: set[str] = set()
    with process_apart() if on_gpu else nullcontext() as apart:
        for overrides, config in jobs:
            size = OmegaConf.to_yaml({key: config[key] for key in ("env", "agent", "replay", "device")}, resolve=True)
            if size not in sizes and (here or not config.env.pixels):
                with _naming_job(overrides):
                    _build(config, here) if apart is None else apart(_build, config, here)
            sizes.add(size)


def _build(config: DictConfig, here: bool) -> None:
    """Build the environment of a job and, if the job runs on this machine, what must fit into its memory."""
    with closing(env_factory(config)(seed=0)) as env:
        if here:
            require_sizes(config, env)


@contextmanager
def _naming_job(overrides: Sequence[str]) -> Iterator[None]:
    """Add the job to the message of an error that the user can fix."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, UserError):
            raise
        raise UserError(f"{cause} (in the job {' '.join(overrides)})") from error


def _shared_folder_error(folder: Path, one: Sequence[str], other: Sequence[str], known: Container[str]) -> str:
    """The error line for two jobs with one run folder, with a `run_dir` that separates them."""
    keys = [mine.split("=", 1)[0] for mine, theirs in zip(one, other, strict=True) if mine != theirs]
    clash = f"two jobs of this sweep would write to {folder} ({' '.join(one)}; {' '.join(other)})"
    if any(key.lstrip("+").split("@")[0] in known for key in keys):  # The name of a group cannot be used in run_dir.
        return f"{clash}: start them one by one, each with a run_dir of its own"
    placeholders = "-".join(f"${{{key.lstrip('+')}}}" for key in keys)
    return (
        f"{clash}: name what differs, such as 'run_dir=runs/${{agent.name}}-{placeholders}/${{env.task}}/seed${{seed}}'"
    )


def run_job(config: DictConfig, run: Callable[[DictConfig], Result], *, alone: bool) -> Result | None:
    """Run one job of a sweep. If it fails, the error is written to its folder, and the sweep continues.

    A job that is done, or that another process runs, is skipped.

    Args:
        config: configuration of the job.
        run: trains it.
        alone: whether jobs run one after the other. Otherwise the output of a job is written to a file in its folder.

    Returns:
        The result of `run`; None if the job failed or was skipped.
    """
    folder = Path(config.run_dir)
    (folder / FAILURE).unlink(missing_ok=True)
    if is_done(folder, config.total_env_steps):
        _log.warning("%s is done already", folder)
        return None
    if latest_env_steps(folder):
        _log.warning("%s", opening(folder, config))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with nullcontext() if alone else _output_to(folder / LOG):
            return run(config)
    except FolderInUse as error:
        _log.warning("skipped: %s", error)
    except (Exception, SystemExit) as error:
        if _queued_again(error):
            raise
        reason = _line(error)
        write_atomically(folder / FAILURE, "".join([*traceback.format_exception(error), f"{reason}\n"]))
        _log.error("error: %s: %s", folder, reason)
    return None


def _queued_again(error: BaseException) -> bool:
    """Whether submitit ends this process, so that Slurm starts the job once more: at its time limit, or preempted."""
    return isinstance(error, SystemExit) and error.code == -1 and "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def naming_killed_worker() -> Iterator[None]:
    """Turn the error of a launcher whose job or process was killed into one that the command line explains.

    Raises:
        ProcessDied: a process of launch=local was killed, or a job of launch=slurm was cancelled.
    """
    try:
        yield
    except Exception as error:
        kind = type(error).__name__  # joblib and submitit are extras: they may not be installed
        if kind == "TerminatedWorkerError":
            reason = "a process of launch=local was killed (out of memory?), and with it the jobs that were under way"
            raise ProcessDied(f"{reason}; for fewer jobs at a time give hydra.launcher.n_jobs=N") from error
        if kind == "UncompletedJobError":
            what = " ".join(str(error).splitlines()[:2])
            raise ProcessDied(f"a job of launch=slurm has ended early ({what}); the others go on in Slurm") from error
        raise


def show_jobs(folders: Sequence[Path]) -> int:
    """Print the folder of each job of a sweep, as that of a single run, and each failed job in one line of stderr.

    Args:
        folders: the run folders of all jobs.

    Returns:
        The exit code.
    """
    failed = failures(folders)
    for folder in folders:
        if folder not in dict(failed):
            print(folder)
    for folder, reason in failed:
        print(f"mbrl: error: {folder}: {reason} (see {folder / FAILURE})", file=sys.stderr)
    if failed:
        print(
            f"mbrl: {len(failed)} of {len(folders)} jobs failed; the same command repeats only these", file=sys.stderr
        )
    return RUN_ERROR if failed else 0


def failures(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """The folders of failed jobs, each with its reason, which is the last line of its file."""
    found = [(folder, folder / FAILURE) for folder in folders if (folder / FAILURE).exists()]
    return [(folder, _last_line(file)) for folder, file in found]


def _last_line(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip().rsplit("\n", 1)[-1]


def _line(error: BaseException) -> str:
    explained = explain(root_cause(error))
    return one_line(explained[0] if explained else f"{type(error).__name__}: {error}")


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Append what is printed and logged to a file."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    shown = [handler for handler in handlers if handler.stream in (sys.stdout, sys.stderr)]  # on the terminal
    with file.open("a", encoding="utf-8", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        before = [(handler, handler.setStream(stream)) for handler in shown]
        try:
            yield
        finally:
            for handler, terminal in before:
                handler.setStream(terminal)
