"""Stable-Baselines3's SAC, a peer of `policies.py` where it is installed: `pip install stable-baselines3`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np

ROWS = 50_000  # transitions in its replay


class _Sizes(gymnasium.Env[Any, Any]):
    """An environment that is never stepped: it tells the sizes."""

    def __init__(self, state: int, actions: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (state,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (actions,), np.float32)


def sac_update(state: int, actions: int, batch: int) -> Callable[[], object] | None:
    """One update with sampling from its own replay, with two hidden layers of 256; None where it is not installed.

    Args:
        state: width of the states.
        actions: width of the actions.
        batch: transitions of an update.
    """
    if find_spec("stable_baselines3") is None:
        return None
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    networks = {"net_arch": [256, 256]}
    agent = SAC("MlpPolicy", _Sizes(state, actions), buffer_size=ROWS, policy_kwargs=networks, device="cpu")
    agent.set_logger(configure(None, []))
    replay, draw = agent.replay_buffer, np.random.default_rng(0)
    for values in (replay.observations, replay.next_observations, replay.rewards, replay.actions):
        values[:] = draw.uniform(-1, 1, values.shape)
    replay.full = True
    return partial(agent.train, 1, batch)
