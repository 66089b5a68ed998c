"""Pictures are drawn on the GPU that a run computes on."""

import os
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from mbrl.build import env_factory
from mbrl.compose import composed
from mbrl.envs import opengl

UNSET = None


@pytest.mark.parametrize(
    ("numbers", "gpu", "device"),
    [
        ([1, 0, None], 0, "1"),  # EGL has an order of its own
        ([1, 0, None], 1, "0"),
        ([None, 0], 0, "1"),  # CUDA_VISIBLE_DEVICES hides the first from CUDA and not from EGL
        ([0], 0, UNSET),  # there is one
        ([None, None], 0, UNSET),  # none is CUDA's
        ([0, 0], 0, UNSET),  # a driver that does not tell them apart
        ([0, 1], 2, UNSET),
        ([], 0, UNSET),  # a driver without the extension
    ],
)
def test_the_device_of_egl_is_that_of_cuda(
    numbers: list[int | None], gpu: int, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"MUJOCO_GL": "egl"})
    monkeypatch.setattr(opengl, "_cuda_numbers", lambda: numbers)
    opengl.draw_on(gpu)
    assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == device


def test_our_own_choice_is_no_choice_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a sweep inherits that of the process that checked it, whose context was opened without one."""
    monkeypatch.setattr(os, "environ", {"MUJOCO_GL": "egl"})
    monkeypatch.setattr(opengl, "_cuda_numbers", lambda: [1, 0])
    monkeypatch.setattr(opengl.importlib, "import_module", lambda name: SimpleNamespace(GLContext=MagicMock()))
    opengl.open_context(8)
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "1"
    opengl.draw_on(1)
    opengl.open_context(8)
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0", "nor does a context choose again"


@pytest.mark.parametrize(("device", "gpus"), [("cuda:1", [1]), ("cuda", [0]), ("auto", [0]), ("cpu", [])])
def test_environments_draw_on_the_gpu_of_their_run(
    device: str, gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr("mbrl.device.available_devices", lambda: ["cpu:0", "cuda:0", "cuda:1"])
    monkeypatch.setattr("mbrl.build.draw_on", drawn.append)
    env_factory(composed(["agent=random", f"device={device}"]))
    assert drawn == gpus


@pytest.mark.parametrize(("variable", "value"), [("MUJOCO_EGL_DEVICE_ID", "3"), ("MUJOCO_GL", "osmesa")])
def test_a_choice_of_the_user_stays(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    monkeypatch.setattr(opengl, "_cuda_numbers", lambda: [1, 0])
    opengl.draw_on(0)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MUJOCO_GL": "nonsense"}, "(nonsense: MUJOCO_GL must be egl, osmesa or glfw)"),
        ({"MUJOCO_GL": "osmesa"}, "(osmesa: libOSMesa"),
        ({"MUJOCO_GL": "Off"}, "(off: MUJOCO_GL switches it off)"),
        ({"MUJOCO_GL": "EGL", "PYOPENGL_PLATFORM": "glx"}, "(egl: PYOPENGL_PLATFORM is glx: it must be egl too"),
    ],
)
def test_an_opengl_that_cannot_work_is_refused_when_rendering(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo can still be imported: it finds OpenGL switched off. `test_metaworld.py` does so in processes."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(os, "environ", dict(variables))
    monkeypatch.setattr(opengl.ctypes, "CDLL", missing)
    opengl.choose()
    assert os.environ["MUJOCO_GL"].lower() in opengl.OFF
    with pytest.raises(OSError, match=re.escape(f"no OpenGL to render with {words}") + ".*run `mbrl doctor`"):
        opengl.open_context(8)
