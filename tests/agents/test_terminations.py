"""Terminations, on a toy with known values: a corridor of four steps that earn 1 each, and none after the last.

With γ = 0.9 the first cell is worth 1 + 0.9 + 0.81 + 0.729 = 3.439. Whoever ignores that the episode ends takes it for
1 / (1 - 0.9) = 10.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.agents.imagination import Imagination, ended_after
from mbrl.build import build_agent, build_policy, build_replay
from mbrl.envs.adapted import Adapted
from mbrl.envs.gym import wrap_gym
from mbrl.errors import UserError
from mbrl.replay.replay import Replay
from policies.base import Policy
from tests.fakes import SIZE, BrightnessPolicy, CountingWorldModel, episode
from tests.termination import LAST, Corridor
from tests.worldmodel.ivideogpt.test_model import ACTION as WIDTH
from tests.worldmodel.ivideogpt.test_model import CONTEXT, SEGMENT, make, sequences, tokenizer
from worldmodel.base import WorldModel
from worldmodel.ensemble.model import ProbabilisticEnsemble
from worldmodel.ivideogpt.rewards import RewardNetwork
from worldmodel.rssm.model import RSSM

GAMMA, TRUTH, IGNORED = 0.9, 3.439, 10.0
ACTION = Bounded(-1, 1, (1,))
STATE = Composite(state=Unbounded((1,)))


class OneCell(Policy):
    """Goes one cell in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = TensorDictModule(lambda state: torch.full_like(state, 0.5), ["state"], ["action"])

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return {}


def walked(episodes: int, *, terminates: bool = True, length: int = 40, n_step: int = 1) -> Replay:
    """A replay of the corridor; in half of the steps the hand goes one cell, otherwise anywhere."""
    replay = Replay(4000, frame_stack=1, n_step=n_step, gamma=GAMMA)
    env = wrap_gym(Adapted(Corridor(), "Corridor-v0", terminates, pixels=False, episode_length=length), frame_stack=1)

    def act(state: Tensor) -> Tensor:
        return torch.where(torch.rand(1) < 0.5, torch.full_like(state, 0.5), torch.rand(1) * 2 - 1)

    policy = TensorDictModule(act, ["state"], ["action"]) if episodes > 1 else OneCell().actor
    for number in range(episodes):
        rollout = env.rollout(100, policy)
        rollout["collector", "traj_ids"] = torch.full((len(rollout),), number)
        replay.extend(rollout)
    return replay


def value_of_start(batch: TensorDictBase, heeded: bool) -> float:
    """The value of cell 0 under the actions of a batch [B] of transitions, by repeated Bellman updates of a table."""
    ended = batch["next", "terminated"] if heeded else torch.zeros_like(batch["next", "terminated"])
    here, there = (part["state"].round().long().clamp(0, LAST).flatten() for part in (batch, batch["next"]))
    table = torch.zeros(LAST + 1)
    gamma = batch["gamma"] if "gamma" in batch.keys() else torch.full_like(batch["next", "reward"], GAMMA)
    for _ in range(200):
        target = (batch["next", "reward"] + gamma * ~ended * table[there][:, None]).flatten()
        counts = torch.bincount(here, minlength=LAST + 1)
        sums = torch.bincount(here, target, minlength=LAST + 1)
        table = torch.where(counts > 0, sums / counts.clamp(min=1), table)
        if not heeded:
            table[LAST] = table[LAST - 1]  # what a critic that never sees the terminal state says of it: as before it
    return float(table[0])


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_replay_bootstraps_through_the_time_limit_and_not_through_the_end(n_step: int) -> None:
    batch = walked(1, n_step=n_step).transitions(500)
    assert value_of_start(batch, heeded=True) == pytest.approx(TRUTH, abs=0.01)
    assert value_of_start(batch, heeded=False) == pytest.approx(IGNORED, abs=0.01), "the toy shows the error"
    cut = walked(1, terminates=False, length=3, n_step=n_step).transitions(200)
    assert not cut["next", "terminated"].any(), "three steps end by the time limit, in cell 3"
    assert cut["gamma"].min() > 0


