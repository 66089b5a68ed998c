"""TD-MPC2 as an agent: what its planner is asked and remembers, what an update reaches, and a run that goes on."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.agents.agent import Agent
from mbrl.agents.tdmpc2 import LatentPlanner
from mbrl.build import build_agent, build_policy, build_replay
from mbrl.compose import composed
from mbrl.errors import UserError
from mbrl.training import run
from policies.base import Plan, Planner
from policies.latent_base import PriorLoss
from tests.demonstrations import write_toy
from tests.run_folders import rows, weights
from worldmodel.latent_base import UnrolledLoss

HORIZON, STEPS = 3, 20
SMOKE = ["agent=tdmpc2", "experiment=smoke", "env=toy", f"env.episode_length={STEPS}", "video=false", "device=cpu"]


class Specs:
    """What building the agent needs of the toy environment."""

    observation_spec = Composite(state=Unbounded((4,)), frames=Bounded(0, 255, (9, 17, 17), dtype=torch.uint8))
    action_spec = Bounded(-1, 1, (2,))


class Remembering(Planner):
    """Returns a fixed plan, and keeps what it was asked."""

    horizon, candidates, std = HORIZON, 16, 1.0

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, imagine: Any, previous: Tensor, proposals: Tensor | None = None) -> Plan:
        self.asked.append((imagine, previous.clone(), proposals))
        plan = torch.tensor([0.1, 0.2, 0.3])[:, None].expand(len(previous), HORIZON, 2)
        return Plan(plan, torch.full_like(plan, 0.05), plan[:, 0])


def make(*settings: str) -> LatentPlanner:
    policy = build_policy(composed([*SMOKE, *settings]), Specs())
    assert isinstance(policy, LatentPlanner)
    return policy


def batch(size: int = 4) -> TensorDict:
    shape = (size, HORIZON + 1)
    flags = torch.zeros(*shape, 1, dtype=torch.bool)
    after = TensorDict(reward=torch.rand(*shape, 1), terminated=flags, batch_size=shape)
    return TensorDict(state=torch.rand(*shape, 4), action=torch.rand(*shape, 2), next=after, batch_size=shape)


def first_step(policy: LatentPlanner, size: int = 2) -> TensorDict:
    memory = {key: spec.zero()[None].expand(size, *spec.shape) for key, spec in policy.actor.memory.items()}
    return TensorDict({"state": torch.rand(size, 4), **memory}, batch_size=[size])


def test_a_search_starts_from_the_rest_of_the_last_plan_and_from_zeros_in_a_new_episode() -> None:
    policy, planner = make(), Remembering()
    policy.actor.planner = planner
    step = first_step(policy)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        acted = policy.actor(step)
        assert torch.equal(acted["action"], torch.full((2, 2), 0.1)), "the mean, without noise"
        policy.actor(acted["next"].set("state", step["state"]))
    (_, cold, _), (_, warm, proposals) = planner.asked
    assert not cold.any() and warm[0, :, 0].tolist() == pytest.approx([0.2, 0.3, 0.0])
    assert proposals.shape == (2, 4, HORIZON, 2)
    with set_exploration_type(ExplorationType.RANDOM):
        drawn = policy.actor(first_step(policy, 500))["action"]
    assert float(drawn.mean()) == pytest.approx(0.1, abs=0.01) and float(drawn.std()) == pytest.approx(0.05, rel=0.1)


def test_a_plan_scores_its_rewards_and_the_value_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward is the latent state's number plus the action; each step adds the action to the state."""
    policy = make("agent.gamma=0.5")
    actor = policy.actor
    monkeypatch.setattr(actor.world_model, "reward", lambda latent, action: latent + action)
    monkeypatch.setattr(actor.world_model, "advance", lambda latent, action: latent + action)
    monkeypatch.setattr(actor.behaviour, "value", lambda latent: 100 * latent)
    plans = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]).view(1, 2, 3, 1)
    scores = actor.score(torch.tensor([[1.0]]), plans)
    # states 1, 2, 4, 8 and rewards 2, 4, 8; without actions state and rewards stay 1
    assert scores.tolist() == [[2 + 0.5 * 4 + 0.25 * 8 + 0.125 * 800, 1 + 0.5 + 0.25 + 12.5]]


def test_proposals_are_the_prior_along_predicted_states(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make()
    actor = policy.actor
    monkeypatch.setattr(actor.behaviour, "sample", lambda latent: (latent[..., :2] / 2, latent[..., :1]))
    monkeypatch.setattr(actor.world_model, "advance", lambda latent, action: latent + 1)
    latent = torch.zeros(1, 16)
    assert actor.propose(latent)[0, :, :, 0].tolist() == [[0.0, 0.5, 1.0]] * 4


def test_an_update_trains_every_part_and_moves_the_target_critics() -> None:
    torch.manual_seed(0)
    policy = make()
    before = {name: value.clone() for name, value in policy.named_parameters()}
    steps = batch()
    steps["next", "reward"] += 5
    metrics = [policy.update(steps.clone()) for _ in range(3)]  # last layers are zero at first, and pass nothing on
    unchanged = [name for name, value in policy.named_parameters() if torch.equal(value, before[name])]
    assert not unchanged
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics[-1].values())
    assert metrics[-1]["reward_loss"] < metrics[0]["reward_loss"]


