"""TensorBoard's hyper-parameters and videos, and Weights & Biases by a stand-in of its package."""

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbrl.collecting.evaluation import Evaluation
from mbrl.run_folder.logger import Logger
from mbrl.run_folder.wandb import WandbTracker


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_settings_beside_the_runs_own_curves_and_its_videos(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 100)
    logger.describe({"agent.real_ratio": 0.5, "env.task": "hammer", "video": True, "wandb": None})
    logger.log_eval(Evaluation([True], [True], [3.0], [7]), env_steps=50, seed=0)
    frames = torch.randint(0, 255, (4, 3, 8, 24), dtype=torch.uint8)
    logger.video(tmp_path / "imagination.mp4", frames, 100)
    logger.close()
    found = events(tmp_path)
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(found.summary_metadata)
    assert b"agent.real_ratio" in found.summary_metadata["_hparams_/session_start_info"].SerializeToString()
    assert found.Scalars("eval/success")[0].value == 1.0
    (image,) = found.Images("imagination")
    assert (image.step, image.width, image.height) == (100, 24, 8)
    assert len(iio.imread(io.BytesIO(image.encoded_image_string), extension=".gif")) == 4


class FakeRun:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.rows, self.finished = given, [], False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axis = (name, step_metric)

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []
    module = ModuleType("wandb")

    def init(**given: Any) -> FakeRun:
        runs.append(FakeRun(given))
        return runs[-1]

    errors = SimpleNamespace(Error=RuntimeError)
    module.__dict__.update(init=init, Video=lambda file: ("video", file), errors=errors, __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_weights_and_biases_has_the_same_names_as_the_files(tmp_path: Path, wandb: list[FakeRun]) -> None:
    logger = Logger(tmp_path, 100, tracker=WandbTracker("arms", tmp_path, {"seed": 3}))
    logger.log({"policy/q": 2.0}, env_steps=10, agent_steps=5, gradient_steps=1, wall_time=1.5)
    logger.log_eval(Evaluation([True], [True], [3.0], [7]), env_steps=50, seed=0)
    logger.video(tmp_path / "imagination.mp4", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 100)
    logger.close()
    (run,) = wandb
    assert (run.given["project"], run.given["config"], run.given["resume"]) == ("arms", {"seed": 3}, "allow")
    assert run.axis == ("*", "env_steps") and run.finished
    counters = {"env_steps": 10, "agent_steps": 5, "gradient_steps": 1, "wall_time": 1.5}
    assert run.rows[0].pop("time/busy_cores") >= 0
    assert run.rows[0] == {**counters, "policy/q": 2.0}
    assert run.rows[1]["eval/success"] == 1.0 and run.rows[1]["env_steps"] == 50
    assert run.rows[2] == {"imagination": ("video", str(tmp_path / "imagination.mp4")), "env_steps": 100}


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path, wandb: list[FakeRun]) -> None:
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        WandbTracker("arms", tmp_path / name, {})
    assert wandb[0].given["id"] == wandb[1].given["id"] != wandb[2].given["id"]


def test_what_the_service_refuses_is_one_line(tmp_path: Path, wandb: list[FakeRun], monkeypatch: Any) -> None:
    def refuse(**given: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ValueError, match="Weights & Biases: no API key"):
        WandbTracker("arms", tmp_path, {})


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[wandb\]'"):
        WandbTracker("arms", tmp_path, {})
