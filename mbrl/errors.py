"""The error that a user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A setting, a file or a command that cannot work. The command line shows its message in one line.

    Checks raise it. Any other ValueError, such as that of `zip(strict=True)`, is a defect of this project.
    """


@contextmanager
def checks_of_arguments() -> Iterator[None]:
    """Turn the ValueErrors of constructors and loaders outside `mbrl`, which check their arguments, into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
