"""The imagined environment under Gymnasium's own checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from mbrl.envs.imagined import ImaginationEnv
from mbrl.envs.imagined_gym import ImaginedGymEnv
from mbrl.replay.replay import Replay
from tests.fakes import SIZE, CountingWorldModel, episode


class NoisyStates(CountingWorldModel):
    """Draws the next state at random around the action; the reward is the first number of the state."""

    observations, state_dim, context_length, max_horizon = ("state",), 2, 1, 50

    def start(self, context: Any) -> Tensor:
        return context["state"][:, -1]

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, TensorDict]:
        state = action + 0.1 * torch.randn_like(state)
        return state, TensorDict(state=state, reward=state[:, :1], batch_size=[len(action)])


def replay_of(*keys: str) -> Replay:
    replay = Replay(1000, frame_stack=3, n_step=1, gamma=0.9)
    for number in range(3):
        records = episode(number).set("state", number + torch.arange(26.0).view(13, 2))
        replay.online.extend(records.select(*keys, "action", "reward", "success", "terminated", "truncated")[None])
    return replay


def make(model: CountingWorldModel, horizon: int = 4, **options: Any) -> ImaginedGymEnv:
    pixels = "pixels" in model.observations
    starts = replay_of(*model.observations).starts
    size = {"resolution": SIZE, "frame_stack": 3} if pixels else {}
    spec = Bounded(-1.0, 1.0, (2,))
    return ImaginedGymEnv(
        ImaginationEnv(model, starts, action_spec=spec, batch_size=1, horizon=horizon, **size, **options)
    )


@pytest.mark.parametrize("model", [CountingWorldModel, NoisyStates])
def test_it_passes_the_check_of_gymnasium(model: type[CountingWorldModel]) -> None:
    check_env(make(model()), skip_render_check=True)


def test_pictures_rewards_and_the_end_of_an_episode() -> None:
    env = make(CountingWorldModel())
    observation, _ = env.reset(seed=1)
    assert env.observation_space.shape == (SIZE, SIZE, 9) and env.observation_space.dtype == np.uint8
    newest = observation[0, 0, -1]
    assert observation[0, 0].reshape(3, 3).tolist() == [
        [max(newest // 10 * 10, newest - back)] * 3 for back in (2, 1, 0)
    ]
    for step in range(1, 5):
        observation, reward, terminated, truncated, _ = env.step(np.array([0.5, 2.0], np.float32))
        assert observation[0, 0, -3:].tolist() == [newest + step] * 3 and reward == 0.5
        assert (terminated, truncated) == (False, step == 4)
        assert np.array_equal(env.render(), observation[..., -3:])
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset()
    with pytest.raises(FloatingPointError, match="not finite"):
        env.step(np.array([np.nan, 0.0], np.float32))


def test_a_seed_decides_an_episode_whatever_else_draws_random_numbers() -> None:
    def episode_of(seed: int, drawn: int) -> list[Any]:
        env = make(NoisyStates())
        found = [env.reset(seed=seed)[0].tolist()]
        for _ in range(3):
            before = torch.get_rng_state()
            torch.rand(drawn)
            found.append(env.step(np.zeros(2, np.float32))[0].tolist())
            torch.set_rng_state(before)
        return [*found, env.reset()[0].tolist()]

    assert episode_of(5, 1) == episode_of(5, 7) != episode_of(6, 1)
    before = torch.get_rng_state()
    make(NoisyStates()).reset(seed=1)
    assert torch.equal(torch.get_rng_state(), before), "nothing else's random numbers are touched"


def test_states_have_no_picture() -> None:
    env = make(NoisyStates())
    env.reset(seed=0)
    assert env.render() is None and env.render_mode is None and env.observation_space.shape == (2,)
