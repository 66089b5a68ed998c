"""Combines world models and policies into agents: the only package that uses both.

Python interface: `load` opens a run folder, and `train` trains an agent. Both return a `Run`, see `mbrl/run.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mbrl.envs.opengl import choose

if TYPE_CHECKING:
    from mbrl.run import Run, load
    from mbrl.start import train

__all__ = ["Run", "load", "train"]

choose()  # before MuJoCo is imported


def __getattr__(name: str) -> Any:
    """Import the Python interface at its first use (PEP 562), so that `import mbrl` and `mbrl --help` are fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mbrl.start"), name)
