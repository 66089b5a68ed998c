"""Rendered images per second, compared with Gymnasium's `render()` on the same task."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from mbrl.envs.metaworld import MetaWorld
from mbrl.envs.rendering import Quality, Renderer
from mbrl.envs.simulator import Simulator

RESOLUTION, CAMERA = 64, "corner"
ROUNDS, IMAGES = 12, 8  # IMAGES of ours in each round, and one of Gymnasium's


def run() -> list[dict[str, object]]:
    """Images per second of both, their ratio, and agent steps per second (action repeat 2) with and without pixels."""
    simulator = Simulator("plate-slide", 0, 0, "fresh")
    simulator.reset(0)
    ours = {quality: _renderer(simulator, quality) for quality in ("fast", "full")}
    reference = _gymnasium_render(simulator)
    pixel_env, state_env = MetaWorld(resolution=RESOLUTION, camera=CAMERA), MetaWorld(pixels=False)
    pixel_env.reset()
    state_env.reset()
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "gymnasium": (reference, 1),
        "fast": (ours["fast"].render, IMAGES),
        "full": (ours["full"].render, 1),
        "pixels": (lambda: _step(pixel_env), IMAGES),
        "state": (lambda: _step(state_env), IMAGES),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name, (job, repeats) in jobs.items():
            job()  # Not measured: the OpenGL context has just been switched.
            began = time.perf_counter()
            for _ in range(repeats):
                job()
            times[name].append((time.perf_counter() - began) / repeats)
    for renderer in ours.values():
        renderer.close()
    for env in (pixel_env, state_env):
        env.close()
    simulator.close()
    rate = {name: 1 / median(values) for name, values in times.items()}
    speedup = rate["fast"] / rate["gymnasium"]
    return [
        _row("rendering: gymnasium's render()", rate["gymnasium"], "images/s"),
        _row("rendering: full quality", rate["full"], "images/s"),
        _row("rendering: fast quality", rate["fast"], "images/s"),
        _row("rendering: fast quality over gymnasium's render()", speedup, "×", "≥ 10"),
        _row("rendering: agent steps with pixels", rate["pixels"], "agent steps/s"),
        _row("rendering: agent steps, state only", rate["state"], "agent steps/s"),
    ]


def _renderer(simulator: Simulator, quality: Quality) -> Renderer:
    raw = simulator.raw
    return Renderer(raw.model, raw.data, resolution=RESOLUTION, camera=CAMERA, quality=quality)


def _gymnasium_render(simulator: Simulator) -> Callable[[], object]:
    """Gymnasium's `render()` of the same environment, at this size and camera."""
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    raw: Any = simulator.raw
    raw.render_mode = "rgb_array"
    raw.mujoco_renderer = MujocoRenderer(raw.model, raw.data, width=RESOLUTION, height=RESOLUTION, camera_name=CAMERA)

    def render() -> object:
        viewer = raw.mujoco_renderer.viewer
        if viewer is not None:  # Gymnasium assumes that no other OpenGL context is in use.
            viewer.make_context_current()
        return raw.render()

    return render


def _step(env: MetaWorld) -> None:
    if env.step(np.zeros(4, np.float32))[3]:
        env.reset()


def _row(name: str, value: float, unit: str, target: str = "") -> dict[str, object]:
    return {"name": name, "value": value, "unit": unit, "target": target}
