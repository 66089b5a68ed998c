"""Pictures: orientation, quality, and that nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from mbrl.envs.metaworld import MetaWorld
from mbrl.envs.rendering import Renderer
from mbrl.envs.simulator import Simulator


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator("plate-slide", 0, 0, "fresh")
    simulator.reset(0)
    yield simulator
    simulator.close()


def picture(simulator: Simulator, **settings: object) -> np.ndarray:
    raw = simulator.raw
    renderer = Renderer(raw.model, raw.data, **settings)  # type: ignore[arg-type]
    image = renderer.render()
    renderer.close()
    return image.astype(int)


def test_shape_and_type(simulator: Simulator) -> None:
    renderer = Renderer(simulator.raw.model, simulator.raw.data, resolution=40)
    first, second = renderer.render(), renderer.render()
    assert first.shape == (3, 40, 40)
    assert first.dtype == np.uint8
    assert first.flags["C_CONTIGUOUS"]
    assert first is not second
    assert np.array_equal(first, second)
    renderer.close()


def test_full_quality_is_what_gymnasium_draws(simulator: Simulator) -> None:
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    raw = simulator.raw
    reference = MujocoRenderer(raw.model, raw.data, width=64, height=64, camera_name="corner")
    upside_down = reference.render("rgb_array").transpose(2, 0, 1).astype(int)
    reference.close()
    upright = picture(simulator, quality="full")
    mirrored = picture(simulator, quality="full", mirrored=True)
    assert np.abs(upright - upside_down[:, ::-1, ::-1]).max() <= 1
    assert np.abs(mirrored - upside_down[:, ::-1]).max() <= 1


def test_fast_quality_differs_little_from_full(simulator: Simulator) -> None:
    full, fast = picture(simulator, quality="full"), picture(simulator, quality="fast")
    assert 0 < np.abs(full - fast).mean() < 12


@pytest.mark.parametrize("camera", ["corner", "corner2", "topview"])
def test_mirrored_is_upright_with_rows_or_columns_reversed(simulator: Simulator, camera: str) -> None:
    upright = picture(simulator, camera=camera, resolution=32)
    mirrored = picture(simulator, camera=camera, resolution=32, mirrored=True)
    axis = -1 if camera.startswith("corner") else -2
    assert np.array_equal(mirrored, np.flip(upright, axis))


def test_the_right_way_up(simulator: Simulator) -> None:
    image = picture(simulator, camera="corner")
    background = np.abs(image - image[:, :1, :1]).max(0) < 8  # the grey room behind the scene
    assert background[:8].mean() > 0.6
    assert background[-8:].mean() < 0.1


def test_gripper_and_object_show() -> None:
    env = MetaWorld("plate-slide")
    before = env.reset()[0]["pixels"].astype(int)
    for _ in range(20):
        observation, *_ = env.step(np.array([0.5, 0.0, -1.0, 1.0], np.float32))
    moved = np.abs(observation["pixels"].astype(int) - before).max(0) > 24
    assert 20 < moved.sum() < 1500
    env.close()


def test_two_renderers_do_not_disturb_each_other(simulator: Simulator) -> None:
    raw = simulator.raw
    first = Renderer(raw.model, raw.data, camera="corner")
    alone = first.render()
    second = Renderer(raw.model, raw.data, camera="corner2", resolution=32)
    assert second.render().shape == (3, 32, 32)
    assert np.array_equal(first.render(), alone)
    second.close()
    assert np.array_equal(first.render(), alone)
    first.close()
    first.close()


def test_only_kept_frames_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    env = MetaWorld("reach", resolution=8, action_repeat=5, episode_length=10)
    calls = []
    draw = env._renderer.render  # type: ignore[union-attr]
    monkeypatch.setattr(env._renderer, "render", lambda: calls.append(1) or draw())
    env.reset()
    env.step(np.zeros(4, np.float32))
    env.step(np.zeros(4, np.float32))
    assert len(calls) == 3
    env.close()


def test_physics_is_untouched_by_drawing(simulator: Simulator) -> None:
    model = simulator.raw.model
    before = model.mesh_facenum.copy(), model.vis.quality.shadowsize, model.vis.global_.offwidth
    picture(simulator)
    after = model.mesh_facenum, model.vis.quality.shadowsize, model.vis.global_.offwidth
    assert np.array_equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.process
@pytest.mark.parametrize("ending", [pytest.param("renderer.close()", marks=pytest.mark.slow), "pass"])  # 2 s each
def test_nothing_is_printed_at_exit(ending: str) -> None:
    code = f"""
from mbrl.envs.rendering import Renderer
from mbrl.envs.simulator import Simulator
raw = Simulator("reach", 0, 0, "fresh").raw
renderer = Renderer(raw.model, raw.data)
renderer.render()
{ending}
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout + result.stderr == ""
