"""The toy: the same keys and habits as Meta-World, rewards that show an off-by-one, and speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import check_env_specs

from mbrl.envs.toy import NEAR, Toy, make_env
from mbrl.errors import UserError


def to_goal(state: Tensor) -> Tensor:
    return (10 * (state[..., 2:] - state[..., :2])).clamp(-1, 1)


def test_specs_and_keys() -> None:
    env = make_env(resolution=16, episode_length=8)
    check_env_specs(env)
    rollout = env.rollout(100)
    assert rollout.shape == (8,)
    assert rollout["frames"].shape == (8, 9, 16, 16)
    assert rollout["next", "truncated"].sum() == 1
    assert not rollout["next", "terminated"].any()


def test_a_reward_belongs_to_its_own_action() -> None:
    rollout = make_env(seed=1).rollout(100)
    before, after = rollout["state"], rollout["next", "state"]
    gained = (before[:, 2:] - before[:, :2]).norm(dim=1) - (after[:, 2:] - after[:, :2]).norm(dim=1)
    reward = rollout["next", "reward"][:, 0]
    assert torch.allclose(reward, 10 * gained, atol=1e-4)
    assert not torch.allclose(reward[1:], 10 * gained[:-1], atol=0.1)


def test_going_to_the_goal_succeeds() -> None:
    rollout = make_env(seed=2).rollout(100, TensorDictModule(to_goal, ["state"], ["action"]))
    success, after = rollout["next", "success"][:, 0], rollout["next", "state"]
    near = (after[:, 2:] - after[:, :2]).norm(dim=1) < NEAR
    assert torch.equal(success, near)
    assert success.any()
    assert rollout["next", "reward"].sum() > 0


def test_pixels_show_agent_and_goal() -> None:
    env = Toy(seed=3)
    observation, _ = env.reset()
    agent, goal = observation["state"][:2], observation["state"][2:]
    for colour, place in (((255, 255, 255), agent), ((40, 200, 60), goal)):
        hit = (observation["pixels"] == np.reshape(colour, (3, 1, 1))).all(0)
        rows, columns = np.nonzero(hit)
        assert 0 < hit.sum() <= 64
        assert abs(columns.mean() / 63 - place[0]) < 0.1
        assert abs(rows.mean() / 63 - place[1]) < 0.1


def test_an_episode_is_a_function_of_seed_worker_and_number() -> None:
    env = make_env(seed=4)
    starts = [env.reset()["state"] for _ in range(3)]
    env.seek(1)
    assert torch.equal(env.reset()["state"], starts[1])
    assert torch.equal(make_env(seed=4, first_episode=2).reset()["state"], starts[2])
    assert not torch.equal(make_env(seed=4, worker=1).reset()["state"], starts[0])
    assert not torch.equal(make_env(seed=5).reset()["state"], starts[0])
    with pytest.raises(UserError, match="episode is -1: it must be 0 or more"):
        env.seek(-1)


def test_the_action_is_repeated() -> None:
    once, twice = Toy(episode_length=4), Toy(episode_length=4, action_repeat=2)
    once.reset()
    twice.reset()
    action = np.array([1.0, -0.5], np.float32)
    reward = once.step(action)[1]
    observation, more, *_ = once.step(action)
    result = twice.step(action)
    assert np.array_equal(result[0]["state"], observation["state"])
    assert result[1] == pytest.approx(reward + more)


@pytest.mark.parametrize(
    "settings",
    [{"resolution": 4}, {"episode_length": 3, "action_repeat": 2}, {"task": "x"}, {"frame_stack": 0}],
)
def test_impossible_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        make_env(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_speed() -> None:
    env = Toy()
    env.reset()
    action = np.zeros(2, np.float32)
    rates = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(200):
            env.step(action)
        rates.append(200 / (time.perf_counter() - began))
    assert max(rates) > 5000
