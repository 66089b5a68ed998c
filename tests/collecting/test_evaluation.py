"""Evaluation: side by side as one by one, whatever the policy remembers, and nothing of training is touched."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Composite, Unbounded

from mbrl.collecting import evaluation
from mbrl.collecting.evaluation import Evaluator, score
from mbrl.envs.metaworld import make_env as make_metaworld
from mbrl.envs.multitask import make_env as make_tasks
from mbrl.envs.toy import Toy
from mbrl.envs.toy import make_env as make_toy
from policies.base import Policy
from policies.random import RandomPolicy
from policies.scripted import ScriptedPolicy


class Walker(TensorDictModuleBase):
    """Goes to the goal of the toy, more slowly at each step; reads frames, which must be those of its own episode."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = ["state", "frames", "pixels", "steps", "is_init"]
        self.out_keys = ["action", ("next", "steps")]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        state, steps, frames = tensordict["state"], tensordict["steps"], tensordict["frames"]
        assert torch.equal(frames[..., -3:, :, :], tensordict["pixels"])
        assert torch.equal(tensordict["is_init"], steps == 0)
        brightness = frames.float().mean((-3, -2, -1))[..., None] / 255
        action = (10 * (state[..., 2:] - state[..., :2])).clamp(-1, 1) / (1 + steps) + 0.1 * brightness
        tensordict["next", "steps"] = steps + 1
        return tensordict.set("action", action)


