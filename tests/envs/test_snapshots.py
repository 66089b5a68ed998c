"""Exact states as vectors: packed and unpacked without loss, observed, and kept by the replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from mbrl.envs import metaworld, multitask, toy
from mbrl.envs.metaworld import MetaWorld
from mbrl.envs.simulator import task_names
from mbrl.envs.snapshots import SnapshotLayout
from mbrl.errors import UserError

ALL = pytest.param(None, marks=pytest.mark.slow, id="all-50")


def actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


# The first attribute of bin-picking that is a number is None before the first step.
@pytest.mark.parametrize("task", ["plate-slide", "bin-picking", ALL])
def test_a_packed_state_goes_on_exactly_also_in_another_environment(task: str | None) -> None:
    for name in [task] if task else task_names():
        env, other = MetaWorld(name, 0, pixels=False), MetaWorld(name, 9, pixels=False)
        layout = SnapshotLayout.of(env)
        for taken in (0, 20):
            env.reset()
            for move in actions(taken):
                env.step(move)
            vector = layout.pack(env.snapshot())
            assert vector.shape == (layout.size,) and torch.isfinite(vector).all()
            expected = [env.step(move) for move in actions(20, seed=1)]
            other.restore(SnapshotLayout.of(other).unpack(vector))
            assert torch.equal(layout.pack(other.snapshot()), vector), name
            for move, step in zip(actions(20, seed=1), expected, strict=True):
                again = other.step(move)
                assert np.array_equal(again[0]["state"], step[0]["state"]), name
                assert again[1:4] == step[1:4], name


def test_values_by_hand() -> None:
    template = {"b": {"x": 2, "name": "file"}, "a": np.zeros((2, 1), np.float32), "c": True, "d": 0.5}
    layout = SnapshotLayout(template)
    snapshot = {"b": {"x": 7, "name": "file"}, "a": np.float32([[1], [2]]), "c": False, "d": None}
    vector = layout.pack(snapshot)
    assert vector.tolist() == [1, 1, 2, 1, 7, 1, 0, 0, 0]
    again: Any = layout.unpack(vector)
    assert again["b"] == {"x": 7, "name": "file"} and type(again["b"]["x"]) is int
    assert again["a"].dtype == np.float32 and again["a"].tolist() == [[1], [2]]
    assert again["c"] is False and again["d"] is None
    again["a"][:], again["b"]["x"] = 9, 9
    assert layout.unpack(vector)["b"]["x"] == 7 and not template["a"].any(), "what is done to one stays there"
    with pytest.raises(ValueError, match=r"a of a snapshot is \(3,\), not \(2, 1\)"):
        layout.pack({**snapshot, "a": np.zeros(3)})


def test_it_is_observed_beside_what_the_agent_sees() -> None:
    env = metaworld.make_env("reach", pixels=False, snapshots=True, episode_length=8)
    check_env_specs(env)
    env.seek(3)
    rollout = env.rollout(4)
    assert torch.equal(rollout["snapshot"][1:], rollout["next", "snapshot"][:-1])
    env.restore(SnapshotLayout.of(env.unwrapped).unpack(rollout["snapshot"][2]))
    _, reward, *_ = env.unwrapped.step(rollout["action"][2].numpy())
    assert reward == pytest.approx(rollout["next", "reward"][2].item())
    plain = metaworld.make_env("reach", pixels=False, episode_length=8)
    plain.seek(3)
    assert torch.equal(plain.reset()["state"], rollout["state"][0]), "the layout's step leaves no trace"


def test_several_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="needs a single task"):
        multitask.make_env(["reach", "push"], pixels=False, snapshots=True)


def test_the_toy_has_snapshots_too() -> None:
    env = toy.make_env(resolution=16, snapshots=True, episode_length=8)
    check_env_specs(env)
    rollout = env.rollout(4)
    env.restore(SnapshotLayout.of(env.unwrapped).unpack(rollout["snapshot"][2]))
    assert np.array_equal(env.observe()["pixels"], rollout["pixels"][2])
