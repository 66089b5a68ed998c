"""The world model that `mbrl predict` measures: of a run, or of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf

from mbrl.compose import CONFIGS
from mbrl.device import pick_device
from mbrl.errors import UserError
from mbrl.run import Run
from mbrl.run_folder.config import read_config
from worldmodel.base import WorldModel


@dataclass(frozen=True)
class LoadedModel:
    """A world model.

    Attributes:
        model: the world model, in eval mode.
        success_bonus: bonus at success that the model's rewards contain and those of recorded episodes do not.
    """

    model: WorldModel
    success_bonus: float = 0.0

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_model(
    path: Path, goal: bool | None = None, config_dir: Path | None = None, checkpoint: int | None = None
) -> LoadedModel:
    """Load the world model of a run, or of weights in the published layout.

    Args:
        path: a run folder, a folder of weights, or an id of the Hugging Face hub.
        goal: whether the weights are goal-conditioned. None reads it from their files, which published ones do not say.
        config_dir: folder of the user's own configurations, whose classes the run may name.
        checkpoint: env steps of the run's checkpoint; None for the newest.

    Raises:
        FileNotFoundError: The folder does not exist, or holds no weights.
        UserError: The run has no world model, `goal` was given for a run, or the files cannot be read.
    """
    if (path / "tokenizer").is_dir() or not path.exists():
        return _load_weights(path, goal)
    if goal is not None:
        raise UserError(f"--goal is for weights, and {path} is a run, whose settings say it: leave --goal out")
    run = Run(path, config_dir, checkpoint)
    if "env" not in run.config:
        raise FileNotFoundError(f"{path} holds no weights yet: mbrl pretrain has not reached its first checkpoint")
    if run.world_model is None:
        raise UserError(f"{path} is a run of agent {run.config.agent.name!r}, which learns no world model")
    return LoadedModel(run.world_model, float(run.config.env.get("success_bonus", 0.0)))


def _load_weights(path: Path, goal: bool | None) -> LoadedModel:
    from mbrl.targets import make

    settings = OmegaConf.create((CONFIGS / "weights.yaml").read_text(encoding="utf-8"))
    trained = path / "config.yaml"  # written by mbrl pretrain
    if trained.is_file():
        settings.segment_length = _segment_length(trained)
    model: WorldModel = make(settings, WorldModel, place="weights", source=path, goal=goal)
    return LoadedModel(model.to(pick_device("auto")))


def _segment_length(config: Path) -> int:
    """The segment length T of a model that `mbrl pretrain` trained. UserError if its configuration has none."""
    length = OmegaConf.select(read_config(config), "worldmodel.segment_length")
    if not isinstance(length, int):
        raise UserError(f"{config}: worldmodel.segment_length is {length!r}, not a number of frames")
    return length


def check_predicts_frames(model: WorldModel, path: Path) -> None:
    """UserError if the model predicts no frames."""
    if "pixels" not in model.observations:
        raise UserError(f"{path}: this world model predicts states, and mbrl predict measures predicted frames")
