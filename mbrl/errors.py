"""UserError, and functions that tell errors which a user can fix from defects of this project."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class UserError(ValueError):
    """A setting, a file or a command is wrong. The command line prints the message in one line.

    Checks raise it. Any other ValueError, such as that of `zip(strict=True)`, is a defect of this project.
    """


class ProcessDied(RuntimeError):
    """A process that the run needs has died; the message says which."""


@contextmanager
def checks_of_arguments() -> Iterator[None]:
    """Turn the ValueErrors of constructors and loaders outside `mbrl`, which check their arguments, into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        if not is_raised(error):
            raise
        raise UserError(str(error)) from error


def is_raised(error: BaseException) -> bool:
    """Whether a `raise` statement raised the error, as in a check, and not a built-in such as `zip(strict=True)`."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the machine or on a GPU: torch and safetensors say so in errors of other classes."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def one_line(text: str) -> str:
    """Text without line breaks and control characters, which a quoted file could use to control the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