def test_an_update_steps_model_and_critics_on_one_loss_and_the_prior_on_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Targets are of the encoded states, values and prior of the predicted ones."""
    policy, steps = make(), batch()
    policy.value_weight, behaviour = 0.25, policy.behaviour
    latent, observed = torch.rand(4, HORIZON + 1, 16, requires_grad=True), torch.rand(4, HORIZON, 16)
    unrolled, target = UnrolledLoss(torch.tensor(5.0), {}, latent, observed), torch.rand(4, HORIZON, 1)
    monkeypatch.setattr(policy.world_model, "learn", Mock(return_value=unrolled))
    monkeypatch.setattr(behaviour, "target", Mock(return_value=target))
    monkeypatch.setattr(behaviour, "value_loss", Mock(return_value=torch.tensor(8.0)))
    monkeypatch.setattr(behaviour, "prior_loss", Mock(return_value=PriorLoss(torch.tensor(2.0), {})))
    monkeypatch.setattr("mbrl.agents.tdmpc2.gradient_step", step := Mock())
    policy.update(steps.clone())
    optimizers = policy.optimizers
    assert [(float(loss), parts) for (loss, parts, _), _ in step.call_args_list] == [
        (5 + 0.25 * 8, [optimizers["world_model"], optimizers["critic"]]),
        (2, [optimizers["prior"]]),
    ]
    after, weight = steps["next"][:, :-1], torch.tensor([1, 0.5, 0.25, 0.125]).expand(4, -1)
    expected = {
        "target": (observed, after["reward"], after["terminated"]),
        "value_loss": (latent[:, :-1], steps["action"][:, :-1], target, weight[:, :-1]),
        "prior_loss": (latent, weight),
    }
    for name, arguments in expected.items():
        assert all(map(torch.equal, getattr(behaviour, name).call_args.args, arguments)), name
    assert not behaviour.prior_loss.call_args.args[0].requires_grad


def test_frames_are_stacked_from_the_rows_before_a_segment() -> None:
    policy = make("agent.pixels=true")
    assert policy.segment_history == 2
    numbers = torch.arange(6, dtype=torch.uint8).view(1, 6, 1, 1, 1).expand(1, 6, 3, 17, 17)
    stacked = policy._stacked(TensorDict(pixels=numbers, batch_size=[1, 6]))["frames"]
    assert stacked.shape == (1, 4, 9, 17, 17)
    assert stacked[0, :, ::3, 0, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["agent.segment_length=3"], r"segment_length \(3\) is too short for plans of 3 steps.*segment_length=4"),
        (["agent.policy.planner.horizon=5"], "too short for plans of 5 steps"),
        (["agent.segment_length=22"], r"segment_length \(22\) is longer than the 21 frames of an episode"),
        (["agent.policy.planner.elites=17"], r"elites \(17\) must be 1 to candidates \(16\)"),
        (["agent.policy.proposals=17"], r"proposals \(17\) must be 0 to planner.candidates \(16\)"),
        (["agent.policy.replan_every=4"], r"replan_every \(4\) must be 1 to planner.horizon \(3\)"),
        (["agent.size=2M"], "agent.size='2M' is not allowed: it must be 1M or 5M"),
        (["agent.policy.world_model.latent_size=20"], r"latent_size \(20\) must be a multiple of 8"),
        (["agent.pixels=true", "env.resolution=14"], "at least 15 pixels, not .9, 14, 14.: set env.resolution"),
        (["agent.pixels=true", "env.pixels=false"], "tdmpc2 learns from frames, which the environment does not give"),
        (["agent.real_ratio=1"], r"agent.real_ratio is 1(\.0)?, but this policy learns in latent states"),
        (["agent.policy.decay=1.5"], r"decay=1.5 is not allowed: it must be a number in \(0, 1\]"),
        (["agent.policy.world_model._target_=policies.tdmpc2.PriorAndCritics"], "makes no LatentDynamics"),
        (["agent.cloning={updates: 5, weight: 0}", "replay.demos=FOLDER"], "LatentPlanner imitates no demonstrations"),
        (["agent.policy.planner.candidates=1e6", "agent.policy.planner.horizon=10000"], "needs .* GiB of memory"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_clear_line(
    settings: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**30)
    folder = write_toy(tmp_path / "demos", 1, episode_length=STEPS, resolution=17)
    lines = [line.replace("FOLDER", str(folder)) for line in settings]
    with pytest.raises(UserError, match=message) as error:
        run(composed([*SMOKE, *lines, f"run_dir={tmp_path / 'run'}"]))
    assert "\n" not in str(error.value)


def test_demonstrations_are_part_of_the_segments(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "demos", 2, episode_length=STEPS, resolution=17)
    settings = composed([*SMOKE, f"replay.demos={folder}", "replay.demo_share=1.0"])
    policy = build_policy(settings, Specs())
    replay = build_replay(settings, None, Specs(), policy)
    agent = build_agent(settings, Specs(), policy, replay)
    assert agent.learner.update(replay, 0.0)["reward_loss"] > 0


@pytest.mark.slow  # 4 s
def test_a_run_that_was_cut_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*SMOKE, "agent.pixels=true", "env.resolution=17", "total_env_steps=60", "checkpoint_every=20"]
    settings += ["agent.updates_per_step=0.3", "eval.every=60"]
    whole = run(composed([*settings, f"run_dir={tmp_path / 'whole'}"]))
    update, cut_run = Agent.update, composed([*settings, f"run_dir={tmp_path / 'cut'}"])

    def cut(self: Agent, replay: Any, agent_steps: int, *rest: Any) -> Any:
        if agent_steps == 50:  # the last checkpoint is at 40
            raise KeyboardInterrupt
        return update(self, replay, agent_steps, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Agent, "update", cut)
        run(cut_run)
    run(cut_run)
    assert any("policy/value_loss" in row for row in rows(whole))
    assert rows(tmp_path / "cut") == rows(whole)
    ours, theirs = weights(tmp_path / "cut"), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)