@pytest.fixture(scope="module")
def imagination() -> Imagination:
    torch.manual_seed(0)
    replay = walked(150)
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    sizes: dict[str, Any] = {"members": 3, "elites": 2, "width": 32, "layers": 2, "batch_size": 128}
    model = ProbabilisticEnsemble(STATE, ACTION, optimizer=optimizer, terminates=True, **sizes)
    metrics = model.fit(replay.steps("state"), 400)
    assert metrics["holdout_ending_loss"] < 0.05
    options: dict[str, Any] = {"rollouts": 200, "horizon": 8, "retain": 1, "n_step": 1}
    return Imagination(model, OneCell(), replay, action_spec=ACTION, **options)


def test_the_ensemble_imagines_the_end_and_its_value(imagination: Imagination) -> None:
    metrics = imagination.run()
    batch = imagination.transitions(4000)
    assert metrics["terminated"] > 0.95, "within 8 steps everyone has arrived"
    assert (batch["state"].round() < LAST).all(), "no rollout goes on from the terminal cell"
    arrived = batch["next", "state"].round() == LAST
    assert (arrived == batch["next", "terminated"]).float().mean() > 0.98
    assert value_of_start(batch, heeded=True) == pytest.approx(TRUTH, rel=0.1)
    assert value_of_start(batch, heeded=False) > 2 * TRUTH


def test_a_plan_earns_nothing_after_the_end(imagination: Imagination) -> None:
    model = imagination.env.world_model
    context = TensorDict(state=torch.full((50, 1, 1), 2.0), action=torch.zeros(50, 1, 1), batch_size=[50, 1])
    with torch.no_grad():
        reward = model.outcome(model.start(context), torch.full((50, 6, 1), 0.5)).reward
    assert reward is not None
    assert reward[:, :2].mean() == pytest.approx(1.0, abs=0.05) and (reward[:, 3:] == 0).float().mean() > 0.9


class Ending(CountingWorldModel):
    """Frames count up as before; a rollout ends when its frame shows a multiple of 4."""

    predicts_termination = True

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        pixels, prediction = super().step(state, action)
        prediction["reward"] = torch.ones_like(prediction["reward"])
        prediction["terminated"] = pixels[:, 0, 0, :1] % 4 == 0
        return pixels, prediction


def of_frames(policy: Policy) -> Imagination:
    replay = Replay(200, frame_stack=3, n_step=3, gamma=GAMMA)
    for number in range(4):
        replay.online.extend(episode(number)[None])
    settings: dict[str, Any] = {"rollouts": 8, "horizon": 6, "retain": 1, "resolution": SIZE}
    return Imagination(Ending(), policy, replay, action_spec=Bounded(-1, 1, (2,)), **settings)


def test_an_imagined_rollout_ends_where_the_model_says() -> None:
    imagination = of_frames(BrightnessPolicy())
    rollout = imagination.env.rollout(6, break_when_any_done=False)
    shown, after = rollout["next", "pixels"][..., 0, 0, 0].int(), rollout["next"]
    ended = (shown % 4 == 0).cumsum(1) > 0
    assert torch.equal(after["terminated"].squeeze(-1), ended) and ended[:, -1].all()
    assert torch.equal(after["done"], after["terminated"] | after["truncated"])
    assert torch.equal(after["reward"].sum(1).flatten().long(), ended_after(ended)), "1 a step up to the end, then 0"
    imagination.run()
    batch = imagination.transitions(300)
    levels = batch["frames"][:, -3, 0, 0].int()
    reached = batch["next", "frames"][:, -3, 0, 0].int()
    assert torch.equal(batch["next", "terminated"].flatten(), reached % 4 == 0)
    assert (reached - levels).max() == 3, "n-step returns are cut at the end, and not before"


