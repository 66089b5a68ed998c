"""The error of a world model: none of a perfect one, known numbers of a simple one; training is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

import mbrl.training
from mbrl.agents.agent import Agent
from mbrl.agents.model_error import ModelError
from mbrl.agents.schedule import Schedule
from mbrl.data.episodes import to_records
from mbrl.envs.simulator_model import SimulatorModel
from mbrl.envs.toy import make_env
from mbrl.run_folder.schema import require
from tests.agents.test_uncertainty import imagination
from tests.run_folders import rows, weights
from tests.test_training import TOY, compose_config
from worldmodel.base import WorldModel

SETTINGS: dict[str, Any] = {
    "gamma": 0.9, "episode_env_steps": 12, "every": 12, "starts": 4, "horizon": 3, "plans": 5,
}  # fmt: skip


def perfect() -> tuple[SimulatorModel, TensorDict]:
    """The simulator of the toy, and an episode."""
    env = make_env(seed=3, resolution=16, episode_length=12, snapshots=True)
    torch.manual_seed(0)
    return SimulatorModel(env.observation_spec, env.action_spec, env=make_env(resolution=16)), to_records(
        env.rollout(12)
    )


def test_a_perfect_model_has_no_error() -> None:
    model, episode = perfect()
    found = ModelError(model, model, **SETTINGS)(episode)
    assert float(found["reward_correlation"]) == pytest.approx(1.0)
    assert float(found["plan_rank_correlation"]) == pytest.approx(1.0)
    assert "psnr_moving" not in found, "no error at all has no decibels"
    assert float(found["psnr_moving_copy"]) < 15
    assert float(found["return_correlation"]) == pytest.approx(1.0)
    assert float(found["reward_correlation_low"]) == pytest.approx(1.0)
    for name in ("reward_low", "return"):
        true = found[f"true_{name}"]
        assert float(found[name]) == pytest.approx(float(true)) and float(true) != 0


def measured_at(ends: range, last: int | None = 0, **settings: Any) -> list[int]:
    """Env steps of the comparisons of an agent whose episodes end at these env steps."""
    found, (model, episode) = [], perfect()
    error = ModelError(model, None, **{**SETTINGS, "every": 30, **settings})
    error.last = last
    schedule = Schedule(batch_size=8, updates_per_step=1, learning_starts=0, real_ratio=0.5)
    made = imagination()
    agent = Agent(made.policy, made.env.world_model, made, model_error=error, schedule=schedule)
    agent.model_learner.updates = 1
    for env_steps in ends:
        state = agent.state_dict()
        require(state, agent.schema(), "agent")
        error.last = -1
        agent.load_state_dict(state)
        if agent.evaluate_world_model([episode], env_steps):
            found.append(env_steps)
    return found


def test_it_is_due_once_in_each_interval_whatever_the_workers() -> None:
    """With ten workers of 12 env steps an episode, episodes end together, every 120 env steps."""
    assert measured_at(range(12, 121, 12)) == [36, 60, 96, 120]
    assert measured_at(range(12, 121, 12), last=None) == [36, 60, 96, 120], "a checkpoint of an earlier version"
    assert measured_at(range(120, 481, 120), every=100) == [120, 240, 360, 480]
    assert measured_at(range(3, 61, 3)) == [30, 60], "episodes that terminate early"


class Still(WorldModel):
    """Nothing moves, and every reward is 2."""

    context_length, max_horizon, resolution, action_dim = 2, 10, 16, 2

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return {}

    def start(self, context: TensorDictBase) -> Tensor:
        return context["pixels"][:, -1]

    def step(self, state: Any, action: Tensor) -> tuple[Any, TensorDict]:
        return state, TensorDict(pixels=state, reward=torch.full((len(state), 1), 2.0), batch_size=[len(state)])

    def fork(self, state: Any, n: int) -> Any:
        return state.repeat_interleave(n, 0)


def test_a_model_in_which_nothing_moves() -> None:
    simulator, episode = perfect()
    found = ModelError(Still(), simulator, **SETTINGS)(episode)
    assert found["psnr_moving"] == found["psnr_moving_copy"]
    assert float(found["return"]) == pytest.approx(2.0 * (1 + 0.9 + 0.81)) and float(found["true_return"]) < 5
    assert float(found["reward_low"]) == 2.0 and float(found["true_reward_low"]) < 2.0
    assert "reward_correlation" not in found, "a constant correlates with nothing"
    assert float(found["plan_rank_correlation"]) == 0.0, "it ignores actions"
    assert "reward_high" not in found


def test_when_it_is_due_and_what_it_needs() -> None:
    model, episode = perfect()
    error = ModelError(model, None, **{**SETTINGS, "every": 30})
    assert "plan_rank_correlation" not in error(episode)
    assert error(episode[:3]) == {}
    assert ModelError(Still(), None, **{**SETTINGS, "horizon": 200}).horizon == 10


def test_measuring_draws_no_random_number_of_training_and_leaves_its_mode() -> None:
    model, episode = perfect()
    state = torch.get_rng_state()
    ModelError(model.train(), model, **SETTINGS)(episode)
    assert torch.equal(torch.get_rng_state(), state) and model.training


@pytest.mark.slow  # 6 s
def test_what_is_measured_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    small = [
        *TOY, "agent=mbpo_ivideogpt", "agent.world_model.tokenizer.resolution=32", "agent.model_updates_first=4",
        "agent.model_batch_size=2", "agent.imagine_every=20", "agent.imagination.rollouts=2",
        "agent.imagination.horizon=3", "agent.world_model.training.tokenizer_updates=2", "env.snapshots=true",
        "agent.world_model.tokenizer.codebooks.moving_average.warmup=1", "total_env_steps=60",
        "agent.world_model.transformer.width=32", "agent.world_model.transformer.layers=1",
        "agent.world_model.transformer.mlp_width=64", "agent.world_model.tokenizer.autoencoder.block_out_channels=[16]",
    ]  # fmt: skip
    measured = "agent.model_error={every: 20, starts: 2, horizon: 3, plans: 3}"
    less = "agent.model_error={every: 20, starts: 1, horizon: 1, plans: 1}"  # of the same episodes, which are held back
    plain = mbrl.training.run(compose_config(tmp_path / "plain", *small, less))
    seen = mbrl.training.run(compose_config(tmp_path / "seen", *small, measured))
    names = {name for row in rows(seen) for name in row if name.startswith("model_error/")}
    assert names >= {"model_error/reward_correlation", "model_error/psnr_moving", "model_error/plan_rank_correlation"}
    ours, theirs = weights(seen), weights(plain)
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)
