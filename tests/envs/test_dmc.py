"""The DeepMind Control suite: specs, seeds, pictures, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.envs import check_env_specs

from mbrl.envs import dmc
from mbrl.envs.dmc import make_env
from mbrl.errors import UserError

pytest.importorskip("dm_control")


def test_an_episode_from_state() -> None:
    env = make_env("cartpole-swingup", pixels=False, episode_length=20, action_repeat=2)
    check_env_specs(env)
    env.seek(0)
    rollout = env.rollout(100)
    assert rollout.shape == (10,) and rollout["state"].shape == (10, 5) and rollout["action"].shape == (10, 1)
    assert rollout["next", "truncated"].sum() == 1 and not rollout["next", "terminated"].any()
    assert (rollout["next", "reward"] >= 0).all() and (rollout["next", "reward"] <= 2).all()


def test_an_episode_is_a_function_of_seed_worker_and_number() -> None:
    def start(episode: int, **settings: Any) -> list[float]:
        env = make_env("reacher-easy", pixels=False, **settings)
        env.seek(episode)
        state: list[float] = env.reset()["state"].tolist()
        return state

    assert start(3) == start(3) != start(4)
    assert start(3, seed=1) != start(3) != start(3, worker=1)


def test_the_simulation_is_exactly_the_suites() -> None:
    from dm_control import suite

    env = make_env("cartpole-swingup", pixels=False, episode_length=20, action_repeat=1)
    rollout = env.rollout(10)
    theirs = suite.load("cartpole", "swingup")
    theirs.reset()
    with theirs.physics.reset_context():
        state = rollout["state"][0].double()
        theirs.physics.data.qpos[:] = [state[0], torch.atan2(state[2], state[1])]
        theirs.physics.data.qvel[:] = state[3:]
    for step in rollout:
        after = theirs.step(step["action"].numpy())
        assert after.reward == pytest.approx(float(step["next", "reward"]), abs=1e-5)


def test_pictures_change_with_the_robot_and_have_its_camera() -> None:
    env = make_env("walker-walk", resolution=32, frame_stack=2)
    rollout = env.rollout(4)
    assert rollout["frames"].shape == (4, 6, 32, 32) and rollout["pixels"].float().std() > 5
    assert not torch.equal(rollout["pixels"][0], rollout["pixels"][3])
    env.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "walker-wolk"}, "did you mean walker-walk"),
        ({"task": "walker"}, "did you mean"),
        ({"task": "lqr-lqr_2_1"}, "unknown"),
        ({"episode_length": 1002}, "end after 1000"),
        ({"episode_length": 999, "action_repeat": 2}, "multiple"),
        ({"snapshots": True}, "no exact snapshots"),
        ({"pixels": True, "camera": "nowhere"}, "choose one of"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_env(**{"task": "cartpole-balance", "pixels": False, **settings})


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmc, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[dmc\]'"):
        make_env("walker-walk", pixels=False)
