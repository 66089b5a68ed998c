"""The OpenGL that MuJoCo renders with: chosen before MuJoCo is imported, opened when something is rendered.

MuJoCo imports the OpenGL that MUJOCO_GL names when it is imported itself, which importing torchrl.envs causes: without
that OpenGL nothing could be imported, also by agents that render nothing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
import sys
from typing import Any

CHOICE, PLATFORM = "MUJOCO_GL", "PYOPENGL_PLATFORM"  # environment variables of MuJoCo and of PyOpenGL
REFUSED = "MBRL_REFUSED_MUJOCO_GL"  # the user's choice, if it cannot be imported; worker processes inherit it
EGL, OSMESA, GLFW = "egl", "osmesa", "glfw"
OFF = ("disable", "disabled", "off", "false", "0")  # as MuJoCo reads them
ON = ("enable", "enabled", "on", "true", "1", "glx", GLFW)  # what MuJoCo takes for GLFW
DEFAULT = EGL if sys.platform == "linux" else GLFW


def choose() -> None:
    """Settle MUJOCO_GL, such that MuJoCo can be imported whatever it was.

    EGL is the default on Linux, where its library is. A choice that cannot be imported is switched off, and
    `open_context` refuses it when something is to be rendered.
    """
    if sys.platform != "linux" or REFUSED in os.environ:
        return
    given = os.environ.get(CHOICE, "")
    name = given.strip().lower()
    if not name and _problem(EGL) is None:
        os.environ[CHOICE] = EGL
    elif name and _problem(name) is not None:
        os.environ[REFUSED], os.environ[CHOICE] = given, OFF[0]


def chosen() -> str:
    """The OpenGL that the user chose, or the default, in lower case."""
    return os.environ.get(REFUSED, os.environ.get(CHOICE, "")).strip().lower() or DEFAULT


def _problem(name: str) -> str | None:
    """Why MuJoCo cannot import the OpenGL of that name; None if nothing is known to prevent it."""
    if name in (*ON, *OFF):
        return None
    if name not in (EGL, OSMESA):
        return f"{CHOICE} must be {EGL}, {OSMESA} or {GLFW}"
    platform = os.environ.get(PLATFORM, "").lower()
    if platform not in ("", name):
        return f"{PLATFORM} is {platform}: it must be {name} too, or unset"
    library = "libEGL.so.1" if name == EGL else ctypes.util.find_library("OSMesa") or "libOSMesa.so"
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def open_context(resolution: int) -> Any:
    """Make an OpenGL context for square images, and make it current.

    Raises:
        OSError: there is no OpenGL that can render off screen.
    """
    name = chosen()
    try:
        if name in OFF or REFUSED in os.environ:
            raise OSError(_problem(name) or f"{CHOICE} switches it off")
        context_class = importlib.import_module(f"mujoco.{GLFW if name in ON else name}").GLContext
        context_class._context = None  # Without it, a context whose constructor fails raises when it is collected.
        context = context_class(resolution, resolution)
        if not context._context:
            raise OSError("it opens no window, which needs a display")
        context.make_current()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"no OpenGL to render with ({name}: {reason}): run `mbrl doctor`") from error
    return context
