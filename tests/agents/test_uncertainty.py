"""Rollouts that are cut or drawn less often where the world model is unsure; without either, nothing changes."""

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from mbrl.agents.agent import Agent
from mbrl.agents.imagination import Imagination
from mbrl.agents.schedule import Schedule
from mbrl.agents.uncertainty import UncertaintyRules
from mbrl.replay.replay import Replay
from tests.fakes import SIZE, BrightnessPolicy, CountingWorldModel, episode

HORIZON = 5
MEASURED = torch.tensor([[0.1, 0.2, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1, 0.1]])


class UnsureWorldModel(CountingWorldModel):
    """Says MEASURED of its steps, where it is asked to."""

    def enable_all_uncertainties(self) -> None:
        self.uncertainty_keys = ("doubt",)

    def start(self, context: TensorDict) -> Tensor:
        self.taken = 0
        return super().start(context)

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        state, prediction = super().step(state, action)
        if self.uncertainty_keys:
            prediction["doubt"] = MEASURED[:, self.taken, None]
        self.taken += 1
        return state, prediction


def imagination(**options: Any) -> Imagination:
    replay = Replay(200, frame_stack=3, n_step=3, gamma=0.9)
    replay.online.extend(episode(0)[None])
    sizes = {"rollouts": 3, "horizon": HORIZON, "retain": 2, "resolution": SIZE, "action_spec": Bounded(-1, 1, (2,))}
    return Imagination(UnsureWorldModel(), BrightnessPolicy(), replay, **{**sizes, **options})


def test_by_hand() -> None:
    rules = UncertaintyRules.of({"doubt": 0.5, "entropy": None}, {"doubt": 2.0})
    assert rules.steps({"doubt": MEASURED}).tolist() == [2, 5, 0]
    uncut = UncertaintyRules.of(None, {"doubt": 2.0})
    torch.testing.assert_close(uncut.weights({"doubt": MEASURED})[0, :3], torch.tensor([-0.05, -0.15, -0.6]).exp())
    weights = uncut.weights({"doubt": MEASURED}, n_step=3)
    torch.testing.assert_close(weights[0], torch.tensor([-0.6, -0.65, -0.7, -0.7, -0.7]).exp())
    weights = rules.weights({"doubt": MEASURED}, n_step=3, steps=rules.steps({"doubt": MEASURED}))
    # the first rollout is cut after two steps: the doubt of later ones is not its transitions'
    torch.testing.assert_close(weights[0, :2], torch.tensor([-0.15, -0.15]).exp())


def test_estimates_are_computed_where_one_is_used() -> None:
    assert imagination().env.world_model.uncertainty_keys == ()
    assert imagination(optimism={"doubt": None}).env.world_model.uncertainty_keys == ()
    assert imagination(optimism={"doubt": 1.0}).env.world_model.uncertainty_keys == ("doubt",)


def test_cut_rollouts_end_before_the_step_above_the_threshold() -> None:
    made = imagination(cut_above={"doubt": 0.5})
    metrics = made.run()
    assert len(made) == 2 + 5 + 0
    assert float(metrics["kept"]) == pytest.approx(7 / 15)
    assert float(metrics["doubt"]) == pytest.approx(float(MEASURED.mean()))
    batch = made.transitions(300)
    newest = batch["frames"][:, -1, 0, 0].int()
    grown = batch["next", "frames"][:, -1, 0, 0].int() - newest
    assert set(grown.tolist()) == {1, 2, 3}
    torch.testing.assert_close(0.9 ** grown.float(), batch["gamma"].flatten())  # no sum reaches beyond a cut


def test_transitions_are_drawn_by_their_weight() -> None:
    torch.manual_seed(0)
    made = imagination(weigh_by={"doubt": 0.5})
    made.run()
    assert len(made) == 15
    episodes, offsets = made.buffer._table.draw_transitions(30_000, partial(made.buffer._of_rows, "weight"))
    drawn = torch.zeros(3, HORIZON).index_put_((episodes, offsets - 2), torch.tensor(1.0), accumulate=True) / 30_000
    expected = (-MEASURED.cumsum(1)[:, [2, 3, 4, 4, 4]] / 0.5).exp()  # a transition rests on three steps
    torch.testing.assert_close(drawn, expected / expected.sum(), atol=0.006, rtol=0.0)


def test_steps_after_the_predicted_end_do_not_count_in_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rollout ends with its second step: the third, with an estimate of 0.9, is no part of a transition."""
    made = imagination(weigh_by={"doubt": 0.5})
    monkeypatch.setattr(UnsureWorldModel, "predicts_termination", True)
    ends = torch.tensor([2, HORIZON + 1, HORIZON + 1])
    step = UnsureWorldModel.step

    def ending(self: UnsureWorldModel, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        state, prediction = step(self, state, action)
        prediction["terminated"] = (self.taken == ends)[:, None]
        return state, prediction

    monkeypatch.setattr(UnsureWorldModel, "step", ending)
    made.run()
    weights = made.buffer.records["weight"].reshape(-1, made.env.history + HORIZON)[0, made.env.history - 1 :]
    torch.testing.assert_close(weights[:2], torch.full((2,), -0.3 / 0.5).exp())


def test_what_is_unknown_is_rewarded_in_imagination() -> None:
    rewards, reported = [], []
    for options in ({}, {"optimism": {"doubt": 2.0, "entropy": None}}):
        torch.manual_seed(3)
        made = imagination(**options)
        reported.append(float(made.run()["imagined_reward"]))
        rows = made.env.history - 1 + torch.arange(HORIZON)
        rewards.append(made.buffer.records["reward"].reshape(-1, made.env.history + HORIZON)[:3, rows])
    torch.testing.assert_close(rewards[1] - rewards[0], 2.0 * MEASURED)
    assert reported[0] == reported[1], "the metric is the model's reward alone"


def test_off_is_as_before_to_the_bit() -> None:
    batches = []
    for options in ({}, {"cut_above": {"doubt": 10.0}}):
        torch.manual_seed(3)
        made = imagination(**options)
        made.run()
        batches.append(made.transitions(50))
    assert (batches[0] == batches[1]).all()


def test_where_every_step_is_cut_batches_are_real() -> None:
    made = imagination(cut_above={"doubt": -1.0})
    made.run()
    settings = {"batch_size": 8, "updates_per_step": 1.0, "learning_starts": 0, "real_ratio": 0.5}
    agent = Agent(BrightnessPolicy(), made.env.world_model, made, schedule=Schedule(**settings))
    replay = Replay(200, frame_stack=3, n_step=3, gamma=0.9)
    replay.online.extend(episode(0)[None])
    agent.learner.update(replay, 0.0)
    assert [len(batch) for batch in agent.policy.batches] == [8]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="'reward_std', but this world model has doubt"):
        imagination(cut_above={"reward_std": 1.0})
    with pytest.raises(ValueError, match="must be above 0, not 0"):
        imagination(weigh_by={"doubt": 0.0})
    with pytest.raises(ValueError, match=r"none: set agent\.imagination\.cut_above\.doubt=null"):
        UncertaintyRules.of({"doubt": 1.0}, None).require(CountingWorldModel())
