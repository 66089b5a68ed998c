"""A policy that plans: in a model that knows the toy it arrives, and its memory is the environment's, not its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded

from mbrl.agents.planning import PlanningPolicy
from mbrl.collecting.collector import make_collector
from mbrl.collecting.evaluation import Evaluator
from mbrl.data.episodes import to_records, write_episode
from mbrl.envs.toy import REWARD_SCALE, STRIDE, make_env
from policies.base import Policy
from policies.planner import CEM
from policies.random import RandomPolicy
from tests.fakes import BrightnessPolicy, CountingWorldModel
from tests.worldmodel.ivideogpt.test_model import make as make_ivideogpt

SIDE, STEPS, SQUARE = 16, 20, 2
ACTION = Bounded(-1, 1, (2,))
TOY = {"resolution": SIDE, "episode_length": STEPS}
NUMBERS = {"horizon": 3, "candidates": 64, "elites": 6, "iterations": 4, "std": 1.0}


class ToyWorldModel(CountingWorldModel):
    """Knows the toy: reads both squares off the newest frame, moves the white one, and paints them. Counts its starts
    and keeps their contexts and the forks."""

    max_horizon, resolution, action_dim = 6, SIDE, 2

    def __init__(self) -> None:
        super().__init__()
        self.contexts: list[TensorDictBase] = []
        self.forks: list[int] = []

    def start(self, context: TensorDictBase) -> Tensor:
        assert context.batch_size[1] == self.context_length
        self.contexts.append(context.clone())
        newest = context["pixels"][:, -1].int()
        agent, goal = newest.amin(1) == 255, (newest[:, 1] - newest[:, 0]) > 100
        seen = torch.where(goal.any(2).any(1)[:, None, None], goal, agent)  # the agent may hide the goal
        (at, _), (first, last) = _bounds(agent), _bounds(seen)
        covered = (last - first + 1 < SQUARE) & (at < first)  # by the agent, on the side that counts
        corners = torch.cat([at, torch.where(covered, last - SQUARE + 1, first)], 1)
        return corners / (SIDE - SQUARE)  # [B, 4], as the toy's `state`

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, TensorDict]:
        agent, goal = state[:, :2], state[:, 2:]
        moved = (agent + STRIDE * action).clamp(0, 1)
        gained = (goal - agent).norm(dim=1, keepdim=True) - (goal - moved).norm(dim=1, keepdim=True)
        prediction = TensorDict(reward=REWARD_SCALE * gained, batch_size=[len(state)])
        pixels = torch.zeros(len(state), 3, SIDE, SIDE, dtype=torch.uint8)
        for row, place in enumerate((moved * (SIDE - SQUARE)).round().long().tolist()):
            pixels[row, :, place[1] : place[1] + SQUARE, place[0] : place[0] + SQUARE] = 255
        return torch.cat([moved, goal], 1), prediction.set("pixels", pixels)

    def fork(self, state: Tensor, n: int) -> Tensor:
        self.forks.append(n)
        return super().fork(state, n)


def _bounds(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks [B, R, R] the first column and row, and the last ones, each [B, 2]."""
    lines = torch.stack([mask.any(1), mask.any(2)], 1).int()  # [B, 2, R]
    return lines.argmax(2), SIDE - 1 - lines.flip(2).argmax(2)


def planning(model: Any = None, prior: Policy | None = None, numbers: dict[str, Any] | None = None, **options: Any):
    env = make_env(**TOY)
    return PlanningPolicy(
        model or ToyWorldModel(),
        CEM(**{**NUMBERS, **(numbers or {})}),
        prior or RandomPolicy(env.observation_spec, ACTION),
        **{"observation_spec": env.observation_spec, "action_spec": ACTION, "gamma": 0.99, **options},
    )


def play(policy: Policy, episodes: int) -> list[TensorDictBase]:
    evaluator = Evaluator(lambda seed: make_env(seed=seed, **TOY), episodes=episodes, max_steps=STEPS, seed=4)
    return [evaluator.play(policy, index) for index in range(episodes)]


def gains(policy: Policy, episodes: int = 8) -> float:
    """Mean return: ten times the distance gained; about 2 where the agent always arrives."""
    return float(torch.stack([rollout["next", "reward"].sum() for rollout in play(policy, episodes)]).mean())


def solved(policy: Policy, episodes: int = 8) -> int:
    """Episodes that end on the goal."""
    return sum(bool(rollout["next", "success"][-1]) for rollout in play(policy, episodes))


@pytest.mark.learns
@pytest.mark.parametrize("replan_every", [pytest.param(1, marks=pytest.mark.slow), 3])  # 4 s
def test_arrives_where_the_model_knows_the_world(replan_every: int) -> None:
    policy = planning(replan_every=replan_every)
    assert solved(policy) >= 7 and gains(policy) > 1.4


