"""`mbrl evaluate RUN ... --in-imagination MODEL`: known answers of a perfect model, and every mistake in one line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

import mbrl
from mbrl.cli import main as cli
from mbrl.errors import UserError
from mbrl.prediction.fresh import train_model
from mbrl.prediction.policies import history
from tests.test_training import TOY

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("imagined")]  # whole runs, which all tests read

SHORT = [*TOY, "total_env_steps=80", "eval.every=80", "env.episode_length=10", "video=false"]
CONTROL = [*SHORT, "agent=drqv2", "env.snapshots=true", "agent.updates_per_step=0.1", "seed=1"]
STATE = [*SHORT, "experiment=smoke", "agent=mbpo", "agent.model_updates_per_step=0.02"]


class Runs(NamedTuple):
    """Two checkpoints of a policy from pixels, its perfect model, and a run with a learned model from state."""

    control: Path
    perfect: Path
    state: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("ranked")
    control = mbrl.train([*CONTROL, f"run_dir={folder / 'control'}"])
    train_model(folder / "perfect", control, 4, ["agent=mbpo_simulator"])
    state = mbrl.train([*STATE, f"run_dir={folder / 'state'}"])
    return Runs(control.folder, folder / "perfect", state.folder)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_a_perfect_model_gives_every_checkpoint_its_real_return(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (runs.control, "--in-imagination", runs.perfect, "--episodes", 6)
    code, out, err = command(capsys, *asked, "--output", tmp_path / "ranks.png", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [each["env_steps"] for each in found["checkpoints"]] == [40, 80] and found["horizon"] == 10
    for each in found["checkpoints"]:
        real = mbrl.load(runs.control, checkpoint=each["env_steps"]).evaluate(6).summary()
        assert each["real_return"] == pytest.approx(real["return"]) == each["imagined_return"]
        assert each["real_success"] == pytest.approx(real["success"])
        assert each["imagined_success"] is each["hallucinated"] is None, "rewards of the toy do not tell success"
    assert found["return_rank_correlation"]["value"] == pytest.approx(1.0)
    assert found["return_rank_correlation"]["low"] is None
    assert found["success_rank_correlation"]["reason"] == "imagined success is not known"
    assert (tmp_path / "ranks.png").stat().st_size > 0
    with (tmp_path / "ranks.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["run"] for row in rows] == ["control"] * 2 and rows[0]["imagined_success"] == ""
    assert float(rows[0]["imagined_return"]) == pytest.approx(found["checkpoints"][0]["imagined_return"], abs=1e-5)


def test_what_is_printed(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(runs.control, runs.control.with_name("other"))
    asked = (runs.control, other, "--checkpoint", 80, "--in-imagination", runs.perfect, "--horizon", 3)
    code, out, err = command(capsys, *asked)
    assert code == 0, err
    heading, first, second, _, *lines = out.splitlines()
    assert heading.split()[:2] == ["checkpoint", "env"] and first.split()[:3] == ["1", "control", "80"]
    assert second.split()[:3] == ["2", "other", "80"]
    assert lines[0] == "rank correlation of return: not known (all checkpoints are alike really)"
    assert lines[-1] == "2 episodes of each, 3 imagined steps, goals of seed 10000"
    assert any("few" in line for line in lines)


def test_a_learned_model_of_states_imagines_its_own_policy(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, runs.state, "--in-imagination", runs.state, "--json")
    assert code == 0, err
    assert all(each["imagined_return"] is not None for each in json.loads(out)["checkpoints"])


def test_every_mistake_is_one_line(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def changed(name: str, **settings: object) -> Path:
        """The control run with other settings of its environment in its configuration."""
        folder = shutil.copytree(runs.control, tmp_path / name)
        config = OmegaConf.create((folder / "config.yaml").read_text())
        config.env = {**config.env, **settings}
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        return folder

    slow, long = changed("slow", action_repeat=2), changed("long", episode_length=20)
    (tmp_path / "empty").mkdir()
    control, perfect, state = runs
    mistakes: dict[tuple[object, ...], str] = {
        (control, state): "2 RUNs needs --in-imagination MODEL",
        (control, "--horizon", 3): "--horizon needs --in-imagination MODEL",
        (control, "--output", "x.png"): "--output needs --in-imagination MODEL",
        (control, "--in-imagination", control): "is a run of agent 'drqv2', which learns no world model",
        (control, "--in-imagination", perfect, "--checkpoint", 80): "one checkpoint cannot be ranked",
        (control, "--in-imagination", perfect, "--checkpoint", 41): "holds no checkpoint of 41 env steps; there are:",
        (control, control, "--in-imagination", perfect): "is given twice",
        (control, "--in-imagination", perfect, "--horizon", 11): "--horizon must be 1 to 10",
        (control, "--in-imagination", perfect, "--horizon", 0): "argument --horizon: '0' is not allowed",
        (control, "--in-imagination", perfect, "--video", "x.mp4"): "--video films one run",
        (control, "--in-imagination", perfect, "--output", "x.jpg"): "the name must end in .png, .svg, .pdf",
        (control, tmp_path / "empty", "--in-imagination", perfect): "is no run folder",
        (control, tmp_path / "nothing", "--in-imagination", perfect): "is no run folder",
        (control, slow, "--in-imagination", perfect): "has env.action_repeat=2 and",
        (long, "--in-imagination", perfect): "has env.episode_length=20 and",
        (state, "--in-imagination", perfect): "the policy of",
        (control, "--in-imagination", state): "reads frames, and this world model predicts state alone",
        (perfect, control, "--in-imagination", perfect): "",
    }
    for arguments, message in mistakes.items():
        code, out, err = command(capsys, *arguments)
        assert code == 2 and message in err.splitlines()[-1] and not out, (arguments, err)


def test_the_first_frame_of_an_opening_is_the_initial_one() -> None:
    pixels = torch.arange(2 * 2 * 3, dtype=torch.uint8).view(2, 2, 3, 1, 1)
    steps = history(TensorDict(pixels=pixels, action=torch.zeros(2, 2, 1), batch_size=[2, 2]), 2, 3)
    assert torch.equal(steps["pixels"], pixels[:, [0, 0, 1]]) and torch.equal(steps["initial"], pixels[:, [0, 0, 0]])


def test_an_imagined_env_needs_a_model_and_a_replay(runs: Runs) -> None:
    env = mbrl.imagined_env(runs.perfect, starts=runs.control, horizon=3)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (32, 32, 9)
    with pytest.raises(UserError, match="is a run of agent 'drqv2', which learns no world model"):
        mbrl.imagined_env(runs.control)
    with pytest.raises(UserError, match="has no replay to start from: give a run as `starts`"):
        mbrl.imagined_env(mbrl.load(runs.state).world_model)
    with pytest.raises(UserError, match="horizon is 0: it must be 1 or more"):
        mbrl.imagined_env(runs.state, horizon=0)
    with pytest.raises(UserError, match="holds no pixels, from which this world model starts"):
        mbrl.imagined_env(runs.perfect, starts=runs.state)
