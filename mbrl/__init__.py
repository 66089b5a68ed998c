"""Combines world models and policies into agents: the only package that uses both.

Python interface: `load` opens a run folder, and `train` trains an agent. Both return a `Run`, see `mbrl/run.py`.
`imagined_env` makes a world model a Gymnasium environment.
`results()` is a table of all reference runs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl.envs.opengl import choose

if TYPE_CHECKING:
    from mbrl import results as results
    from mbrl.prediction.imagined_env import imagined_env
    from mbrl.run import Run, load
    from mbrl.start import train

__all__ = ["Run", "imagined_env", "load", "results", "train"]

PROJECT = Path(__file__).parents[1]


def _prefer_own_packages() -> None:
    """Put the folder of this package first on sys.path where a folder of a user hides the packages beside it.

    `python -m mbrl` and PYTHONPATH=. look into the current directory first, which may have a `policies` of its own.
    Worker processes inherit the path.
    """
    for name in ("policies", "worldmodel"):
        spec = find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if [str(PROJECT / name)] != places:
            sys.path.insert(0, str(PROJECT))
            return


_prefer_own_packages()
choose()  # before MuJoCo is imported


def __getattr__(name: str) -> Any:
    """Import the Python interface at its first use (PEP 562), so that `import mbrl` and `mbrl --help` are fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "results":  # a module that can be called
        return import_module("mbrl.results")
    module = {"imagined_env": "mbrl.prediction.imagined_env", "train": "mbrl.start"}.get(name, "mbrl.run")
    return getattr(import_module(module), name)
