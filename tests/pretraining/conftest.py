"""Recorded episodes of the toy, for all tests of pretraining."""

from pathlib import Path

import pytest

from mbrl.data.episodes import to_records
from mbrl.envs.toy import make_env
from tests.demonstrations import write_episodes

SIDE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    env = make_env(seed=0, episode_length=20, resolution=SIDE)
    write_episodes(folder, [to_records(env.rollout(20)) for _ in range(8)])
    return folder
