"""The OpenGL that MuJoCo renders with: chosen before MuJoCo is imported, opened when something is rendered.

MuJoCo imports the OpenGL that MUJOCO_GL names when it is imported itself, which importing torchrl.envs causes: without
that OpenGL nothing could be imported, also by agents that render nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from typing import Any

CHOICE, PLATFORM = "MUJOCO_GL", "PYOPENGL_PLATFORM"  # environment variables of MuJoCo and of PyOpenGL
REFUSED = "MBRL_REFUSED_MUJOCO_GL"  # the user's choice, if it cannot be imported; worker processes inherit it
EGL, OSMESA, GLFW = "egl", "osmesa", "glfw"
OFF = ("disable", "disabled", "off", "false", "0")  # as MuJoCo reads them
ON = ("enable", "enabled", "on", "true", "1", "glx", GLFW)  # what MuJoCo takes for GLFW
SOFTWARE_THREADS = "LP_NUM_THREADS"  # of llvmpipe, Mesa's software OpenGL; 0 draws in the thread that asks for an image
DEVICE = "MUJOCO_EGL_DEVICE_ID"  # environment variable of MuJoCo: a number in EGL's own order of devices
OURS = "MBRL_EGL_DEVICE_ID"  # the number that `draw_on` chose: with another one in DEVICE the choice is the user's
CUDA_DEVICE_NV = 0x323A  # of the extension EGL_NV_device_cuda: an EGL device's number in CUDA
DEFAULT = EGL if sys.platform == "linux" else GLFW


def choose() -> None:
    """Settle MUJOCO_GL, such that MuJoCo can be imported whatever it was.

    EGL is the default on Linux, where its library is. A choice that cannot be imported is switched off, and
    `open_context` refuses it when something is to be rendered.
    """
    if sys.platform != "linux" or REFUSED in os.environ:
        return
    # llvmpipe's own threads serve one image at a time: two threads that draw 64 pixels side by side then take 1.2 to
    # 1.4 times a single one's images, and 1.9 times without them. One thread alone draws as fast, up to 256 pixels.
    os.environ.setdefault(SOFTWARE_THREADS, "0")
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
    library = "libEGL.so.1" if name == EGL else _osmesa()
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _osmesa() -> str:
    """OSMesa's library, as PyOpenGL finds it."""
    from ctypes.util import find_library  # imports subprocess: a tenth of `mbrl --help`

    return find_library("OSMesa") or "libOSMesa.so"


def draw_on(gpu: int) -> None:
    """Have images drawn on a GPU, here and in the processes that this one starts.

    MuJoCo draws on EGL's first device unless MUJOCO_EGL_DEVICE_ID names another. EGL counts devices in an order of its
    own, and CUDA_VISIBLE_DEVICES hides none from it. With one device, another OpenGL or a choice of the user's nothing
    changes. Called again it chooses anew, as jobs on other GPUs inherit the choice; in one process MuJoCo keeps the
    device of its first context.

    Args:
        gpu: its number in CUDA, among those that CUDA_VISIBLE_DEVICES shows.
    """
    if os.environ.get(DEVICE) != os.environ.get(OURS) or chosen() != EGL or REFUSED in os.environ:
        return
    numbers = _cuda_numbers()
    if len(numbers) > 1 and numbers.count(gpu) == 1:
        os.environ[DEVICE] = os.environ[OURS] = str(numbers.index(gpu))


def _cuda_numbers() -> list[int | None]:
    """For each EGL device its number in CUDA, as CUDA_VISIBLE_DEVICES numbers them; None for one that is not CUDA's."""
    egl: Any = importlib.import_module("mujoco.egl.egl_ext")
    address = egl.eglGetProcAddress("eglQueryDeviceAttribEXT")
    if not address:
        return []
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_ssize_t))(address)
    numbers: list[int | None] = []
    for device in egl.eglQueryDevicesEXT():
        found = ctypes.c_ssize_t(-1)
        known = query(ctypes.cast(device, ctypes.c_void_p), CUDA_DEVICE_NV, ctypes.byref(found))
        numbers.append(found.value if known and found.value >= 0 else None)
    return numbers


def open_context(resolution: int) -> Any:
    """Make an OpenGL context for square images, and make it current.

    Raises:
        OSError: there is no OpenGL that can render off screen.
    """
    name = chosen()
    try:
        if name in OFF or REFUSED in os.environ:
            raise OSError(_problem(name) or f"{CHOICE} switches it off")
        if name == EGL and DEVICE not in os.environ:
            draw_on(0)
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
