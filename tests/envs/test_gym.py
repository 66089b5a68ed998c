"""The wrapper of a Gymnasium environment: each key once, in its type, and the environment behind it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs import check_env_specs

from mbrl.envs.gym import wrap_gym


class Counting(gymnasium.Env[Any, Any]):
    """Counts its steps and terminates at the third; its arrays are always the same, of other types than its spaces."""

    def __init__(self) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        pixels = spaces.Box(0, 255, (3, 4, 4), np.uint8)
        self.observation_space = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (1,), np.float32), "pixels": pixels})
        self.count, self.given, self.closed = 0, [], False
        self.shown = {"state": np.zeros(1, np.float64), "pixels": np.zeros((3, 4, 4), np.uint8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observed(), {"success": np.zeros(1, bool)}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.given.append(action)
        return self._observed(), 0.1 * self.count, self.count == 3, False, {"success": np.array([self.count == 2])}

    def _observed(self) -> dict[str, Any]:
        for values in self.shown.values():
            values[:] = self.count
        return dict(self.shown)

    def close(self) -> None:
        self.closed = True


def test_a_step_has_every_key_in_its_type() -> None:
    env = wrap_gym(Counting(), frame_stack=2)
    check_env_specs(env)
    env.given.clear()
    rollout = env.rollout(9)
    after = rollout["next"]
    assert rollout.batch_size == (3,) and rollout["state"].dtype == torch.float32
    assert rollout["state"].flatten().tolist() == [0, 1, 2] and after["state"].flatten().tolist() == [1, 2, 3]
    assert after["frames"][:, ::3, 0, 0].tolist() == [[0, 1], [1, 2], [2, 3]], "the stack begins with the first picture"
    assert torch.equal(after["reward"], torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64).float())
    assert after["success"].flatten().tolist() == [False, True, False]
    assert after["terminated"].flatten().tolist() == after["done"].flatten().tolist() == [False, False, True]
    assert not after["truncated"].any()
    assert np.array_equal(np.stack(env.given), rollout["action"].numpy())


def test_what_the_environment_has_is_reached_through_the_wrapper() -> None:
    inner = Counting()
    env = wrap_gym(inner, frame_stack=1)
    assert env.unwrapped is inner and env.count == 0
    with pytest.raises(AttributeError, match="nothing"):
        _ = env.nothing
    env.set_seed(5)
    drawn = inner.np_random.random()
    env.reset(seed=5)
    assert inner.np_random.random() == drawn, "both seed the environment"
    with pytest.raises(RuntimeError, match="cannot be reset in part"):
        env.reset(env.reset().set("_reset", torch.zeros(1, dtype=torch.bool)))
    env.close()
    assert inner.closed
