"""Values against what came of them: known returns, steps that count, and an evaluation that says both."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.collecting.evaluation import Evaluator
from mbrl.collecting.run_evaluator import run_evaluator
from mbrl.collecting.values import compare, mean_values
from mbrl.compose import composed
from mbrl.envs.toy import make_env as make_toy
from tests.collecting.test_evaluation import WalkingPolicy

GAMMA = 0.5  # 5 steps hold 31/32 of a return of constant rewards, and 4 of them 15/16
CUT, ENDED = torch.tensor([False, False]), torch.tensor([True, True])


def test_critics_that_are_right_are_found_right() -> None:
    """Also where the rewards come late, behind a time limit or at a termination."""
    rewards, lengths = torch.rand(2, 40) * torch.arange(40), torch.tensor([40, 33])
    rewards[1, 33:] = 0
    values = torch.zeros(2, 41)
    for step in reversed(range(40)):
        values[:, step] = rewards[:, step] + GAMMA * values[:, step + 1]
    for terminated in (CUT, ENDED):
        found = mean_values([compare(values[:, :40], rewards, lengths, terminated, GAMMA)])
        assert found["value"] == pytest.approx(found["value_true"], rel=1e-5)


def test_critics_that_expect_too_much_are_found_out() -> None:
    rewards, lengths = torch.full((2, 40), 3.0), torch.tensor([40, 40])
    found = mean_values([compare(torch.full((2, 40), 12.0), rewards, lengths, CUT, GAMMA)])
    assert found["value"] == 12.0 and 6.0 < found["value_true"] < 6.0 + (12.0 - 6.0) / 16
    exact = mean_values([compare(torch.full((2, 40), 12.0), rewards, lengths, ENDED, GAMMA)])
    assert exact["value"] == 12.0 and 5.8 < exact["value_true"] < 6.0, "3 / (1 - 1/2), less what the ends cut"


def test_steps_count_where_enough_follow_or_the_end_is_known() -> None:
    values, rewards = torch.arange(8.0).expand(2, 8), torch.zeros(2, 8)
    found = compare(values, rewards, torch.tensor([6, 8]), CUT, GAMMA)
    assert (found.expected, found.steps) == (0.0 + 1.0 + 0.0 + 1.0 + 2.0 + 3.0, 6)
    assert mean_values([compare(values, rewards, torch.tensor([4, 4]), CUT, GAMMA)]) == {}
    assert compare(values, rewards, torch.tensor([4, 3]), ENDED, GAMMA).steps == 7
    assert compare(values, rewards, torch.tensor([8, 7]), CUT, 1.0).steps == 1, "undiscounted, a whole episode"


def test_parts_are_joined_by_their_steps() -> None:
    one = compare(torch.ones(1, 5), torch.zeros(1, 5), torch.tensor([5]), ENDED[:1], GAMMA)
    many = compare(torch.full((3, 5), 8.0), torch.zeros(3, 5), torch.tensor([5, 5, 5]), ENDED[:1].expand(3), GAMMA)
    assert mean_values([one, many]) == {"value": (1 + 3 * 8) / 4, "value_true": 0.0}


class Optimist(WalkingPolicy):
    """Expects 2 more than the first number of the state, so that what it was asked about can be seen."""

    def values(self, observed: TensorDictBase, action: Tensor) -> Tensor:
        assert torch.equal(action, observed["action"])
        return observed["state"][:, :1] + 2


@pytest.mark.parametrize("gamma", [0.5, None])
def test_an_evaluation_says_what_critics_expect(gamma: float | None) -> None:
    make_env = partial(make_toy, resolution=16, episode_length=12)
    evaluator = Evaluator(make_env, episodes=3, max_steps=12, seed=3, gamma=gamma)
    found = evaluator(Optimist()).summary()
    if gamma is None:
        assert "value" not in found
        return
    rollouts = [evaluator.play(Optimist(), index) for index in range(3)]
    expected = torch.stack([rollout["state"][:8, 0] + 2 for rollout in rollouts]).mean()
    rewards = torch.stack([rollout["next", "reward"][:, 0] for rollout in rollouts])
    rewards[:, -1] = torch.stack([rollout["state"][-1, 0] + 2 for rollout in rollouts])  # what would have come
    true = torch.stack([(rewards[:, t:] * gamma ** torch.arange(12.0 - t)).sum(1) for t in range(8)], 1).mean()
    assert found["value"] == pytest.approx(float(expected), rel=1e-5)
    assert found["value_true"] == pytest.approx(float(true), rel=1e-4)


def test_a_policy_without_critics_says_nothing() -> None:
    evaluator = Evaluator(
        partial(make_toy, resolution=16, episode_length=12), episodes=1, max_steps=12, seed=3, gamma=0.5
    )
    assert "value" not in evaluator(WalkingPolicy()).summary()


def test_a_run_asks_its_critics_unless_their_rewards_have_a_bonus() -> None:
    """As does an estimate of it, over fewer goals."""
    plain, bonus = (composed(["agent=drqv2", "experiment=smoke", f"env.success_bonus={bonus}"]) for bonus in (0, 10))
    with closing(run_evaluator(plain, 3)) as evaluator:
        assert (evaluator.episodes, evaluator.gamma) == (3, plain.replay.gamma)
    with closing(run_evaluator(bonus, 3)) as evaluator:
        assert evaluator.gamma is None
