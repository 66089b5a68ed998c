"""The types of the settings of `mbrl train`, and settings that must fit each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf
from torchrl.envs import EnvBase

from mbrl.agents.schedule import segment_records
from mbrl.build import agent_steps_per_episode, terminates
from mbrl.checks.agent import check_agent
from mbrl.checks.typed import require_types
from mbrl.collecting.collector import check_workers, make_collector
from mbrl.collecting.evaluation import Success
from mbrl.device import find_device, is_available
from mbrl.envs.simulator import task_names
from mbrl.errors import UserError
from mbrl.replay.mirror import require_gpu
from mbrl.replay.replay import Replay
from mbrl.run_folder.config import flatten, has_begun, require_whole
from mbrl.run_folder.wandb import require_package
from mbrl.settings.values import Arguments, SettingError, describe
from mbrl.targets import check as check_target
from mbrl.targets import typed
from policies.ranges import PositiveCount

Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # what numpy takes
Episodes = Annotated[int, Interval(ge=1, le=10**6)]
Threads = Annotated[int, Interval(ge=1, le=1024)]
# Environments whose `task` only names run folders and curves.
NAMED_BY_TASK = ("mbrl.envs.multitask.make_env", "mbrl.envs.registered.make_env")

_log = logging.getLogger(__name__)


class Evaluation(TypedDict):
    """The settings under `eval`."""

    every: PositiveCount
    episodes: Episodes
    seed: Seed
    success: Success


class Protocol(TypedDict):
    """The settings under `protocol`: which one was chosen."""

    name: str


class Weights(TypedDict):
    """The settings under `worldmodel`, which agents refer to."""

    pretrained: str | None
    precision: Literal["float32", "bfloat16", "auto"]


def check_env(settings: Any, place: str) -> dict[str, Any]:
    """The settings of an environment, checked as in `mbrl.targets.check`."""
    if settings is None:
        raise SettingError(place, settings, "an environment: choose one with env=NAME")
    found = check_target(settings, EnvBase, place)
    if "episode_length" not in found or "task" not in found or "pixels" not in found:
        raise UserError(f"{place} must have the settings task, pixels and episode_length")
    return found


def check_replay(settings: Any, place: str) -> dict[str, Any]:
    """The settings of the replay, checked as in `mbrl.targets.check`; `demos` is no argument of its class."""
    if not isinstance(settings, Mapping):
        raise SettingError(place, settings, "settings by name")
    if "capacity" not in settings:
        raise UserError(f"{place}.capacity is missing: it must be {describe(PositiveCount)}")
    demos = typed(settings.get("demos"), str | None, f"{place}.demos")
    found = check_target({key: value for key, value in settings.items() if key != "demos"}, Replay, place)
    return {**found, "demos": demos}


COLLECTED = ("make_env", "policy", "seed", "random_steps", "first_episode")  # arguments that are no settings
# In the order in which they are checked: agents and the replay refer to the environment.
TYPES: dict[str, Any] = {
    "cuda_graphs": bool,  # first, because agents refer to it
    "env": check_env,
    "agent": check_agent,
    "replay": check_replay,
    "collect": Annotated[Mapping[str, Any], Arguments(make_collector, given=COLLECTED)],
    "eval": Evaluation,
    "protocol": Protocol,
    "worldmodel": Weights,
    "seed": Seed,
    "total_env_steps": PositiveCount,
    "checkpoint_every": PositiveCount,
    "device": str,
    "threads": Threads | None,
    "deterministic": bool,
    "video": bool,
    "wandb": str | None,
    "run_dir": str,
}


def check(config: DictConfig, *, here: bool = True) -> None:
    """Check settings before anything is built. Numbers of steps such as 1e5 become integers in `config`.

    Args:
        config: the configuration.
        here: whether the run is for this machine, which then must have its devices.

    Raises:
        UserError: a setting cannot work; the message names it and what is allowed.
    """
    require_types(config, TYPES)
    device = find_device(config.device) if here else None
    if device is not None:
        require_gpu(config.replay.get("device", "auto"), device)
    per_episode, frames = agent_steps_per_episode(config), config.collect.frames_per_batch
    if config.collect.workers == 1 and per_episode % frames and not terminates(config):
        raise UserError(
            f"collect.frames_per_batch ({frames}) must divide the {per_episode} agent steps of an episode, "
            "so that a run can be saved between episodes"
        )
    for name in ("imagine_every", "model_fit_every"):
        every = config.agent.get(name)
        if every is not None and 0 < every < frames and config.agent.get("real_ratio", 1.0) < 1:
            raise UserError(
                f"agent.{name} ({every}) is shorter than collect.frames_per_batch ({frames}): the agent learns once a "
                "batch, so the calls would follow each other with nothing learned between them; set both alike"
            )
    policy = config.agent.policy
    replayed = policy.get("replay_rows", 0) if policy.get("replay_value_weight") else 0
    for name, rows in (("segment_length", segment_records(config)), ("policy.replay_rows", replayed)):
        if per_episode + 1 < rows:
            raise UserError(
                f"agent.{name} ({rows}) is longer than the {per_episode + 1} frames "
                "of an episode: lengthen env.episode_length"
            )
    stack = config.env.get("frame_stack")
    if config.env.pixels and stack is not None and config.replay.get("frame_stack", stack) != stack:
        raise UserError(
            f"replay.frame_stack ({config.replay.frame_stack}) must be env.frame_stack ({stack}): leave it out, "
            f"or set both with env.frame_stack={config.replay.frame_stack}"
        )
    check_workers(**config.collect, device=device)
    check_task_name(config)
    if config.wandb:
        require_package()
    check_demonstrations(config)


def check_task_name(config: DictConfig) -> None:
    """Check that a run of several tasks, or of `env=gym`, is not named after one task of Meta-World.

    A run that has begun keeps its name, so that it can be resumed.

    Raises:
        UserError: it is.
    """
    task = str(config.env.task)
    if config.env._target_ not in NAMED_BY_TASK or has_begun(Path(config.run_dir)):
        return
    if task.removesuffix("-v3") in task_names():
        raise UserError(
            f"env.task={task} would only name this run, which is not of that task alone: give another name, as in "
            f"env.task={config.env.get('id', 'several')}, or env=metaworld for the task"
        )


def warn_of_unused_weights(config: DictConfig) -> None:
    """Warn where the agent does not read `worldmodel.pretrained`. A sweep may give it to agents without iVideoGPT."""
    source = config.worldmodel.pretrained
    if source is not None and source not in flatten(OmegaConf.to_container(config.agent, resolve=True)).values():
        _log.warning(
            "worldmodel.pretrained=%s is not used: no part of agent %s starts from it", source, config.agent.name
        )


def check_written(config: DictConfig, folder: Path) -> DictConfig:
    """The settings of a run folder, checked before something is built from them: the file may be cut off, or anyone's.

    Where this machine lacks the run's device, `device` becomes `auto` in `config`, with a warning.

    Raises:
        UserError: it is no run's, or a setting is missing or wrong.
    """
    if "env" not in config and "agent" not in config:
        raise UserError(f"{folder} is a folder of `mbrl pretrain`, which has no environment and no policy")
    require_whole(config, folder)
    require_types(config, TYPES, composed=False)
    device = config.get("device", "auto")
    if device != "auto" and not is_available(device):
        _log.warning("%s: this machine has no device=%s, which the run was trained on: device=auto", folder, device)
        config.device = "auto"
    return config


def check_demonstrations(config: DictConfig) -> None:
    """Check the settings of demonstrations.

    Raises:
        UserError: demonstrations would not be used, or imitation has no demonstrations.
    """
    demos, share = config.replay.demos, config.replay.demo_share
    cloning = config.agent.get("cloning") or {"updates": 0, "weight": 0.0}
    if demos is None and (share > 0 or cloning["updates"] > 0):
        raise UserError(
            f"there are no demonstrations for agent.cloning.updates ({cloning['updates']}) and replay.demo_share "
            f"({share}): give replay.demos=FOLDER (`mbrl demos {config.env.task}` records some)"
        )
    if demos is not None and share == 0 and cloning["updates"] == 0:
        raise UserError(
            "replay.demos would not be learned from: give replay.demo_share or agent.cloning.updates above 0"
        )
    if cloning["updates"] > 0 and cloning["weight"] > 0 and share == 0:
        raise UserError(
            f"agent.cloning.weight ({cloning['weight']}) needs demonstrations in the batches: "
            "give replay.demo_share above 0, or agent.cloning.weight=0"
        )
