"""One agent of each kind trains on the DeepMind Control suite, from state or pixels, in miniature."""

import csv
from pathlib import Path

import pytest

from mbrl.compose import composed
from mbrl.training import run

pytest.importorskip("dm_control")

EPISODE = 40  # env steps, each of which earns 0 to 1


OFTEN, SELDOM = ("sac",), ("drqv2", "mbpo", "dreamerv3", "mbpo_ivideogpt", "tdmpc2")
AGENTS = [
    *(pytest.param(agent, marks=pytest.mark.process) for agent in OFTEN),  # whole runs
    *(pytest.param(agent, marks=pytest.mark.slow) for agent in SELDOM),  # pytest -m slow tests/envs/test_dmc_runs.py
]


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_trains_and_is_evaluated(agent: str, tmp_path: Path) -> None:
    settings = ["experiment=smoke", "env=dmc", "env.task=walker-walk", f"env.episode_length={EPISODE}"]
    folder = run(composed([*settings, f"agent={agent}", "device=cpu", "video=false", f"run_dir={tmp_path / agent}"]))
    with (folder / "eval.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [80, 120]
    assert all(0 <= float(row["return"]) <= EPISODE for row in rows), "finite, and of the length of an episode"
