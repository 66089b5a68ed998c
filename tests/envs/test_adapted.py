"""Any Gymnasium environment: actions, action repeat, time limits, seeds, pictures, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs import check_env_specs

from mbrl.envs.adapted import Adapted, action_bounds, observes_picture
from mbrl.envs.pictures import square
from mbrl.envs.registered import make_env
from mbrl.errors import UserError
from mbrl.settings.resolvers import time_limit
from tests.termination import Corridor

FLOATS = spaces.Box(-np.inf, np.inf, (3,), np.float64)
CORRIDOR = "tests.termination:Corridor-v0"


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """The registry of Gymnasium is left as it was."""
    kept = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(kept)


def adapted(**settings: Any) -> Adapted:
    options: dict[str, Any] = {"pixels": False, "episode_length": 8, "terminates": True, **settings}
    return Adapted(Corridor(), "Corridor-v0", **options)


def test_specs_keys_and_the_end_by_termination() -> None:
    env = make_env(CORRIDOR, episode_length=8, terminates=True, resolution=16, frame_stack=2)
    check_env_specs(env)
    env.seek(0)
    rollout = env.rollout(100, lambda td: td.set("action", torch.tensor([0.5])))
    assert rollout["state"].flatten().tolist() == [0, 1, 2, 3], "an action of 0.5 is one cell"
    assert rollout["next", "terminated"].flatten().tolist() == [False, False, False, True]
    assert rollout["next", "success"].flatten().tolist() == [False, False, False, True]
    assert not rollout["next", "truncated"].any() and rollout["frames"].shape == (4, 6, 16, 16)


def test_a_time_limit_truncates_and_does_not_terminate() -> None:
    env = adapted(episode_length=2)
    env.reset()
    results = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(2)]
    assert results == [(False, False), (False, True)]


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = adapted(action_repeat=2)
    env.reset()
    one = np.full(1, 0.5, np.float32)
    assert env.step(one)[1] == 2.0
    env.reset()
    env._env.unwrapped.cell = 3  # type: ignore[attr-defined]
    observation, reward, terminated, truncated, _ = env.step(one)
    assert (reward, terminated, truncated) == (1.0, True, False), "the second env step is not taken"
    assert observation["state"].tolist() == [4.0]


def test_a_success_in_any_of_the_repeated_steps_counts() -> None:
    class Visited(Corridor):
        """The task is to visit cell 1."""

        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"success": self.cell == 1}

    env = Adapted(Visited(), "Visited-v0", pixels=False, episode_length=8, terminates=True, action_repeat=2)
    env.reset()
    one = np.full(1, 0.5, np.float32)
    assert [env.step(one)[4]["success"].tolist() for _ in range(2)] == [[True], [False]]


def test_an_episode_is_a_function_of_seed_worker_and_number() -> None:
    def start(**settings: Any) -> float:
        env = adapted(**settings)
        env.reset()
        return float(env._env.unwrapped.np_random.random())  # type: ignore[attr-defined]

    assert start(seed=3) == start(seed=3)
    env = adapted(seed=3)
    env.seek(5)
    env.reset()
    assert start(seed=3, first_episode=5) == env._env.unwrapped.np_random.random()  # type: ignore[attr-defined]
    assert len({start(seed=3), start(seed=4), start(seed=3, worker=1), start(seed=3, first_episode=1)}) == 4


def test_a_termination_that_is_excluded_is_an_error() -> None:
    env = adapted(terminates=False)
    env.reset()
    with pytest.raises(UserError, match=r"set env\.terminates=true"):
        for _ in range(4):
            env.step(np.ones(1, np.float32))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Discrete(3), "continuous"),
        (spaces.MultiDiscrete([3, 2]), "continuous"),
        (spaces.Box(0, 3, (2,), np.int64), "continuous"),
        (spaces.Dict(a=spaces.Box(-1, 1, (1,))), "continuous"),
        (spaces.Box(-np.inf, 1, (2,)), "finite bounds"),
        (spaces.Box(-1e10, 1e10, (2,)), "finite bounds"),
        (spaces.Box(1, 1, (2,)), "finite bounds"),
        (spaces.Box(-1, 1, (0,)), "finite bounds"),
    ],
)
def test_actions_that_are_refused(space: spaces.Space[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        action_bounds(space, "X-v0")


@pytest.mark.parametrize(
    ("space", "pixels", "words"),
    [
        (spaces.Dict(a=spaces.Box(-1, 1, (1,))), False, "one Box"),
        (spaces.Tuple((FLOATS,)), False, "one Box"),
        (spaces.Discrete(4), False, "one Box"),
        (spaces.Box(-1, 1, (0,)), False, "no number"),
        (spaces.Box(0, 255, (96, 96, 3), np.uint8), False, r"set env\.pixels=true"),
        (spaces.Box(0, 255, (3, 84, 84), np.uint8), True, r"images are uint8 \[H, W, 3\]"),
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), True, r"images are uint8 \[H, W, 3\]"),
        (spaces.Box(0, 1, (64, 64, 3), np.float32), False, "FlattenObservation"),
    ],
)
def test_observations_that_are_refused(space: spaces.Space[Any], pixels: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        observes_picture(space, "X-v0", pixels)


def test_which_observations_are_pictures() -> None:
    assert observes_picture(spaces.Box(0, 255, (96, 96, 3), np.uint8), "X-v0", True)
    assert observes_picture(spaces.Box(0, 255, (84, 84), np.uint8), "X-v0", True)
    assert not observes_picture(spaces.Box(0, 255, (128,), np.uint8), "X-v0", False)
    assert not observes_picture(spaces.Box(0, 9, (4, 4), np.uint8), "X-v0", False), "a board is no picture"


def test_a_picture_is_scaled_to_the_mean_of_its_pixels() -> None:
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :16], picture[:, :, 1] = 200, 100
    small = square(picture, 8, "X-v0")
    assert small.shape == (3, 8, 8) and small[0, :4, :4].min() == 200 and small[0, 4:].max() == 0
    assert (small[1] == 100).all()
    assert (square(np.full((8, 8), 7, np.uint8), 8, "X-v0") == 7).all(), "grey"
    for wrong in (None, np.zeros((16, 16, 3)), [picture]):
        with pytest.raises(UserError, match=r"set env\.pixels=false"):
            square(wrong, 8, "X-v0")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pendulum-v9", "nearest: Pendulum-v1"),
        ("pendulum", "nearest: Pendulum-v1"),
        ("", "nearest: "),
        ("no_such_package:X-v0", "pip install no_such_package"),
        ("tests.termination:X-v0", "nearest: "),
        ("tests.termination:Corridor-v1", "nearest: tests.termination:Corridor-v0[^(]*$"),
        ("CartPole-v1", "continuous"),
        ("phys2d/Pendulum-v0", "pip install jax"),
        ("BipedalWalker-v3", r"pip install \"gymnasium\[box2d\]\""),
        ("Hopper-v2", "cannot be made"),
    ],
)
def test_ids_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_env(name, pixels=False, episode_length=8, terminates=True)


@pytest.mark.parametrize("settings", [{"snapshots": True}, {"episode_length": 3, "action_repeat": 2}])
def test_impossible_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        make_env(CORRIDOR, pixels=False, terminates=True, **{"episode_length": 8, **settings})


def test_mujoco_renders_at_the_resolution_of_the_run() -> None:
    env = make_env("Hopper-v5", episode_length=4, terminates=True, resolution=32)
    assert env.unwrapped._env.render().shape == (32, 32, 3)


def test_what_cannot_render_is_told_before_anything_runs() -> None:
    gymnasium.register("Blind-v0", entry_point=lambda: Corridor(render_modes=()))
    with pytest.raises(UserError, match=r"cannot render.*env\.pixels=false"):
        make_env("Blind-v0", episode_length=8, terminates=True)


def test_the_time_limit_is_the_registered_one() -> None:
    assert time_limit("Pendulum-v1", 1) == 200 and time_limit("Pendulum-v1", 3) == 198
    assert time_limit(CORRIDOR, 1) == 40
    assert time_limit("there-is-none", 2) == time_limit("no_package:X-v0", 1) == 1000
