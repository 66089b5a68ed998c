"""Error messages: one line for an error that the user can fix; otherwise a traceback and a request to report it."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import traceback
from pathlib import Path

from mbrl.errors import ProcessDied, UserError, is_out_of_memory, is_raised, one_line

USAGE_ERROR = 2
RUN_ERROR = 1
TRACEBACK = "MBRL_TRACEBACK"  # environment variable: if it is set, every error is raised unchanged
# Errors of the machine, not of the command: an I/O error, too many open files, a read-only file system.
MACHINE_ERRNOS = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)
CHECKPOINT_KEPT = "the run folder keeps its last checkpoint and its logs"
PACKAGES = [Path(__file__).parents[2] / name for name in ("mbrl", "policies", "worldmodel")]
REPORT = (
    "mbrl: this is a defect of mbrl, not of your settings: please report it to its authors with the command, "
    "the traceback above and what `mbrl doctor` prints"
)


def root_cause(error: BaseException) -> BaseException:
    """The error that Hydra wrapped, if `explain` knows it or a class that Hydra called raised it; else `error`."""
    cause: BaseException | None = error
    while cause is not None and _is_hydra_error(cause):
        inner = cause.__cause__ or cause.__context__
        if inner is not None and type(cause).__name__ == "InstantiationException" and not _is_hydra_error(inner):
            return inner
        cause = inner
    return cause if cause is not None and explain(cause) is not None else error


def _is_hydra_error(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf")


def explain(error: BaseException, *, in_run: bool = True) -> tuple[str, int] | None:
    """One line for an error that the user can fix, and the exit code; None for a defect of this project.

    Args:
        error: the error.
        in_run: whether a run keeps checkpoints, which the line then says.
    """
    kept = f"; {CHECKPOINT_KEPT}" if in_run else ""
    if isinstance(error, ProcessDied):
        return f"{error}{kept}: the same command goes on from there", RUN_ERROR
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        fix = "free some and give the same command again, or start another run with a smaller batch or model"
        return f"there is not enough memory ({_first_line(error)}): {fix}{kept}", RUN_ERROR
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        disk = f"the disk that holds {_file_of(error)}" if error.filename else "a disk"
        reason = "is full" if error.errno == errno.ENOSPC else "has no room left for this user (quota)"
        return f"{disk} {reason}{kept}: free some space and give the same command again", RUN_ERROR
    if isinstance(error, FloatingPointError):
        return f"{error}{kept}", RUN_ERROR
    if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
        return f"{_file_of(error) or 'the system'}: {error.strerror}{kept}", RUN_ERROR
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{_file_of(error)}: {error.strerror}", USAGE_ERROR
    if isinstance(error, OSError | UserError) or _is_hydra_error(error) or _is_check_of_a_part(error):
        return str(error), USAGE_ERROR
    return None


def _file_of(error: OSError) -> str:
    name = error.filename or ""
    return os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _is_check_of_a_part(error: BaseException) -> bool:
    """Whether a check in `worldmodel` or `policies` failed. They do not know UserError and raise ValueError."""
    if not isinstance(error, ValueError) or not is_raised(error):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.split(".")[0] in ("worldmodel", "policies")


def _origin(error: BaseException) -> str:
    """The line below a traceback: a request to report it, or the line in a user's own class that raised it."""
    libraries = {Path(path) for name, path in sysconfig.get_paths().items() if name in ("stdlib", "purelib", "platlib")}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not file.is_file() or any(library in file.parents for library in libraries):
            continue
        if any(package in file.parents for package in PACKAGES):
            return REPORT
        return f"mbrl: your own code raised this: {file}, line {frame.lineno}"
    return REPORT


def show(error: Exception, *, in_run: bool = True) -> int:
    """Print an error to stderr; returns the exit code.

    An error that the user can fix is one line. A defect is a traceback and a request to report it.

    Args:
        error: the error.
        in_run: as in `explain`.
    """
    cause = root_cause(error)
    explained = explain(cause, in_run=in_run)
    if explained is None:
        traceback.print_exception(cause)
        print(_origin(cause), file=sys.stderr)
        return RUN_ERROR
    line, code = explained
    print(f"mbrl: error: {one_line(line)}", file=sys.stderr)
    return code
