"""Combines world models and policies into agents: the only package that uses both.

Python interface: `load` opens a run folder, and `train` trains an agent. Both return a `Run`, see `mbrl/run.py`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbrl.run import Run, load
    from mbrl.start import train

__all__ = ["Run", "load", "train"]

# MuJoCo reads its OpenGL backend from MUJOCO_GL at its first import, which importing torchrl.envs causes.
# Off-screen rendering needs EGL. If its library is missing, MUJOCO_GL=egl would make this import fail.
if sys.platform == "linux" and os.environ.get("MUJOCO_GL", "egl") == "egl":
    try:
        ctypes.CDLL("libEGL.so.1")
        os.environ["MUJOCO_GL"] = "egl"
    except OSError:
        os.environ.pop("MUJOCO_GL", None)


def __getattr__(name: str) -> Any:
    """Import the Python interface at its first use (PEP 562), so that `import mbrl` and `mbrl --help` are fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mbrl.start"), name)
