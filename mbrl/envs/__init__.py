"""Environments under one set of keys: Meta-World, the toy, and (imagined) any world model."""

import os
import sys

# MuJoCo picks its OpenGL backend when it is first imported: off-screen unless the user chose one.
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
