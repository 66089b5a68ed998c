"""Composes world models and policies into agents: the only package where the two meet."""

import ctypes
import os
import sys

# MuJoCo takes its OpenGL backend from MUJOCO_GL when first imported, and importing torchrl.envs does that.
# Drawing off screen needs EGL; but where its library is missing, that name lets nothing be imported at all.
if sys.platform == "linux" and os.environ.get("MUJOCO_GL", "egl") == "egl":
    try:
        ctypes.CDLL("libEGL.so.1")
        os.environ["MUJOCO_GL"] = "egl"
    except OSError:
        os.environ.pop("MUJOCO_GL", None)
