"""TD-MPC2 learns to steer a point onto another within a minute on a core, and what a corridor with an end is worth."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from mbrl.compose import composed
from mbrl.training import run
from tests.agents.test_tdmpc2_terminations import CELLS, SIZES, STEP, make, one_hot
from tests.agents.test_terminations import GAMMA, walked
from tests.termination import LAST
from worldmodel.tdmpc2.model import TDMPC2Dynamics

pytestmark = pytest.mark.learns

SETTINGS = [
    "agent=tdmpc2", "env=toy", "env.episode_length=20", "threads=1", "total_env_steps=800", "checkpoint_every=800",
    "eval.every=800", "eval.episodes=20", "collect.frames_per_batch=20", "video=false", "agent.batch_size=64",
    "agent.learning_starts=200", "agent.policy.world_model.width=64", "agent.policy.world_model.latent_size=32",
    "agent.policy.planner.candidates=64", "agent.policy.planner.elites=8", "agent.policy.planner.iterations=3",
]  # fmt: skip


@pytest.mark.slow  # the parts of it have known answers of their own
@pytest.mark.timeout(900)
def test_learns_the_toy(tmp_path: Path) -> None:
    run(composed([*SETTINGS, f"run_dir={tmp_path / 'run'}"]))
    with (tmp_path / "run" / "eval.csv").open() as file:
        (row,) = csv.DictReader(file)
    # a random policy comes near in less than a tenth of the episodes; after 200 updates it was 0.3
    assert float(row["success"]) >= 0.6


@pytest.mark.slow  # 7 s; test_tdmpc2_terminations.py has the values by hand
def test_learns_the_values_of_a_corridor_with_an_end() -> None:
    """Also in the last cell before the end: from segments that stop there, it is taken for 2.4 instead of 1."""
    torch.manual_seed(0)
    model = partial(TDMPC2Dynamics, pixels=False, learning_rate=3e-3, encoder_rate=1.0, **SIZES)
    policy, replay = make(model, terminates=True, value_weight=0.1), walked(100)
    for _ in range(300):
        policy.update(one_hot(replay.sequences(64, 4, past_end=True)))
    latent = policy.world_model.encode(TensorDict(state=torch.eye(CELLS)[:LAST], batch_size=[LAST]))
    worth = torch.tensor([sum(GAMMA**step for step in range(LAST - cell)) for cell in range(LAST)])
    with torch.no_grad():
        found = policy.behaviour.value(latent).squeeze(-1)
        plans = policy.actor.score(latent, torch.full((LAST, 1, 3, 1), STEP)).squeeze(-1)
    torch.testing.assert_close(found, worth, rtol=0.15, atol=0)
    torch.testing.assert_close(plans, worth, rtol=0.1, atol=0)
