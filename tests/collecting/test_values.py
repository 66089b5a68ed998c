"""Values against what came of them: known returns, steps that count, and an evaluation that says both."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl.collecting.evaluation import Evaluator
from mbrl.collecting.values import LEFT_OUT, judged, means
from mbrl.envs.toy import make_env as make_toy
from tests.collecting.test_evaluation import WalkingPolicy

GAMMA = 0.5  # 5 steps leave out 1/32 of a return, and 4 of them 1/16


def test_constant_rewards_have_the_known_return() -> None:
    rewards, lengths = torch.full((2, 40), 3.0), torch.tensor([40, 40])
    found = means([judged(torch.full((2, 40), 7.0), rewards, lengths, GAMMA)])
    assert found["value"] == 7.0
    assert (1 - LEFT_OUT) * 6.0 < found["value_true"] <= 6.0, "3 / (1 - 1/2), but for what lies behind the end"


def test_steps_count_where_enough_follow() -> None:
    values, rewards = torch.arange(8.0).expand(2, 8), torch.zeros(2, 8)
    found = judged(values, rewards, torch.tensor([6, 8]), GAMMA)
    assert (found.value, found.steps) == (0.0 + 1.0 + 0.0 + 1.0 + 2.0 + 3.0, 6)
    assert means([judged(values, rewards, torch.tensor([4, 4]), GAMMA)]) == {}
    assert judged(values, rewards, torch.tensor([8, 7]), 1.0).steps == 1, "undiscounted, a whole episode"


def test_parts_are_joined_by_their_steps() -> None:
    one = judged(torch.ones(1, 5), torch.zeros(1, 5), torch.tensor([5]), GAMMA)
    many = judged(torch.full((3, 6), 8.0), torch.zeros(3, 6), torch.tensor([6, 6, 6]), GAMMA)
    assert means([one, many]) == {"value": (1 + 6 * 8) / 7, "value_true": 0.0}


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
    true = torch.stack([(rewards[:, t:] * gamma ** torch.arange(12.0 - t)).sum(1) for t in range(8)], 1).mean()
    assert found["value"] == pytest.approx(float(expected), rel=1e-5)
    assert found["value_true"] == pytest.approx(float(true), rel=1e-4)


def test_a_policy_without_critics_says_nothing() -> None:
    evaluator = Evaluator(
        partial(make_toy, resolution=16, episode_length=12), episodes=1, max_steps=12, seed=3, gamma=0.5
    )
    assert "value" not in evaluator(WalkingPolicy()).summary()
