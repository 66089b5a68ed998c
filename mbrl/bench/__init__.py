"""Benchmarks: each module here has `run() -> list[dict]` with rows of name, value, unit and target."""

import difflib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules

Row = dict[str, object]


def names() -> list[str]:
    """The names of the benchmarks there are."""
    return sorted(module.name for module in iter_modules(__path__))


def run_benchmarks(chosen: Sequence[str] = ()) -> Iterator[list[Row]]:
    """Runs the chosen benchmarks (all of them where none is named) and yields each one's rows as it ends.

    Raises ValueError for a name that does not exist, before the first one runs.
    """
    known = names()
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known) or known
            raise ValueError(f"no benchmark named {name!r}; there are: {', '.join(close)}")
    return (import_module(f"{__name__}.{name}").run() for name in chosen or known)
