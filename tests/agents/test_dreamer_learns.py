"""DreamerV3 learns to steer one point onto another from their coordinates, within a minute on a core."""

import csv

import pytest
from hydra import compose, initialize_config_module

from mbrl.training import run

pytestmark = pytest.mark.learns

SETTINGS = [
    "agent=dreamerv3", "agent.pixels=false", "env=toy", "env.episode_length=20", "threads=1", "total_env_steps=1200",
    "checkpoint_every=1200", "eval.every=1200", "eval.episodes=20", "collect.frames_per_batch=20", "video=false",
    "agent.batch_size=32", "agent.segment_length=5", "agent.horizon=5", "agent.updates_per_step=0.4",
    "agent.learning_starts=200", "agent.policy.world_model.units=32", "agent.policy.world_model.learning_rate=4e-3",
    "agent.policy.behaviour.learning_rate=1e-3", "agent.policy.behaviour.entropy=1e-2",
    "agent.policy.behaviour.gamma=0.95",
]  # fmt: skip


@pytest.mark.slow  # 17 s; the parts of it have known answers of their own
@pytest.mark.timeout(900)
def test_learns_the_toy(tmp_path):
    with initialize_config_module("configs", version_base="1.3"):
        run(compose("train", [*SETTINGS, f"run_dir={tmp_path / 'run'}"]))
    with (tmp_path / "run" / "eval.csv").open() as file:
        (row,) = csv.DictReader(file)
    # a random policy, and the untrained one, come near in less than a tenth of the episodes
    assert float(row["success"]) >= 0.6
