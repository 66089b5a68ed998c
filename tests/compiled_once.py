"""MuJoCo compiles each model once in a process of the tests: an environment from a copy takes .02 s instead of .2."""

from copy import copy
from functools import lru_cache

import mbrl  # noqa: F401 - chooses what MuJoCo renders with, before that is imported

# isort: split
import mujoco

_compile = mujoco.MjModel.from_xml_path


@lru_cache(maxsize=4)  # 20 MB each
def compiled(path: str) -> mujoco.MjModel:
    return _compile(path)


def _compiled_copy(filename: str, assets: dict[str, bytes] | None = None) -> mujoco.MjModel:
    """As mujoco.MjModel.from_xml_path."""
    return copy(compiled(filename)) if assets is None else _compile(filename, assets)


mujoco.MjModel.from_xml_path = staticmethod(_compiled_copy)
