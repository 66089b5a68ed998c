"""Benchmarks: each module here has `run() -> list[dict]` with rows of name, value, unit and target.

A module whose name begins with an underscore is no benchmark but a part of some.
"""

import difflib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules

Row = dict[str, object]

ON_REQUEST = {"memory"}  # takes minutes and gigabytes


def names() -> list[str]:
    """The names of the benchmarks there are."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run_benchmarks(chosen: Sequence[str] = ()) -> Iterator[list[Row]]:
    """Runs the chosen benchmarks (where none is named, all but ON_REQUEST) and yields each one's rows as it ends.

    Raises ValueError for a name that does not exist, before the first one runs.
    """
    known = names()
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known) or known
            raise ValueError(f"no benchmark named {name!r}; there are: {', '.join(close)}")
    default = [name for name in known if name not in ON_REQUEST]
    return (import_module(f"{__name__}.{name}").run() for name in chosen or default)
