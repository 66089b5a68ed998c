"""The simulator as a world model predicts what happens; its halves take each part from the model that they name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite

import mbrl
from mbrl.agents.agent import Agent
from mbrl.agents.planning import PlanningPolicy
from mbrl.collecting.evaluation import Evaluator
from mbrl.envs import metaworld, toy
from mbrl.envs.half_models import LearnedFrames, LearnedRewards
from mbrl.envs.simulator_model import SimulatorModel
from mbrl.errors import UserError
from policies.planner import CEM
from policies.random import RandomPolicy
from tests.fakes import CountingWorldModel
from tests.run_folders import rows, weights
from tests.test_training import TOY, compose_config
from worldmodel.ivideogpt.reward_model import SeparateRewardModel
from worldmodel.ivideogpt.rewards import RewardNetwork

ENVS = {
    "toy": lambda **options: toy.make_env(resolution=16, episode_length=12, **options),
    "metaworld": lambda **options: metaworld.make_env("window-close", resolution=16, episode_length=24, **options),
}


def simulated(make_env: Any) -> tuple[SimulatorModel, TensorDictBase]:
    """The model, and a real episode of another environment of the same kind."""
    env = make_env(seed=1, snapshots=True)
    model = SimulatorModel(env.observation_spec, env.action_spec, env=make_env(seed=5))
    torch.manual_seed(0)
    return model, env.rollout(12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["env=gym", "env.id=Pendulum-v1", "env.pixels=false"], "has no exact snapshots.* env=metaworld and env=toy"),
        (["env=mt10", "env.pixels=false"], "needs a single task"),
        (["env=toy", "env.snapshots=false"], r"set env\.snapshots=true"),
    ],
)
def test_what_it_cannot_restore_is_refused_with_one_line(tmp_path: Path, settings: list[str], message: str) -> None:
    model = ["agent=mbpo", "worldmodel@agent.world_model=simulator"]
    with pytest.raises(UserError, match=message):
        mbrl.training.run(compose_config(tmp_path, *model, *settings))


def test_a_planner_in_the_simulator_is_refused_more_than_one_worker(tmp_path: Path) -> None:
    planner = ["agent=mpc_ivideogpt", "worldmodel@agent.world_model=simulator", "env.snapshots=true"]
    none = ["agent.model_updates_first=0", "agent.model_updates_per_step=0", "collect.workers=2"]
    with pytest.raises(UserError, match=r"leave collect\.workers=1"):
        mbrl.training.run(compose_config(tmp_path, *TOY, *planner, *none))


def test_it_goes_on_after_the_last_step_that_meta_world_takes() -> None:
    model, episode = simulated(partial(metaworld.make_env, "window-close", pixels=False, episode_length=500))
    env = metaworld.make_env("window-close", seed=1, snapshots=True, pixels=False, episode_length=500)
    last = env.rollout(250)[-1:]
    assert last["next", "truncated"].all()
    rewards = model.outcome(model.start(last[None]), episode["action"][None, :5]).reward
    assert rewards.shape == (1, 5) and (rewards > 0).all()


@pytest.mark.parametrize("name", ENVS)
def test_it_predicts_what_happens(name: str) -> None:
    model, episode = simulated(ENVS[name])
    contexts = torch.stack([episode[:1], episode[4:5]])
    actions = torch.stack([episode["action"][:5], episode["action"][4:9]])
    predicted = model.predict(contexts, actions)
    for row, first in enumerate((0, 4)):
        real = episode["next"][first : first + 5]
        assert torch.equal(predicted["pixels"][row], real["pixels"])
        torch.testing.assert_close(predicted["reward"][row], real["reward"])
    observed = {"pixels": episode["next", "pixels"][[0, 4]]}
    after, read = model.observe(model.start(contexts), actions[:, 0], TensorDict(observed, batch_size=[2]))
    assert torch.equal(after, model.step(model.start(contexts), actions[:, 0])[0]) and list(read.keys()) == ["reward"]
    torch.testing.assert_close(read["reward"], predicted["reward"][:, 0])
    other_task = TensorDict(snapshot=contexts["snapshot"][..., 1:], batch_size=[2, 1])
    with pytest.raises(UserError, match=r"snapshots of \d+ numbers are of another task"):
        model.start(other_task)
    state = model.fork(model.start(contexts), 2)
    outcome = model.outcome(state, actions.repeat_interleave(2, 0), frames=2)
    torch.testing.assert_close(outcome.reward, predicted["reward"][..., 0].repeat_interleave(2, 0))
    assert torch.equal(outcome.pixels, predicted["pixels"][:, -2:].repeat_interleave(2, 0))
    assert torch.equal(model.predict(contexts, actions)["pixels"], predicted["pixels"]), (
        "rendering goes on after outcome"
    )


def test_what_it_needs_is_said() -> None:
    env = toy.make_env(resolution=16)
    with pytest.raises(UserError, match="replayed states: set env"):
        SimulatorModel(env.observation_spec, env.action_spec, env=env)
    model, episode = simulated(ENVS["toy"])
    with pytest.raises(UserError, match="which these steps do not have"):
        model.start(episode.exclude("snapshot")[:1][None])


class Counter(CountingWorldModel):
    """Rewards count the steps; a frame is black."""

    resolution, action_dim = 16, 2

    def start(self, context: TensorDictBase) -> Tensor:
        return torch.zeros(len(context), 1)

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        pixels = torch.zeros(len(action), 3, 16, 16, dtype=torch.uint8)
        return state + 1, TensorDict(reward=state + 1, pixels=pixels, batch_size=[len(action)])


def test_true_rewards_stand_beside_the_frames_of_the_model() -> None:
    simulator, episode = simulated(ENVS["toy"])
    model = LearnedFrames(
        Composite(), Bounded(-1, 1, (2,)), learned=lambda **_: Counter(), simulator=lambda **_: simulator
    )
    predicted = model.predict(episode[None, 4 : 4 + model.context_length], episode["action"][None, 4:9])
    first = 4 + model.context_length - 1
    real = simulator.predict(episode[None, first : first + 1], episode["action"][None, 4:9])
    assert not predicted["pixels"].any()
    torch.testing.assert_close(predicted["reward"], real["reward"])
    assert predicted.keys() == real.keys()


def test_the_simulator_of_learned_frames_renders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering, episode = simulated(ENVS["toy"])
    env, drawn = ENVS["toy"](seed=5, snapshots=True), []
    simulator = partial(SimulatorModel, env=env)
    model = LearnedFrames(env.observation_spec, env.action_spec, learned=lambda **_: Counter(), simulator=simulator)
    monkeypatch.setattr(env.unwrapped, "_draw", lambda *_: drawn.append(1))
    context, actions = episode[None, 3:5], episode["action"][None, 4:9]
    assert torch.equal(model.predict(context, actions)["reward"], rendering.predict(context, actions)["reward"])
    model.simulator.outcome(model.simulator.start(context), actions)
    model.predict(context, actions)
    assert not drawn


def reading() -> tuple[LearnedRewards, SimulatorModel, TensorDict]:
    simulator, episode = simulated(ENVS["toy"])
    env = ENVS["toy"](seed=5, snapshots=True)
    network, optimizer = partial(RewardNetwork, channels=(8, 8), width=32), partial(torch.optim.AdamW, lr=3e-3)
    rewards = partial(SeparateRewardModel, network=network, optimizer=optimizer)
    model = LearnedRewards(env.observation_spec, env.action_spec, env=env, rewards=rewards)
    return model, simulator, episode


def test_rewards_are_read_off_the_simulators_frames() -> None:
    model, simulator, episode = reading()
    context, actions = episode[None, 4:5], episode["action"][None, 4:9]
    predicted, real = model.predict(context, actions), simulator.predict(context, actions)
    assert torch.equal(predicted["pixels"], real["pixels"]) and not predicted["reward"].any(), "not learned yet"
    following = episode["next"]
    steps = TensorDict(
        pixels=torch.stack([episode["pixels"], following["pixels"]], 1),
        action=torch.stack([episode["action"], -episode["action"]], 1),
        next=TensorDict(reward=torch.stack([following["reward"], 1 - following["reward"]], 1), batch_size=[12, 2]),
        batch_size=[12, 2],
    )
    errors = [float(model.update(steps)["reward_error"]) for _ in range(150)]
    assert errors[-1] < 0.3 * errors[0]
    read = model.predict(context, actions)["reward"]
    assert torch.corrcoef(torch.stack([read.flatten(), real["reward"].flatten()]))[0, 1] > 0.9
    state, seen = model.start(context), []
    for t in range(5):
        observed = TensorDict(pixels=real["pixels"][:, t], batch_size=[1])
        state, reward = model.observe(state, actions[:, t], observed)
        seen.append(reward["reward"])
    torch.testing.assert_close(torch.stack(seen, 1), read)
    forked = model.fork(model.start(context), 2)
    torch.testing.assert_close(model.outcome(forked, actions.expand(2, -1, -1)).reward, read[..., 0].expand(2, -1))


def test_rewards_cannot_be_read_without_pixels() -> None:
    env = toy.make_env(pixels=False, snapshots=True)
    with pytest.raises(ValueError, match=r"set env\.pixels=true"):
        LearnedRewards(env.observation_spec, env.action_spec, env=env, rewards=SeparateRewardModel)


@pytest.mark.learns
def test_a_planner_with_a_perfect_model_solves_the_toy() -> None:
    env = toy.make_env(resolution=16, episode_length=20, snapshots=True)
    model = SimulatorModel(env.observation_spec, env.action_spec, env=toy.make_env(resolution=16, episode_length=20))
    search = CEM(horizon=4, candidates=24, elites=4, iterations=2)
    specs = {"observation_spec": env.observation_spec, "action_spec": env.action_spec}
    planner = PlanningPolicy(model, search, RandomPolicy(env.observation_spec, env.action_spec), **specs, gamma=0.99)

    def make_env(seed: int) -> Any:
        return toy.make_env(seed=seed, resolution=16, episode_length=20, snapshots=True)

    result = Evaluator(make_env, episodes=6, max_steps=20, seed=4)(planner)
    assert sum(result.success_last) >= 5
    chance = RandomPolicy(env.observation_spec, env.action_spec)
    assert sum(Evaluator(make_env, episodes=6, max_steps=20, seed=4)(chance).success_last) <= 2


RUN = [
    *TOY, "agent=mbpo_simulator", "agent.imagine_every=10", "agent.imagination.rollouts=2",
    "agent.imagination.horizon=3",
]  # fmt: skip


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.slow  # 6 s
def test_a_run_goes_on_to_the_bit_with_the_states_of_its_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mbrl.training.run(compose_config(tmp_path / "whole", *RUN))
    update = Agent.update

    def stopping(self: Agent, replay: Any, agent_steps: int, *others: Any) -> Any:
        if agent_steps == 90:  # within an episode, after a checkpoint
            raise Stopped
        return update(self, replay, agent_steps, *others)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Agent, "update", stopping)
        mbrl.training.run(compose_config(tmp_path / "resumed", *RUN))
    assert list((tmp_path / "resumed" / "checkpoints").iterdir())
    resumed = mbrl.training.run(compose_config(tmp_path / "resumed", *RUN))
    assert rows(resumed) == rows(whole)
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)
    imagined = mbrl.load(whole).imagine(rollouts=3, horizon=2)
    assert imagined["next", "pixels"].shape[:2] == (3, 2)


@pytest.mark.process
@pytest.mark.slow  # 3 s
def test_dreamer_learns_from_rollouts_of_the_simulator(tmp_path: Path) -> None:
    perfect = ["worldmodel@agent.world_model=simulator", "env.snapshots=true", "agent.model_updates_first=0"]
    small = ["agent.imagine_every=10", "agent.imagination.rollouts=8", "agent.imagination.horizon=3", "video=false"]
    folder = mbrl.training.run(compose_config(tmp_path, *TOY, "agent=dreamer_ivideogpt", *perfect, *small))
    learned = [row for row in rows(folder) if "policy/std" in row]
    assert max(row["gradient_steps"] for row in learned) == 50
    scale = [row["imagination/imagined_reward"] for row in learned if "imagination/imagined_reward" in row]
    assert scale and all(abs(reward) < 1 for reward in scale), "rewards of the toy, not of an untrained model"
    assert abs(learned[0]["policy/value"] - learned[0]["policy/return"]) < 1, "the critic starts at the returns"