class WalkingPolicy(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.actor = Walker()
        self.carried = Composite(steps=Unbounded((1,)))
        self.weight = torch.nn.Parameter(torch.zeros(1))  # a module in train mode that `eval` changes

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return {}


def alone(evaluator: Evaluator, policy: Policy, episodes: int) -> list[Any]:
    rollouts = [evaluator.play(policy, index)["next"] for index in range(episodes)]
    return [score(rollout["success"][:, 0], rollout["reward"][:, 0]) for rollout in rollouts]


def columns(result: evaluation.Evaluation) -> list[Any]:
    return list(zip(result.success, result.success_last, result.returns, result.steps_to_success, strict=True))


@pytest.mark.parametrize("together", [20, 3])
def test_side_by_side_is_one_by_one(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(evaluation, "SIDE_BY_SIDE", together)
    make_env = partial(make_toy, resolution=16, episode_length=12)
    evaluator, policy = Evaluator(make_env, episodes=8, max_steps=12, seed=3), WalkingPolicy()
    expected = alone(evaluator, policy, 8)
    assert columns(evaluator(policy)) == expected
    assert columns(evaluator(policy)) == expected, "the same at every call"
    assert 0 < sum(row[0] for row in expected) < 8, "some episodes are solved and some are not"
    assert policy.training


def test_side_by_side_is_one_by_one_in_meta_world() -> None:
    make_env = partial(make_metaworld, "window-close", pixels=False, episode_length=200)
    evaluator = Evaluator(make_env, episodes=3, max_steps=100, seed=3)
    policy = ScriptedPolicy(evaluator.env.observation_spec, evaluator.env.action_spec, task="window-close")
    result = evaluator(policy)
    assert columns(result) == alone(evaluator, policy, 3)
    assert all(result.success)


def test_threads_draw_and_step_what_one_thread_does() -> None:
    make_env = partial(make_metaworld, "window-close", episode_length=12, resolution=32)
    results = []
    for threads in (1, 3):
        with closing(Evaluator(make_env, episodes=5, max_steps=6, seed=3, threads=threads)) as evaluator:
            policy = ScriptedPolicy(evaluator.env.observation_spec, evaluator.env.action_spec, task="window-close")
            with torch.inference_mode():  # which no other thread knows of
                played = [evaluator.play_together(policy, range(first, first + 5), opening=6) for first in (0, 5)]
            results.append(played)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one.reward, three.reward) and torch.equal(one.lengths, three.lengths)
        assert (one.opening == three.opening).all()
        assert one.opening["pixels"].float().std() > 0


def test_one_thread_plays_several_tasks_and_a_second_environment_that_fails_leaves_none() -> None:
    made = partial(make_tasks, ["reach", "push"], pixels=False, episode_length=4, goals="fixed")
    with closing(Evaluator(made, episodes=2, max_steps=2, seed=3, threads=3)) as evaluator:
        assert len(evaluator(RandomPolicy(evaluator.env.observation_spec, evaluator.env.action_spec)).returns) == 4
        assert evaluator._threads is not None and len(evaluator._threads.envs) == 1
    made_envs: list[Any] = []

    def fails_at_the_third(**options: Any) -> Any:
        if len(made_envs) == 2:
            raise OSError("no OpenGL")
        made_envs.append(make_toy(resolution=16, episode_length=12, **options))
        return made_envs[-1]

    with closing(Evaluator(fails_at_the_third, episodes=4, max_steps=2, seed=3, threads=4)) as evaluator:
        with pytest.raises(OSError, match="no OpenGL"):
            evaluator(WalkingPolicy())
        assert [env.is_closed for env in made_envs] == [False, True]


def test_an_error_in_a_thread_is_raised_and_all_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    step, threads = Toy.step, set()

    def fails(self: Toy, action: Any) -> Any:
        threads.add(threading.get_ident())
        if threading.current_thread() is not threading.main_thread():
            raise FloatingPointError("the policy has diverged")
        return step(self, action)

    monkeypatch.setattr(Toy, "step", fails)
    make_env = partial(make_toy, resolution=16, episode_length=12)
    with closing(Evaluator(make_env, episodes=8, max_steps=12, seed=3, threads=3)) as evaluator:
        with pytest.raises(FloatingPointError, match="diverged"):
            evaluator(WalkingPolicy())
        assert len(threads) == 3


def test_an_episode_that_ends_early_is_not_stepped_on(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = Toy.step

    def ends(self: Toy, action: Any) -> Any:
        steps.append(1)
        observation, reward, terminated, truncated, info = step(self, action)
        return observation, reward, terminated or bool(info["success"][0]), truncated, info

    monkeypatch.setattr(Toy, "step", ends)
    evaluator = Evaluator(partial(make_toy, resolution=16, episode_length=12), episodes=8, max_steps=12, seed=3)
    result = evaluator(WalkingPolicy())
    lengths = [taken if success else 12 for success, taken in zip(result.success, result.steps_to_success, strict=True)]
    assert len(steps) == sum(lengths)
    assert result.success == result.success_last


def test_random_numbers_of_training_are_left_alone() -> None:
    evaluator, policy = Evaluator(make_toy, episodes=2, max_steps=3, seed=3), WalkingPolicy()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    evaluator(policy)
    assert torch.equal(torch.rand(3), expected)


def test_scores_by_hand() -> None:
    success, reward = torch.tensor([False, True, False]), torch.tensor([1.0, 2.0, 4.0])
    assert score(success, reward) == (True, False, 7.0, 2)
    assert score(success & False, reward) == (False, False, 7.0, 0)


def test_the_success_of_an_episode_is_at_any_step_or_at_the_last() -> None:
    outcome = [[True, True, False], [False, True, False], [3.0, 2.0, 1.0], [7, 9, 0], ["reach", "push", "reach"]]
    means = evaluation.Evaluation(*outcome).summary()
    assert means["success"] == pytest.approx(2 / 3) and means["success_last"] == pytest.approx(1 / 3)
    assert "success_any" not in means and means["success/reach"] == 0.5
    means = evaluation.Evaluation(*outcome, counts="last").summary()
    assert means["success"] == means["success_last"] == pytest.approx(1 / 3)
    assert means["success_any"] == pytest.approx(2 / 3) and means["steps_to_success"] == 8
    assert means["success/reach"] == 0 and means["success/push"] == 1


def test_an_evaluator_counts_as_it_is_told() -> None:
    make_env = partial(make_toy, resolution=16, episode_length=12)
    results = [
        Evaluator(make_env, episodes=2, max_steps=12, seed=3, success=name)(WalkingPolicy()) for name in ("any", "last")
    ]
    assert [result.counts for result in results] == ["any", "last"]
    assert results[0]._replace(counts="last") == results[1]
