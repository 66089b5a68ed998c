"""A run's checkpoint is played and filmed, whether the run itself draws pictures or not."""

import imageio.v3 as iio
import pytest

from mbrl.collecting.evaluation import evaluate_run
from mbrl.training import run
from tests.demonstrations import write_toy
from tests.test_training import TOY, compose_config


@pytest.mark.parametrize("pixels", ["true", "false"])
def test_a_run_is_filmed_with_pictures_of_its_own_or_without(tmp_path, pixels):
    demos = write_toy(tmp_path / "demos", 2, episode_length=20, resolution=32)
    settings = [override for override in TOY if not override.startswith("agent.")]
    config = compose_config(
        tmp_path / "run", *settings, "agent=bc", f"agent.pixels={pixels}", "agent.cloning.updates=2",
        f"replay.demos={demos}", "total_env_steps=20",
    )  # fmt: skip
    video = tmp_path / "film.gif"
    result = evaluate_run(run(config), episodes=2, seed=3, video=video)
    assert result.keys() == {"success", "success_last", "return", "steps_to_success"}
    film = iio.imread(video)
    assert film.shape[1:] == (32, 32, 3)
    assert len({frame.tobytes() for frame in film}) > 1, "something moves"  # a still episode is one frame of a GIF
    assert evaluate_run(tmp_path / "run", episodes=2, seed=3) == pytest.approx(result, nan_ok=True)
