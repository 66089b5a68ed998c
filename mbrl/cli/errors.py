"""What a user reads when something goes wrong: one line, and an exit code."""

import errno
from pathlib import Path

from mbrl.errors import UserError

USAGE_ERROR = 2
RUN_ERROR = 1
# what a machine lacks or breaks, whatever was asked for: an I/O error, open files, memory
MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS)
KEPT = "the run folder keeps its last checkpoint and its logs"


def root_cause(error: BaseException) -> BaseException:
    """What Hydra wrapped: the error of ours at the end of its chain of causes, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError | UserError | FloatingPointError | MemoryError) and not _is_hydras(cause):
            return cause
        if not _is_hydras(cause):
            break
        cause = cause.__cause__ or cause.__context__
    return error


def _is_hydras(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf")


def explain(error: BaseException) -> tuple[str, int] | None:
    """One line for an error that a user can mend, with the exit code; None for a defect of ours."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or Path.cwd()
        mend = f"{KEPT}: free some space and give the same command again"
        return f"the disk that holds {place} is full; {mend}", RUN_ERROR
    if isinstance(error, FloatingPointError):
        return f"{error}; {KEPT}", RUN_ERROR
    if isinstance(error, OSError) and error.errno in MACHINE:
        return f"{error.filename or 'the system'}: {error.strerror}; {KEPT}", RUN_ERROR
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({error}); {KEPT}", RUN_ERROR
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}", USAGE_ERROR
    if isinstance(error, OSError | UserError) or _is_hydras(error):
        return str(error), USAGE_ERROR
    return None