def test_a_learner_of_whole_rollouts_keeps_them_whole_and_reads_the_flag() -> None:
    policy = BrightnessPolicy()
    policy.learns_from = "rollouts"
    imagination = of_frames(policy)
    imagination.run()
    rollouts = imagination.rollouts(8)
    assert rollouts.shape == (8, 7)
    flags = rollouts["next", "terminated"].squeeze(-1)[:, :-1]
    assert flags.any(1).all() and (flags[:, 1:] | ~flags[:, :-1]).all(), "once ended, a rollout stays ended"


def test_ended_after() -> None:
    ended = torch.tensor([[False, False, False], [False, True, True], [True, True, True], [False, False, True]])
    assert ended_after(ended).tolist() == [3, 2, 1, 3]


def test_a_segment_goes_on_after_the_end_of_a_short_episode() -> None:
    replay = walked(1)  # 5 records
    segments = replay.sequences(20, 8, before=1)
    state, ended = segments["state"].squeeze(-1), segments["next", "terminated"].squeeze(-1)
    assert torch.equal(state, torch.tensor([0.0, 0, 1, 2, 3, 4, 4, 4, 4]).expand(20, 9))
    assert torch.equal(ended, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1], dtype=torch.bool).expand(20, 9))
    assert (segments["next", "reward"].squeeze(-1) == torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0, 0])).all()
    assert (segments["action"][:, 5:] == 0).all()
    cut = walked(1, terminates=False, length=3)
    with pytest.raises(UserError, match="no episode has 8 records"):
        cut.sequences(2, 8)


@pytest.mark.slow  # 5 s; test_rssm.py has the rows that it learns from
def test_dreamers_world_model_learns_the_end_from_episodes_shorter_than_a_segment() -> None:
    torch.manual_seed(0)
    model = RSSM(STATE, ACTION, pixels=False, units=32, learning_rate=3e-3, warmup=1)
    replay = walked(60)
    for _ in range(150):
        model.update(replay.sequences(16, 8))
    segments = replay.sequences(32, 8, before=1)
    index = segments.pop("index")
    learned = model.learn(segments, model.unknown.expand(len(index)))
    continues = model.continue_probability(model.features(learned.state)).detach().squeeze(-1)
    there = (segments["state"].squeeze(-1) < LAST)[:, 1:]
    assert continues[there].mean() > 0.9 and continues[~there].mean() < 0.1


def test_dreamers_imagined_steps_draw_the_end_from_the_continue_head() -> None:
    torch.manual_seed(0)
    model = RSSM(STATE, ACTION, pixels=False, units=32, terminates=True)
    context = walked(1).sequences(2000, model.context_length)
    assert model.predicts_termination and not RSSM(STATE, ACTION, pixels=False, units=32).predicts_termination
    for logit, share in ((0.0, 0.5), (2.0, 0.12), (20.0, 0.0)):
        for parameter in model.continue_head.parameters():
            torch.nn.init.zeros_(parameter)
        list(model.continue_head.parameters())[-1].data.fill_(logit)  # the bias of the last layer
        _, step = model.step(model.start(context), torch.zeros(2000, 1))
        assert step["terminated"].shape == (2000, 1) and step["terminated"].dtype == torch.bool
        assert step["terminated"].float().mean() == pytest.approx(share, abs=0.04)


def test_the_reward_network_learns_the_end_beside_the_rewards() -> None:
    torch.manual_seed(0)
    network = RewardNetwork(tokenizer(), None, channels=[8, 8], width=16, terminates=True)
    frames = torch.zeros(1, 33, 3, 16, 16, dtype=torch.uint8)
    ended = (torch.arange(1, 33) % 4 == 0).view(1, -1, 1)
    frames[:, 1:][ended.squeeze(-1)] = 200
    rewards = torch.where(ended, 5.0, 1.0)
    assert not network.terminations(network.logits(frames, None))[:, :8].all(), "rare before anything is learned"
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        network.loss(network.logits(frames, None), rewards, ended).backward()
        optimizer.step()
    drawn = torch.stack([network.terminations(network.logits(frames, None)) for _ in range(20)]).float().mean(0)
    assert (drawn - ended.float()).abs().mean() < 0.1
    torch.testing.assert_close(network(frames, None).mean(), rewards.mean(), rtol=0.15, atol=0)
    with pytest.raises(ValueError, match="the data hold none"):
        network.loss(network.logits(frames, None), rewards)