@pytest.mark.slow  # 7 s
def test_wanders_where_nothing_is_known() -> None:
    """The bar above is far from chance, and from a world model that has learned nothing."""
    chance = RandomPolicy(make_env(**TOY).observation_spec, ACTION)
    assert solved(chance) <= 2 and gains(chance) < 0.0
    untrained = planning(make_ivideogpt(), replan_every=3)
    assert solved(untrained, 4) <= 1 and gains(untrained, 4) < 0.5


def test_goal_image(tmp_path: Path) -> None:
    """The picture alone says where to: no reward is looked at."""
    model = ToyWorldModel()
    model.predicts_reward = False
    env = make_env(seed=7, **TOY)
    arrived = play(planning(), 1)[0]
    write_episode(tmp_path / "goals" / "episode-00000.safetensors", to_records(arrived))
    policy = planning(model, goal=str(tmp_path / "goals"), numbers={"candidates": 64, "horizon": 6})
    score = policy.actor.imagination.scorer(torch.tensor([[0.5, 0.5, 0.0, 0.0]]), policy.actor.blank())
    place = arrived["next", "state"][-1, :2]
    there = ((place - 0.5) / STRIDE / 6).expand(1, 1, 6, 2)
    worth = score(torch.cat([there, -there], 1))
    assert worth[0, 0] > worth[0, 1], "plans that end where the picture was taken are worth more"
    env.close()


def test_context_is_encoded_once_a_decision_and_forked_each_iteration() -> None:
    model = ToyWorldModel()
    policy = planning(model, replan_every=2)
    model.contexts.clear()
    model.forks.clear()
    play(policy, 1)
    assert len(model.contexts) == STEPS / 2
    assert model.forks == [64] * 4 * 10


class Chance(ToyWorldModel):
    """Rewards with noise of standard deviation 1: more than actions make."""

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, TensorDict]:
        after, prediction = super().step(state, action)
        return after, prediction.set("reward", prediction["reward"] + torch.randn(len(state), 1))


def test_the_score_of_a_plan_is_the_mean_of_its_samples() -> None:
    torch.manual_seed(0)
    state, plans = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.1, 0.9, 0.9]]), torch.rand(2, 3, 4, 2) * 2 - 1

    def scores(policy: PlanningPolicy) -> Tensor:
        return policy.actor.imagination.scorer(state, policy.actor.blank())(plans)

    exact, once, often = scores(planning()), scores(planning(Chance())), scores(planning(Chance(), samples=200))
    assert often.shape == (2, 3)
    torch.testing.assert_close(often, exact, atol=0.5, rtol=0)  # the standard deviation is 2 / sqrt(200) = 0.14
    assert (once - exact).abs().max() > 1.0


def test_context_holds_the_last_frames_and_what_was_done_between() -> None:
    model = ToyWorldModel()
    policy = planning(model)
    model.contexts.clear()
    rollout = play(policy, 1)[0]
    for t, context in enumerate(model.contexts):
        before = max(t - 1, 0)  # an episode's first frame is its own predecessor
        assert torch.equal(context["pixels"][0], rollout["pixels"][[before, t]])
        assert torch.equal(context["action"][0, 0], rollout["action"][before] if t else torch.zeros(2))


