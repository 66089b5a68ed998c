"""From runs and weights to what is played with, and one clear line for each that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl.cli import main as cli
from mbrl.collecting.demonstrations import record
from mbrl.play.load import load_parts
from mbrl.play.network import listen
from tests.play.runs import make_run, make_weights

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("played")]  # whole runs are built, one for all


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("play") / "run", "agent=mbpo_ivideogpt")


def test_a_run_is_played_with_its_policy_and_its_replay(run: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    parts = load_parts(run)
    assert parts.task == "toy" and not parts.notes and list(parts.library.sources) == ["replay"]
    assert list(parts.drivers) == ["policy", "policy on imagined frames"]
    session = parts.session
    for driver in parts.drivers.values():
        action = driver(session)
        assert action.shape == (2,) and np.abs(action).max() <= 1
        session.step(action)
    assert session.model.temperature == 1.0
    parts.library.start(session, "replay", 1, 10)
    wanted = parts.library.sources["replay"].read(1)
    assert (session.moment.real["pixels"] == wanted["pixels"][10].numpy()).all()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files  # nothing is written unasked
    path = parts.recordings.save_episode(session.moments)
    assert path.parent == run / "play"
    parts.close()


def test_the_policy_acts_on_the_world_that_it_is_shown(run: Path) -> None:
    parts = load_parts(run)
    for _ in range(4):
        parts.session.step([1.0, 0.0])
    real, imagined = (driver(parts.session) for driver in parts.drivers.values())
    assert not np.array_equal(real, imagined)
    parts.session.back_to_reality()
    parts.session.moments[-2].imagined = parts.session.moments[-2].real
    parts.session.moments[-3].imagined = parts.session.moments[-3].real
    real, imagined = (driver(parts.session) for driver in parts.drivers.values())
    assert np.array_equal(real, imagined)
    parts.close()


def test_dreamerv3_is_played_and_its_memory_begins_at_the_hand_over(tmp_path: Path) -> None:
    parts = load_parts(make_run(tmp_path / "run", "agent=dreamerv3", episodes=1))
    assert parts.session.horizon is None and parts.session.model.temperature is None
    driver, actions = parts.drivers["policy"], []
    for _ in range(2):
        driver.reset()
        torch.manual_seed(0)  # Latent states are sampled.
        actions.append([driver(parts.session) for _ in range(2)])
    assert np.array_equal(actions[0], actions[1]) and not np.array_equal(*actions[0])
    assert parts.session.step(actions[0][0]).imagined_reward is not None
    parts.close()


def test_weights_are_played_on_a_task(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    record("window-close", 1, seed=3, output=tmp_path / "demos", resolution=16, camera="corner2", noise=0.0)
    parts = load_parts(weights, task="window-close", data=tmp_path / "demos")
    assert parts.session.env.view == "corner2"  # as the episodes were recorded
    assert parts.session.env.picture_axes == ((1, 1), (0, -1))
    assert list(parts.drivers) == ["scripted policy"] and not parts.notes
    for _ in range(3):
        moment = parts.session.step(parts.drivers["scripted policy"](parts.session))
    assert moment.imagined["pixels"].shape == (3, 16, 16)
    parts.close()


def test_weights_without_actions_are_played_and_that_is_said(tmp_path: Path) -> None:
    parts = load_parts(make_weights(tmp_path / "weights", actions=False), task="reach")
    assert "reads no actions" in parts.notes[0] and parts.session.step([1.0, 0.0, 0.0, 0.0]).depth == 1
    parts.close()


def test_a_task_that_the_model_never_saw_is_allowed_and_said(tmp_path: Path) -> None:
    overrides = ["agent=mbpo_ivideogpt", "env=metaworld", "env.episode_length=20", "env.task=reach"]
    run = make_run(tmp_path / "run", *overrides, episodes=1)
    parts = load_parts(run, task="push")
    assert parts.notes == ["The world model never saw push: it learned reach."]
    assert parts.task == "push" and "scripted policy" in parts.drivers
    parts.close()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `mbrl play`, which must end with exit code 2 and one line; returns the line."""
    pytest.importorskip("aiohttp", reason="needs aiohttp: pip install -e '.[play]'")
    monkeypatch.delenv("MBRL_TRACEBACK", raising=False)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main(["play", "--port", "0", *arguments])
        lines = capsys.readouterr().err.strip().splitlines()
        assert left.value.code == 2 and len(lines) == 1, lines
        return lines[0]

    return run


def test_bad_inputs_are_one_clear_line(
    refused: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights(tmp_path / "weights")
    assert "no folder" in refused(str(tmp_path)) or "config.yaml" in refused(str(tmp_path))
    assert "add --task TASK" in refused(str(weights))
    assert "unknown Meta-World task 'hamer': did you mean hammer" in refused(str(weights), "--task", "hamer")
    assert "holds weights: leave it out" in refused(str(weights), "--task", "reach", "--checkpoint", "5")
    assert "does not exist" in refused(str(weights), "--task", "reach", "--data", str(tmp_path / "none"))
    assert "unknown toy task 'reach'" in refused(str(run), "--task", "reach")
    assert "predicts states" in refused(str(make_run(tmp_path / "state", "agent=mbpo", episodes=1)))
    assert "learns no world model" in refused(str(make_run(tmp_path / "sac", "agent=sac", episodes=1)))
    with listen("127.0.0.1", 0) as taken:
        assert "is in use" in refused(str(run), "--port", str(taken.getsockname()[1]))
    assert "cannot listen" in refused(str(run), "--host", "no.such.host.invalid")


def test_missing_opengl_is_one_clear_line(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    assert "OpenGL" in refused(str(make_weights(tmp_path / "weights")), "--task", "reach")


def test_missing_aiohttp_is_one_clear_line(refused: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("mbrl.play.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert "mbrl play needs aiohttp: in the clone, pip install -e '.[play]'" in refused(str(run))
