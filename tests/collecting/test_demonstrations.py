"""Demonstrations: successful, reproducible, whole on disk; and the two policies that learn nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrl.data import Composite
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.collecting.demonstrations import record
from mbrl.data.episodes import check_records, read_episodes, read_metadata, view_name
from mbrl.envs.metaworld import make_env
from mbrl.envs.toy import make_env as make_toy
from mbrl.replay.demonstrations import read_demonstrations
from policies.random import RandomPolicy
from policies.scripted import ScriptedPolicy

OPTIONS = {"resolution": 16, "episode_length": 120}


def test_demonstrations_are_successful_and_reproducible(tmp_path: Path) -> None:
    paths = record("drawer-close", 2, noise=0.3, seed=1, output=tmp_path / "a", **OPTIONS)
    record("drawer-close", 2, noise=0.3, seed=1, output=tmp_path / "b", **OPTIONS)
    episodes, again = read_episodes(tmp_path / "a"), read_episodes(tmp_path / "b")
    assert len(paths) == len(episodes) == 2
    for first, second in zip(episodes, again, strict=True):
        check_records(first, "x")
        assert first.shape == (61,)
        assert first["success"].any()
        assert first["pixels"].shape == (61, 3, 16, 16)
        assert all(torch.equal(first[key], second[key]) for key in set(first.keys()))
    assert not torch.equal(episodes[0]["state"][0], episodes[1]["state"][0])
    assert read_metadata(paths[0]) == {"task": "drawer-close", "action_repeat": 2, "view": "corner"}
    assert paths[0].read_bytes() == (tmp_path / "b" / paths[0].name).read_bytes()
    with pytest.raises(FileExistsError, match="holds episodes already"):
        record("drawer-close", 1, output=tmp_path / "a")


def test_another_view_is_refused_where_pictures_matter(tmp_path: Path) -> None:
    record("drawer-close", 1, output=tmp_path, camera="corner2", **OPTIONS)
    with pytest.raises(ValueError, match=r"is of view corner2, and the environment's view is corner mirrored"):
        read_demonstrations(tmp_path, task="drawer-close", action_repeat=2, view=view_name("corner", mirrored=True))
    assert len(read_demonstrations(tmp_path, task="drawer-close", action_repeat=2)) == 1


def test_hopeless_noise_is_an_error_and_leaves_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.collecting.demonstrations.ATTEMPTS_PER_EPISODE", 2)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="only 0 of 2"):
        record("push", 1, noise=3.0, output=tmp_path, pixels=False, episode_length=20)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_script_solves_its_task_and_explores_only_when_asked() -> None:
    env = make_env("drawer-close", pixels=False)
    policy = ScriptedPolicy(env.observation_spec, env.action_spec, task="drawer-close", noise=0.5)
    step = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        plain = [policy.actor(step.clone())["action"] for _ in range(2)]
        assert env.rollout(100, policy.actor)["next", "success"].any()
    noisy = policy.actor(step.clone())["action"]
    assert torch.equal(plain[0], plain[1])
    assert not torch.equal(noisy, plain[0])
    assert noisy.abs().max() <= 1
    assert policy.actor(torch.stack([step, step]))["action"].shape == (2, 4)
    assert policy.update(step) == {}


def test_scripts_refuse_what_they_cannot_do() -> None:
    env, toy = make_env("reach", pixels=False), make_toy()
    with pytest.raises(ValueError, match="door-lock"):
        ScriptedPolicy(env.observation_spec, env.action_spec, task="dor-lock")
    with pytest.raises(ValueError, match="noise"):
        ScriptedPolicy(env.observation_spec, env.action_spec, task="reach", noise=-1.0)
    with pytest.raises(ValueError, match="state"):
        ScriptedPolicy(_without_state(toy), toy.action_spec, task="reach")


def _without_state(env: EnvBase) -> Composite:
    spec = env.observation_spec.clone()
    del spec["state"]
    return spec


def test_the_random_policy_draws_from_the_spec() -> None:
    env = make_toy(resolution=8)
    policy = RandomPolicy(env.observation_spec, env.action_spec)
    torch.manual_seed(0)
    first = env.rollout(5, policy.actor)["action"]
    env.seek(0)
    torch.manual_seed(0)
    assert torch.equal(env.rollout(5, policy.actor)["action"], first)
    assert first.abs().max() <= 1
    assert first.unique().numel() == 10
    assert not policy.optimizers