def test_ivideogpt_predicts_the_end_in_rollouts_and_in_plans() -> None:
    network = partial(RewardNetwork, channels=[8, 8], width=16)
    model = make(reward_network=network, terminates=True)
    assert model.predicts_termination and model.reward_network is not None
    nn.init.constant_(model.reward_network.head[-1].bias[-1:], 50.0)  # every step ends its episode
    nn.init.constant_(model.reward_network.head[-1].bias[:1], 50.0)  # ... and earns the lowest reward
    batch = sequences(2)
    batch["next", "terminated"] = torch.zeros(*batch.shape, 1, dtype=torch.bool)
    context, actions = batch[:, :CONTEXT], torch.zeros(2, SEGMENT - CONTEXT, WIDTH)
    assert model.predict(context, actions)["terminated"].all()
    reward = model.outcome(model.start(context), actions).reward
    assert reward is not None and (reward[:, 0] < 0).all() and (reward[:, 1:] == 0).all()
    metrics = model.update(batch)
    assert metrics["reward_network_loss"] > 1, "the loss knows that no episode ended"


def test_without_terminations_nothing_is_added() -> None:
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    sizes: dict[str, Any] = {"members": 2, "elites": 1, "width": 8, "layers": 1}
    models = []
    for terminates in (False, True):
        torch.manual_seed(0)
        models.append(ProbabilisticEnsemble(STATE, ACTION, optimizer=optimizer, terminates=terminates, **sizes))
    plain, ending = (model.state_dict() for model in models)
    assert not [key for key in plain if "ending" in key] and list(models[0].optimizers) == ["ensemble"]
    assert all(torch.equal(plain[key], ending[key]) for key in plain), "the members begin alike"
    plain_network, network = (
        RewardNetwork(tokenizer(), 2, channels=[8], terminates=terminates) for terminates in (False, True)
    )
    assert network.head[-1].out_features == plain_network.head[-1].out_features + 1
    assert not WorldModel.predicts_termination


class Specs:
    """What building an agent needs of an environment."""

    observation_spec = Composite(
        pixels=Bounded(0, 255, (3, 64, 64), dtype=torch.uint8),
        frames=Bounded(0, 255, (9, 64, 64), dtype=torch.uint8),
        state=Unbounded((3,)),
    )
    action_spec = Bounded(-1, 1, (1,))


def built(*overrides: str) -> Any:
    with initialize_config_module("configs", version_base="1.3"):
        config = compose(
            "train", ["env=gym", "env.id=Pendulum-v1", "experiment=smoke", "total_env_steps=80", *overrides]
        )
    policy = build_policy(config, Specs())  # type: ignore[arg-type]
    return build_agent(config, Specs(), policy, build_replay(config, None, Specs(), policy))  # type: ignore[arg-type]


@pytest.mark.parametrize("agent", ["mbpo", "mbpo_ivideogpt"])
def test_a_world_model_has_a_continue_head_where_the_environment_terminates(agent: str) -> None:
    assert built(f"agent={agent}").world_model.predicts_termination
    assert not built(f"agent={agent}", "env.terminates=false").world_model.predicts_termination


def test_what_ignores_terminations_is_refused() -> None:
    overrides = ["agent=mbpo_ivideogpt", "agent.world_model.reward_network=null"]
    with pytest.raises(UserError, match="predicts no terminations"):
        built(*overrides)
    built(*overrides, "env.terminates=false")
