"""TD-MPC2 where episodes terminate: what its segments, losses, values and plans make of the end of the corridor.

The corridor's true value is that of tests/agents/test_terminations.py.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite, Unbounded

from mbrl.agents.tdmpc2 import LatentPlanner
from policies.planner import MPPI
from policies.tdmpc2 import PriorAndCritics
from tests.agents.test_terminations import ACTION, GAMMA, TRUTH, built, walked
from tests.termination import LAST
from worldmodel.latent_base import LatentDynamics, UnrolledLoss
from worldmodel.tdmpc2.model import TDMPC2Dynamics

CELLS, HORIZON = LAST + 1, 3
STEP = 0.5  # the action that goes one cell
ONE_HOT = Composite(state=Unbounded((CELLS,)))
SIZES = {"latent_size": 16, "width": 32, "encoder_width": 32}


class ExactCorridor(LatentDynamics):
    """The corridor itself as a model without weights: latent states are one-hot cells, and the last one is the end."""

    observations, latent_size = ("state",), CELLS

    def __init__(self, *specs: Any, terminates: bool = False) -> None:
        super().__init__()
        self.terminates, self.unused = terminates, nn.Parameter(torch.zeros(()))
        self.optimizers = {"world_model": torch.optim.SGD([self.unused])}

    def encode(self, observed: TensorDictBase) -> Tensor:
        return observed["state"]

    def advance(self, latent: Tensor, action: Tensor) -> Tensor:
        cell = latent.argmax(-1) + (2 * action.squeeze(-1)).round().long()
        return F.one_hot(cell.clamp(0, LAST), CELLS).float()

    def reward(self, latent: Tensor, action: Tensor) -> Tensor:
        return torch.ones_like(action)

    def continue_probability(self, latent: Tensor) -> Tensor:
        return 1 - latent[..., LAST:] if self.terminates else super().continue_probability(latent)

    def learn(self, segments: TensorDictBase, weight: Tensor) -> UnrolledLoss:
        return UnrolledLoss(0 * self.unused, {}, segments["state"], segments["state"][:, 1:])


def make(model: Any, *, terminates: bool, value_weight: float = 1.0, **settings: Any) -> LatentPlanner:
    """A learner whose prior always goes one cell, so that values are those of the corridor."""
    learner = {"width": 32, "critics": 2, "dropout": 0.0, "learning_rate": 3e-3, "target_rate": 0.1}
    policy = LatentPlanner(
        ONE_HOT, ACTION, world_model=model, behaviour=partial(PriorAndCritics, **{**learner, **settings}),
        planner=MPPI(horizon=HORIZON, candidates=8, elites=2, iterations=1), gamma=GAMMA, terminates=terminates,
        proposals=0, value_weight=value_weight,
    )  # fmt: skip
    sample = policy.behaviour.sample

    def one_cell(latent: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = sample(latent)
        return 0 * action + STEP, 0 * log_prob

    policy.behaviour.sample = one_cell  # type: ignore[method-assign]
    return policy


def one_hot(segments: TensorDict) -> TensorDict:
    segments["state"] = F.one_hot(segments["state"].squeeze(-1).round().long(), CELLS).float()
    return segments


def test_every_step_up_to_the_end_has_every_place_of_a_segment() -> None:
    torch.manual_seed(0)
    segments = walked(1).sequences(600, 4, before=1, past_end=True)  # of 5 records, in cells 0 to 4
    state, after = segments["state"].squeeze(-1)[:, 1:], segments["next"][:, 1:]
    assert torch.equal(state, (state[:, :1] + torch.arange(4)).clamp(max=LAST)), "copies of the final row follow it"
    assert torch.equal(after["terminated"].squeeze(-1), state >= LAST - 1)
    begins = state[:, 0].long().bincount(minlength=CELLS) / len(state)
    torch.testing.assert_close(begins, torch.tensor([3 / 6, 1 / 6, 1 / 6, 1 / 6, 0]), rtol=0, atol=0.06)
    cut = walked(1, terminates=False, length=3).sequences(50, 3, past_end=True)
    assert set(cut["state"][:, 0].flatten().tolist()) == {0, 1}, "none goes beyond a time limit"


def test_rows_after_the_end_weigh_nothing() -> None:
    policy = make(partial(TDMPC2Dynamics, pixels=False, **SIZES), terminates=True)
    ended = torch.tensor([[False, True, True, True], [False, False, False, True]])[..., None]
    rows = TensorDict(next=TensorDict(terminated=ended, batch_size=[2, 4]), batch_size=[2, 4])
    assert policy._weight(rows).tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0.25, 0.125]]


def test_an_update_does_not_depend_on_what_follows_the_end() -> None:
    segments, trained = one_hot(walked(20).sequences(32, 4, past_end=True)), []
    ended = segments["next", "terminated"][:, :-1].cumsum(1) > 0  # the rows from 1 on that follow an end
    assert ended.any() and not ended.all()
    for noise in (0.0, 1.0):
        torch.manual_seed(0)
        policy, batch = make(partial(TDMPC2Dynamics, pixels=False, **SIZES), terminates=True), segments.clone()
        batch["action"][:, 1:] += noise * ended
        batch["next", "reward"][:, 1:] += noise * ended
        batch["state"][:, 2:] += noise * ended[:, :-1]  # the final observation itself is learned from
        for _ in range(3):  # last layers are zero at first, and pass nothing on
            policy.update(batch.clone())
        trained.append(policy.state_dict())
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())


def test_the_loss_of_the_continue_head() -> None:
    """Logits are 1 for states 1 to 3 of both segments, of which the first ends at step 2."""
    model = TDMPC2Dynamics(ONE_HOT, ACTION, pixels=False, terminates=True, **SIZES)
    assert isinstance(model.continue_head, nn.Sequential)
    nn.init.zeros_(model.continue_head[-1].weight)
    nn.init.ones_(model.continue_head[-1].bias)
    ended = torch.tensor([[False, True, True, True], [False, False, False, False]])[..., None]
    after = TensorDict(reward=torch.zeros(2, 4, 1), terminated=ended, batch_size=[2, 4])
    segments = TensorDict(state=torch.rand(2, 4, CELLS), action=torch.zeros(2, 4, 1), next=after, batch_size=[2, 4])
    learned = model.learn(segments, torch.tensor([[1, 0.5, 0], [1, 0.5, 0.25]]))
    on, off = math.log1p(math.exp(-1)), math.log1p(math.exp(1))  # binary cross-entropy to 1 and to 0
    assert float(learned.metrics["continue_loss"]) == pytest.approx((on + 0.5 * off + 1.75 * on) / 6)
    parts = {"consistency_loss": 20.0, "reward_loss": 0.1, "continue_loss": 1.0}
    total = sum(weight * float(learned.metrics[name]) for name, weight in parts.items())
    assert float(learned.loss.detach()) == pytest.approx(total)


def test_a_plan_earns_its_rewards_and_its_value_as_far_as_the_episode_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = make(ExactCorridor, terminates=True).actor
    monkeypatch.setattr(actor.behaviour, "value", lambda latent: 100 * torch.ones_like(latent[..., :1]))
    plans = STEP * torch.tensor([[1.0, 1, 1], [1, 1, 0], [2, 0, 0], [0, 0, 0]])[None, ..., None]
    scores = actor.score(F.one_hot(torch.tensor([LAST - 2]), CELLS).float(), plans)  # two cells from the end
    never = 1 + 0.9 + 0.81 + 0.729 * 100
    torch.testing.assert_close(scores, torch.tensor([[1.9, 1.9, 1.0, never]]))
    monkeypatch.setattr(actor.world_model, "continue_probability", lambda latent: torch.full_like(latent[..., :1], 0.5))
    torch.testing.assert_close(actor.score(torch.eye(CELLS)[:1], plans)[0, 3], torch.tensor(1 + 0.45 + 0.2025 + 9.1125))


def test_values_are_those_of_an_episode_with_its_end() -> None:
    torch.manual_seed(0)
    policy, replay = make(ExactCorridor, terminates=True, target_rate=0.3, learning_rate=1e-2), walked(40)
    for critics in (policy.behaviour.critics, policy.behaviour.target_critics):
        nn.init.normal_(critics.weights[0], generator=torch.Generator().manual_seed(0))  # cells differ from the start
    for _ in range(175):
        policy.update(one_hot(replay.sequences(32, HORIZON + 1, past_end=True)))
    start = torch.eye(CELLS)[:1]
    assert float(policy.behaviour.value(start).detach()) == pytest.approx(TRUTH, rel=0.15)
    plan = torch.full((1, 1, HORIZON, 1), STEP)
    assert float(policy.actor.score(start, plan).detach()) == pytest.approx(TRUTH, rel=0.05)


def test_the_agent_has_a_continue_head_where_the_environment_terminates() -> None:
    for override, expected in (("env.terminates=true", True), ("env.terminates=false", False)):
        policy = built("agent=tdmpc2", override).policy
        assert (policy.world_model.continue_head is not None) is expected