def test_a_model_that_starts_from_the_initial_frame_is_given_that_of_each_episode() -> None:
    model = ToyWorldModel()
    model.context_keys = ("initial",)
    policy = planning(model)
    model.contexts.clear()
    rollouts = play(policy, 2)
    first = torch.cat([rollout["pixels"][:1] for rollout in rollouts])
    assert not torch.equal(*first) and len(model.contexts) == 2 * STEPS
    for number, context in enumerate(model.contexts):
        assert torch.equal(context["initial"][0, -1], first[number // STEPS])


def test_memory_is_in_the_environment() -> None:
    """Playing elsewhere in between changes nothing; the rest of a plan is what the next decision starts from."""
    policy = planning(replan_every=2)
    rollout = play(policy, 1)[0]
    assert rollout["plan_left"].flatten().tolist() == [0, 1] * (STEPS // 2)
    assert not rollout["plan_mean"][0].any(), "an episode begins without a plan"
    for t in range(STEPS - 1):
        following = rollout["next", "plan_mean"][t]
        assert torch.equal(following, rollout["plan_mean"][t + 1]) and not following[-1].any()
        if rollout["plan_left"][t] == 1:  # the rest of the plan is followed
            assert torch.equal(rollout["action"][t], rollout["plan_mean"][t, 0])
            assert torch.equal(following[:-1], rollout["plan_mean"][t][1:])
    play(policy, 2)
    torch.manual_seed(1)
    assert torch.equal(play(policy, 1)[0]["action"], rollout["action"]), "an evaluation has random numbers of its own"


def test_rows_that_follow_a_plan_are_not_planned_for() -> None:
    model = ToyWorldModel()
    policy = planning(model, replan_every=2)
    rows = torch.cat([policy.actor.blank()] * 3)
    rows["plan_left"] = torch.tensor([[1], [0], [1]])
    rows["plan_mean"] = torch.full_like(rows["plan_mean"], 0.3)
    model.contexts.clear()
    policy.eval()
    with torch.no_grad():
        out = policy.actor(rows)
    assert model.contexts[0].batch_size == (1, 2)
    noise = (out["action"] - 0.3).abs()
    assert (noise[[0, 2]] == 0).all(), "without a std there is nothing to explore"
    assert out["next", "plan_left"].flatten().tolist() == [0, 1, 0]


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_collectors_remember_for_it(workers: int, fork_server: None) -> None:
    policy = planning(numbers={"iterations": 1})
    options = {"seed": 0, "workers": workers, "frames_per_batch": 2 * STEPS, "random_steps": 0}
    collector = make_collector(_make_toy, policy, **options)
    try:
        batch = next(iter(collector))
    finally:
        collector.shutdown()
    batch = batch.reshape(-1)
    begins = torch.cat([torch.ones(1, dtype=torch.bool), batch["next", "done"][:-1, 0]])
    assert int(begins.sum()) == 2
    assert not batch["plan_mean"][begins].any() and batch["plan_mean"][~begins].any(2).any(1).all()
    off = batch["action"] - batch["next", "past_actions"][:, -1]
    assert not off.any()


def _make_toy(**options: Any):
    return make_env(**{**TOY, **options})


def test_exploration_is_the_plan_with_its_noise() -> None:
    policy = planning()
    rows = torch.cat([policy.actor.blank()] * 2)
    rows["plan_left"] += 1
    rows["plan_std"] = torch.full_like(rows["plan_std"], 0.5)
    with torch.no_grad():
        explored = policy.actor(torch.cat([rows] * 500))["action"]
    assert explored.std().item() == pytest.approx(0.45, abs=0.05)  # of N(0, 0.5) within -1..1
    assert explored.abs().max() <= 1


def test_the_prior_proposes_what_it_would_do_in_imagination() -> None:
    policy = planning(prior=BrightnessPolicy(), proposals=3)
    frames = torch.full((2, 9, SIDE, SIDE), 51, dtype=torch.uint8)
    observed = TensorDict(frames=frames, batch_size=[2])
    proposed = policy.actor.imagination.propose(torch.rand(2, 4), observed, 3, 4)
    assert proposed.shape == (2, 3, 4, 2)
    assert torch.allclose(proposed[:, :, 0], torch.tensor(51 / 255))  # of the real frame
    assert torch.allclose(proposed[:, :, 1:], torch.tensor(SQUARE**2 / SIDE**2))  # of imagined ones
    assert gains(policy) > 1.4


@pytest.mark.parametrize(
    ("options", "attributes", "message"),
    [
        ({"numbers": {"horizon": 7}}, {}, "planner.horizon 7: this world model can predict 1 to 6 steps"),
        ({}, {"action_dim": 0}, "does not read actions"),
        ({}, {"predicts_reward": False}, "predicts no rewards: set agent.planning.goal"),
        ({}, {"goal_conditioned": True}, "needs a goal frame: set agent.planning.goal"),
        ({}, {"observations": ("state",)}, "predicts pixels, and this one predicts state"),
        ({}, {"context_length": 4}, r"env.frame_stack is 3, but the world model needs 4 frames"),
        ({"replan_every": 4}, {}, r"replan_every \(4\) must be 1 to planner.horizon \(3\)"),
        ({"proposals": 65}, {}, r"proposals \(65\) must be 0 to planner.candidates \(64\)"),
        ({"proposals": 1}, {}, "need a prior that acts on frames alone"),
        ({"observation_spec": make_env(pixels=False).observation_spec}, {}, "set env.pixels=true"),
        ({"action_spec": Bounded(-2, 2, (2,))}, {}, r"needs continuous actions in \[-1, 1\]"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], attributes: dict[str, Any], message: str) -> None:
    model = ToyWorldModel()
    for name, value in attributes.items():
        setattr(model, name, value)
    with pytest.raises(ValueError, match=message):
        planning(model, **options)


def test_goals_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        planning(goal=str(tmp_path / "nowhere"))
    large = make_env(resolution=32, episode_length=2)
    write_episode(tmp_path / "large.safetensors", to_records(large.rollout(2)))
    with pytest.raises(ValueError, match="are 32 pixels wide, the world model's 16"):
        planning(goal=str(tmp_path / "large.safetensors"))
    write_episode(tmp_path / "state.safetensors", to_records(large.rollout(2)).exclude("pixels"))
    with pytest.raises(ValueError, match="has no pixels"):
        planning(goal=str(tmp_path / "state.safetensors"))
