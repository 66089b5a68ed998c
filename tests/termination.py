"""A toy whose episodes terminate, and whose values are known: a corridor with an end.

The hand walks in cells 0 to 4 and earns 1 in each step. From cell 4 on there is no further step: the episode has
terminated. Whoever ignores that believes to earn 1 for ever, which is worth 1 / (1 - γ).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

LAST = 4  # the cell in which an episode terminates
SIDE = 16  # of the picture, in pixels


class Corridor(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Each step moves by its action in [-2, 2], rounded to whole cells, and earns 1. It terminates in cell 4."""

    def __init__(self, render_mode: str | None = None, render_modes: Sequence[str] = ("rgb_array",)) -> None:
        self.metadata = {"render_modes": list(render_modes)}
        self.render_mode = render_mode
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.observation_space = spaces.Box(0.0, LAST, (1,), np.float32)
        self.cell = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.cell = 0
        return self._observed(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.cell = int(np.clip(self.cell + round(float(action[0])), 0, LAST))
        ended = self.cell == LAST
        return self._observed(), 1.0, ended, False, {"is_success": ended}

    def render(self) -> npt.NDArray[np.uint8]:  # type: ignore[override]
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        picture[:, 3 * self.cell : 3 * self.cell + 3] = 255
        return picture

    def _observed(self) -> npt.NDArray[np.float32]:
        return np.full(1, self.cell, np.float32)


gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=40)
