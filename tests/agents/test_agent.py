"""The schedule of an agent, counted; and the share of reality in what the policy learns from."""

import pytest
import torch

from mbrl.agents.agent import KEPT_APART, Agent, MetricMeans
from mbrl.agents.imagination import Imagination
from mbrl.agents.schedule import Schedule
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from tests.agents.test_imagination import ACTION
from tests.agents.test_planning import ToyWorldModel, planning
from tests.fakes import SIZE, BrightnessPolicy, CountingWorldModel, episode


def make(real_ratio: float = 0.5, learns_from: str = "transitions", **rates) -> tuple[Agent, Replay]:
    replay = Replay(200, frame_stack=3)
    for number in range(4):
        replay.online.extend(episode(number)[None])
    policy, model = BrightnessPolicy(), CountingWorldModel()
    policy.learns_from = learns_from
    imagination = Imagination(
        model, policy, replay, action_spec=ACTION, resolution=SIZE, rollouts=4, horizon=5, retain=2
    )
    settings = {"batch_size": 8, "updates_per_step": 0.5, "learning_starts": 100, **rates}
    return Agent(policy, model, imagination, schedule=Schedule(real_ratio=real_ratio, **settings)), replay


def test_schedule_is_counted_per_agent_step():
    agent, replay = make(model_updates_first=3, model_updates_per_step=0.2, imagine_every=10)
    assert agent.update(replay, 90, 180) == {}, "nothing learns while actions are random"
    seen = []
    for agent_steps in (100, 110, 115, 120):
        agent.update(replay, agent_steps, 2 * agent_steps)
        seen.append(tuple(agent.counts[name] for name in ("policy", "world_model", "imagination")))
    assert seen == [(0, 3, 1), (5, 5, 2), (7, 6, 2), (10, 7, 3)]
    assert agent.gradient_steps == 10


def test_rewards_learn_alone_before_each_call_of_imagination(monkeypatch):
    with pytest.raises(UserError, match=r"agent\.reward_updates is 3, .* set agent\.reward_updates=0"):
        make(reward_updates=3)
    monkeypatch.setattr(CountingWorldModel, "learns_rewards", True)
    agent, replay = make(reward_updates=3, imagine_every=10)
    agent.update(replay, 110, 220)
    assert (agent.counts["imagination"], agent.counts["world_model"]) == (2, 0)
    batches = agent.world_model.reward_batches
    assert [batch.batch_size for batch in batches] == [(128, agent.world_model.context_length + 1)] * 6
    shares = [(batch["pixels"][:, 0, 0, 0, 0] >= 30).float().mean().item() for batch in batches]
    assert min(shares) > 0.5 and max(shares) < 0.85, "half of the newest of four episodes, and an eighth by chance"


def test_rewards_of_a_planner_learn_alone_in_each_round(monkeypatch):
    monkeypatch.setattr(CountingWorldModel, "learns_rewards", True)
    model, (_, replay) = ToyWorldModel(), make()
    schedule = Schedule(8, updates_per_step=0, learning_starts=100, reward_updates=3)
    agent = Agent(BrightnessPolicy(), model, planner=planning(model), schedule=schedule)
    for agent_steps in (90, 100, 125):
        agent.update(replay, agent_steps, 2 * agent_steps)
    assert [batch.batch_size for batch in model.reward_batches] == [(128, model.context_length + 1)] * 6


@pytest.mark.parametrize(("real_ratio", "real"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_share_of_reality(real_ratio, real):
    agent, replay = make(real_ratio, imagine_every=50)
    agent.update(replay, 110, 220)
    for batch in agent.policy.batches:
        assert int((batch["next", "reward"] > 1000).sum()) == real
        assert batch.batch_size == (8,)


def test_real_ratio_one_draws_and_trains_nothing_else():
    agent, replay = make(1.0, model_updates_first=3)
    control, _ = make(1.0)
    control.world_model = control.imagination = None
    torch.manual_seed(0)
    agent.update(replay, 120, 240)
    torch.manual_seed(0)
    control.update(replay, 120, 240)
    assert agent.world_model.batches == [] and agent.counts["imagination"] == 0
    for ours, theirs in zip(agent.policy.batches, control.policy.batches, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize("real_ratio", [0.99, 0.01])
def test_ratio_that_leaves_a_part_empty(real_ratio):
    with pytest.raises(ValueError, match="real_ratio"):
        make(real_ratio)


def test_imagination_is_needed_below_one():
    with pytest.raises(ValueError, match="needs a world model"):
        Agent(BrightnessPolicy(), schedule=Schedule(8, updates_per_step=1, learning_starts=0, real_ratio=0.5))


def test_counters_go_on():
    agent, replay = make(imagine_every=10, model_updates_first=1)
    agent.update(replay, 110, 220)
    again, _ = make(imagine_every=10, model_updates_first=1)
    again.load_state_dict(agent.state_dict())
    again.imagination.buffer.load_state_dict(agent.imagination.buffer.state_dict())
    assert again.counts == agent.counts
    assert again.update(replay, 110, 220) == {}, "what was done is not done twice"
    torch.manual_seed(3)
    ours = agent.imagination.transitions(8)
    torch.manual_seed(3)
    assert (again.imagination.transitions(8) == ours).all()


@pytest.mark.parametrize("real_ratio", [0.5, 1.0])
def test_a_policy_that_learns_from_rollouts_learns_from_nothing_real(real_ratio):
    policy = BrightnessPolicy()
    policy.learns_from = "rollouts"
    with pytest.raises(ValueError, match="learns from imagined rollouts alone"):
        Agent(policy, schedule=Schedule(8, updates_per_step=1, learning_starts=0, real_ratio=real_ratio))


def test_whole_rollouts_reach_the_policy_that_wants_them():
    agent, replay = make(0.0, learns_from="rollouts", imagine_every=10)
    agent.update(replay, 104, 208)
    assert [batch.batch_size for batch in agent.policy.batches] == [(4, 6), (4, 6)], "all four: there are no eight"


@pytest.mark.parametrize("count", [1, KEPT_APART, 5 * KEPT_APART + 3])
def test_metrics_are_means_and_few_of_them_are_kept(count: int) -> None:
    means, values = MetricMeans(), torch.arange(float(count))
    for value in values:
        means.add("policy", {"loss": value.clone(), "rows": torch.tensor(3)})
        assert all(len(kept) <= KEPT_APART for kept in means._values.values())
    found = means.values()
    assert found.keys() == {"policy/loss", "policy/rows"} and found["policy/rows"].dtype == torch.float32
    torch.testing.assert_close(found["policy/loss"], values.mean())
    torch.testing.assert_close(found["policy/rows"], torch.tensor(3.0))


def test_a_model_is_not_asked_for_the_future_before_it_has_learned_of_it() -> None:
    policy, model = BrightnessPolicy(), CountingWorldModel()
    model.first_updates = 5
    settings = {"batch_size": 8, "updates_per_step": 1.0, "learning_starts": 0, "real_ratio": 0.5}
    agent, replay = make()
    imagination = agent.imagination
    with pytest.raises(UserError, match=r"agent\.model_updates_first is 5, and the first 5 updates of this"):
        Agent(policy, model, imagination, schedule=Schedule(**settings, model_updates_first=5))
    Agent(policy, model, imagination, schedule=Schedule(**settings, model_updates_first=6)).update(replay, 0, 0)
