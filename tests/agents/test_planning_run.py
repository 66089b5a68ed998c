"""Whole tiny runs of the agent that plans: resumed to the bit, evaluated from its folder, with a prior that learns."""

from pathlib import Path
from typing import Any

import pytest

import mbrl
from mbrl.agents.agent import Agent
from mbrl.data.episodes import to_records, write_episode
from mbrl.envs.toy import make_env
from mbrl.errors import UserError
from mbrl.training import run
from tests.run_folders import rows, weights
from tests.test_training import TOY, compose_config

pytestmark = pytest.mark.process

PLANNING = [
    *TOY, "agent=mpc_ivideogpt", "env.resolution=16", "agent.model_updates_first=4", "agent.model_batch_size=2",
    "agent.segment_length=6", "agent.world_model.segment_length=6", "agent.world_model.tokenizer.resolution=16",
    "agent.world_model.tokenizer.autoencoder.block_out_channels=[16]",
    "agent.world_model.tokenizer.autoencoder.stem_patch=2",
    "agent.world_model.tokenizer.static_scene.background_batches=1",
    "agent.world_model.tokenizer.codebooks.moving_average.warmup=1",
    "agent.world_model.transformer.width=32", "agent.world_model.transformer.layers=1",
    "agent.world_model.transformer.mlp_width=64", "agent.world_model.training.tokenizer_updates=2",
    "agent.planner.candidates=6", "agent.planner.elites=2", "agent.planner.horizon=3", "agent.planner.iterations=1",
    "video=false", "total_env_steps=60", "eval.episodes=1",
]  # fmt: skip


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.slow  # 7 s; test_mbpo.py and test_dreamer.py stop runs in each run of the suite
def test_goes_on_to_the_bit_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(compose_config(tmp_path / "whole", *PLANNING))
    update = Agent.update

    def stopping(self: Agent, replay: Any, agent_steps: int, *others: Any) -> Any:
        if agent_steps == 50:  # after the checkpoint of 40, within an episode
            raise Stopped
        return update(self, replay, agent_steps, *others)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Agent, "update", stopping)
        run(compose_config(tmp_path / "resumed", *PLANNING))
    resumed = run(compose_config(tmp_path / "resumed", *PLANNING))
    assert rows(resumed) == rows(whole)
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in ours)
    assert not any("policy" in name for name in ours), "nothing of the world model is stored twice"
    assert any("world_model/reward_loss" in row for row in rows(whole)), "the transformer has learned"
    assert set(mbrl.load(whole).evaluate(1, 3).summary()) >= {"success", "return"}


@pytest.mark.slow  # 6 s
def test_a_prior_learns_beside_the_model(tmp_path: Path) -> None:
    prior = ["+policy@agent.policy=drqv2_cpu", "agent.updates_per_step=0.5", "agent.planning.proposals=2",
             "agent.planning.terminal_value=true", "agent.model_error={every: 20, starts: 2, horizon: 3, plans: 3}",
             "agent.world_model.tokenizer.resolution=32"]  # fmt: skip
    directory = run(compose_config(tmp_path, *PLANNING, *prior, "env.resolution=32"))
    assert max(row.get("gradient_steps", 0) for row in rows(directory)) == 20
    assert any("model_error/plan_rank_correlation" in row for row in rows(directory))
    assert any("policy/critic_loss" in row and "world_model/reward_loss" in row for row in rows(directory))


def test_critics_that_never_learn_do_not_value_plans(tmp_path: Path) -> None:
    prior = ["+policy@agent.policy=drqv2_cpu", "agent.planning.terminal_value=true", "env.resolution=32",
             "agent.world_model.tokenizer.resolution=32"]  # fmt: skip
    with pytest.raises(UserError, match=r"needs trained critics: set agent\.updates_per_step=0\.5"):
        run(compose_config(tmp_path, *PLANNING, *prior))


def test_a_planner_without_a_world_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"agent\.planning=null is not allowed: .* because there is a planner"):
        run(compose_config(tmp_path, *TOY, "agent=drqv2", "+planner@agent.planner=cem", "+agent.segment_length=6"))


PERFECT = [
    "agent=mpc_ivideogpt", "worldmodel@agent.world_model=simulator", "env.snapshots=true", "env.task=window-close",
    "env.resolution=16", "agent.model_updates_first=0", "agent.model_updates_per_step=0", "agent.learning_starts=0",
    "agent.model_error=null", "video=false", "threads=1",
]  # fmt: skip


def successes(folder: Path) -> tuple[list[float], list[float]]:
    """Success of each training episode, and of each evaluation."""
    training, evaluated = (
        [row[key] for row in rows(folder) if key in row] for key in ("collect/success", "eval/success")
    )
    return training, evaluated


@pytest.mark.slow  # 12 s
def test_with_a_perfect_model_it_closes_the_window_in_its_first_episode(tmp_path: Path) -> None:
    """Meta-World, the planner as it is shipped; it succeeds after 30 to 35 agent steps, and chance never does."""
    short = ["env.episode_length=80", "total_env_steps=80", "eval.episodes=1", "collect.frames_per_batch=40"]
    assert successes(run(compose_config(tmp_path / "run", *PERFECT, *short))) == ([1.0], [1.0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_a_perfect_model_it_succeeds_on_other_goals_too(tmp_path: Path) -> None:
    """`pytest -m slow tests/agents/test_planning_run.py`: 5 training episodes and 10 of an evaluation, 2 minutes."""
    training, evaluations = successes(
        run(compose_config(tmp_path / "run", *PERFECT, "total_env_steps=1000", "eval.episodes=10", "eval.every=1000"))
    )
    assert len(training) == 5 and sum(training) >= 4.5 and evaluations[0] >= 0.9


def test_a_run_towards_a_goal_ends_with_its_video(tmp_path: Path) -> None:
    goal = tmp_path / "goal.safetensors"
    write_episode(goal, to_records(make_env(resolution=16, episode_length=4).rollout(4)))
    towards = [f"agent.planning.goal={goal}", "agent.world_model.conditioning.goal=true", "video=true"]
    folder = run(compose_config(tmp_path / "run", *PLANNING, *towards, "total_env_steps=40"))
    assert (folder / "imagination.mp4").exists() and (folder / "imagination.png").exists()
