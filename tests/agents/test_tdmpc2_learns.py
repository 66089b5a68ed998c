"""TD-MPC2 learns to steer one point onto another from their coordinates, within a minute on a core."""

import csv
from pathlib import Path

import pytest

from mbrl.compose import composed
from mbrl.training import run

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
