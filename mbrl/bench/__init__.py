"""Benchmarks: each module here has `run()`, which gives rows of name, value, unit and target, each as it is known.

A module whose name begins with an underscore is no benchmark but a part of some.
"""

import difflib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules

from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory

Row = dict[str, object]

ON_REQUEST = {"memory"}  # takes minutes and gigabytes


def names() -> list[str]:
    """The names of the benchmarks there are."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def run_benchmarks(chosen: Sequence[str] = ()) -> Iterator[Row]:
    """Runs the chosen benchmarks (where none is named, all but ON_REQUEST) and yields their rows.

    Raises ValueError for a name that does not exist, before the first one runs.
    """
    keep_freed_memory()  # as a run does
    known = names()
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known) or known
            raise UserError(f"no benchmark named {name!r}; there are: {', '.join(close)}")
    default = [name for name in known if name not in ON_REQUEST]
    return (row for name in chosen or default for row in import_module(f"{__name__}.{name}").run())
