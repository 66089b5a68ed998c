"""Whether a world model fits the environment of a run, and predicts what a policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchrl.envs import EnvBase

from mbrl.data.episodes import INITIAL, SNAPSHOT
from mbrl.errors import UserError
from mbrl.run_folder.config import read_config
from mbrl.run_folder.paths import CONFIG
from worldmodel.base import WorldModel

# Settings of an environment that change neither its dynamics nor what a frame shows.
FREE = {"frame_stack", "snapshots", "success_bonus", "pixels", "first_episode"}
VIEW = {"camera", "mirrored", "resolution", "quality"}  # free where the model predicts states alone


def env_settings(config: DictConfig) -> dict[str, Any]:
    """The settings of the environment in the configuration of a run."""
    settings: dict[str, Any] = OmegaConf.to_container(config.env, resolve=True)  # type: ignore[assignment]
    return settings


def trained_in(model: Path) -> dict[str, Any] | None:
    """The settings of the environment that a model was trained in; None of weights, which name none."""
    path = model / CONFIG
    config = read_config(path) if path.is_file() else OmegaConf.create()
    return env_settings(config) if "env" in config else None


def require_same_env(
    one: Mapping[str, Any], one_name: object, other: Mapping[str, Any], other_name: object, *, pixels: bool
) -> None:
    """Raise UserError if two environments are not of the same task or, with pixels, do not look the same.

    Args:
        one, other: their settings.
        one_name, other_name: what they are settings of.
        pixels: whether frames matter.
    """
    free = FREE if pixels else FREE | VIEW
    for key in sorted({*one, *other} - free):
        if one.get(key) != other.get(key):
            raise UserError(
                f"{one_name} has env.{key.strip('_')}={one.get(key)} and {other_name} "
                f"env.{key.strip('_')}={other.get(key)}: a policy is imagined in a model of its own environment alone"
            )


def env_options(model: WorldModel) -> dict[str, bool]:
    """Settings of the real environment without which a model cannot start from its steps."""
    needed = {"pixels": "pixels" in model.observations, "snapshots": SNAPSHOT in model.context_keys}
    return {name: True for name, wanted in needed.items() if wanted}


def started_from(model: WorldModel) -> tuple[str, ...]:
    """The entries of a real step that a model starts from; the initial frame of its episode is not one of them."""
    return tuple(key for key in (*model.observations, *model.context_keys) if key != INITIAL)


def require_fit(model: WorldModel, env: EnvBase, name: object) -> None:
    """Raise UserError if a world model cannot imagine episodes of an environment.

    Args:
        model: the model.
        env: the environment, made with `env_options`.
        name: what the environment is that of, for the message.
    """
    if not model.predicts_reward:
        raise UserError("this world model predicts no rewards, so that no return can be imagined")
    if model.goal_conditioned:
        raise UserError("this world model needs a goal frame, which no episode has before its end")
    if not model.action_dim:
        raise UserError("this world model reads no actions, so that it imagines the same for every policy")
    if (width := env.action_spec.shape[-1]) != model.action_dim:
        raise UserError(f"{name} has actions of width {width}, and the model is made for {model.action_dim}")
    for key in started_from(model):
        if key not in env.observation_spec.keys():
            raise UserError(f"{name}: its environment gives no {key}, from which this world model starts")
    if "pixels" in model.observations and (side := env.observation_spec["pixels"].shape[-1]) != model.resolution:
        wanted = f"{model.resolution}x{model.resolution}"
        raise UserError(f"{name} has frames of {side}x{side}, and the model is made for {wanted}")
    for key, size in (("state", "state_dim"), ("task", "tasks")):
        if key in model.observations and (width := env.observation_spec[key].shape[-1]) != getattr(model, size):
            raise UserError(f"{name} has a {key} of width {width}, and the model predicts {getattr(model, size)}")


def require_readable(model: WorldModel, read: tuple[str, ...], name: object) -> None:
    """Raise UserError if a policy reads an observation that a world model does not predict.

    Args:
        model: the model.
        read: keys of the observations that the policy reads.
        name: what the policy is that of, for the message.
    """
    missing = [key for key in read if ("pixels" if key == "frames" else key) not in model.observations]
    if missing:
        predicted = " and ".join(model.observations)
        raise UserError(f"the policy of {name} reads {missing[0]}, and this world model predicts {predicted} alone")
