"""Pictures are drawn on the GPU that a run computes on."""

import os

import pytest

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
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(opengl, "_cuda_numbers", lambda: numbers)
    try:
        opengl.draw_on(gpu)
        assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == device
    finally:
        os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)


@pytest.mark.parametrize(("variable", "value"), [("MUJOCO_EGL_DEVICE_ID", "3"), ("MUJOCO_GL", "osmesa")])
def test_a_choice_of_the_user_stays(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    monkeypatch.setattr(opengl, "_cuda_numbers", lambda: [1, 0])
    opengl.draw_on(0)
    assert dict(os.environ) == before
