"""Build the named objects of a run from its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.data import Bounded, Composite
from torchrl.envs import EnvBase

from mbrl.agents.agent import Agent
from mbrl.agents.cloning import Cloning
from mbrl.agents.embedding import EmbeddingPolicy, embedding_policy
from mbrl.agents.imagination import Imagination
from mbrl.agents.model_error import ModelError
from mbrl.agents.planning import PlanningPolicy
from mbrl.agents.schedule import RATES, build_schedule, learns_model, segment_records
from mbrl.agents.task_conditioning import TaskConditioned
from mbrl.agents.terminations import require_terminations
from mbrl.data.episodes import EMBEDDING, OBSERVATIONS, record_fields, view_name
from mbrl.device import gpu_of, pick_device
from mbrl.envs.opengl import draw_on
from mbrl.envs.simulator_model import simulator_for
from mbrl.errors import UserError
from mbrl.replay.demonstrations import check_compatible, read_demonstrations
from mbrl.replay.latents import latent_types
from mbrl.replay.replay import Replay
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.parts import ModulePart, OptimizersPart, Part, RandomStates, ValuesPart
from mbrl.run_folder.paths import CHECKPOINTS
from mbrl.settings.memory import require_memory_of
from mbrl.targets import check, make, takes
from policies.base import Planner, Policy
from worldmodel.base import WorldModel

# Settings of an agent that are not arguments of its class: its parts, and settings that others refer to.
PARTS = ("policy", "world_model", "imagination", "planner", "planning", "model_error")
REFERENCES = ("name", "size", "pixels", "snapshots", "n_step", "gamma")
REFERS_TO_ENV = {"env", "simulator"}  # settings of a world model that build an environment

_log = logging.getLogger(__name__)


def env_factory(config: DictConfig, *, evaluation: bool = False) -> Callable[..., EnvBase]:
    """A function that makes environments, called with `seed` and optionally `worker` and settings to replace.

    Args:
        config: the configuration. Environments draw on the GPU of its `device`, also in the processes of this one.
        evaluation: whether the environments are for evaluation, which has no success bonus.

    Raises:
        UserError: a setting does not exist.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config.env, resolve=True)  # type: ignore[assignment]
    if evaluation and "success_bonus" in settings:
        settings["success_bonus"] = 0.0
    if (gpu := gpu_of(config.device)) is not None:
        draw_on(gpu)
    return partial(instantiate, check(settings, EnvBase, "env"))


def env_steps_per_step(config: DictConfig) -> int:
    """Env steps (physics control steps) of one agent step."""
    return int(config.env.get("action_repeat", 1))


def agent_steps_per_episode(config: DictConfig) -> int:
    return int(config.env.episode_length) // env_steps_per_step(config)


def terminates(config: DictConfig) -> bool:
    """Whether episodes may end by a termination, before `env.episode_length`."""
    return bool(config.env.get("terminates", False))


def build_policy(config: DictConfig, env: EnvBase) -> Policy:
    """The policy for an environment's specs, with weights drawn from the run's seed."""
    device, specs = pick_device(config.device), _specs(env)
    if terminates(config) and takes(config.agent.policy, "terminates"):
        specs["terminates"] = True
    make_policy = partial(make, config.agent.policy, Policy, place="agent.policy", **specs)
    require_memory_of(make_policy, "agent.policy", device)
    torch.manual_seed(config.seed)
    policy: Policy = make_policy()
    if config.agent.get("cloning") is not None:
        cloning: Cloning = make(config.agent.cloning, Cloning, place="agent.cloning")
        cloning.prepare(policy)
    return policy.to(device)


def build_world_model(config: DictConfig, env: EnvBase) -> WorldModel | None:
    """The world model, conditioned on the task if the environment has several; None if no world model is trained."""
    if config.agent.get("world_model") is None or not learns_model(config):
        return None
    observed = {key: spec for key, spec in env.observation_spec.items() if key != "task"}
    actions, multi_task = env.action_spec.shape[-1], "task" in env.observation_spec.keys()

    def make_model(width: int) -> WorldModel:
        specs = {"observation_spec": Composite(observed), "action_spec": Bounded(-1.0, 1.0, (width,))}
        if terminates(config) and takes(config.agent.world_model, "terminates"):
            specs["terminates"] = True
        model: WorldModel = make(config.agent.world_model, WorldModel, place="agent.world_model", **specs)
        return model

    tasks = env.observation_spec["task"].shape[-1] if multi_task else 0
    if not REFERS_TO_ENV & set(config.agent.world_model):
        require_memory_of(partial(make_model, actions), "agent.world_model", pick_device(config.device))
    torch.manual_seed(config.seed)
    model = TaskConditioned(make_model, actions, tasks) if multi_task else make_model(actions)
    return model.to(pick_device(config.device))


def build_planner(config: DictConfig, env: EnvBase, policy: Policy, world_model: WorldModel | None) -> Policy | None:
    """The policy that plans in the world model, with `policy` as its prior; None for an agent without a planner."""
    if config.agent.get("planner") is None:
        return None
    if world_model is None:
        raise UserError("agent.planner needs an agent.world_model to plan in")
    if REFERS_TO_ENV & set(config.agent.world_model) and config.collect.workers > 1:
        raise UserError("a planner in the simulator stays in one process: leave collect.workers=1")
    torch.manual_seed(config.seed)
    search = make(config.agent.planner, Planner, place="agent.planner")
    planner = PlanningPolicy(world_model, search, policy, **_specs(env), **config.agent.planning)
    return planner.to(pick_device(config.device))


def build_acting(config: DictConfig, env: EnvBase) -> tuple[Policy, Policy, WorldModel | None]:
    """The acting policy (the planner if there is one), the learning policy, and the world model of the planner."""
    policy = build_policy(config, env)
    needed = config.agent.get("planner") is not None or policy.embedding_size
    world_model = build_world_model(config, env) if needed else None
    acting = build_planner(config, env, policy, world_model) or embedding_policy(
        policy, world_model, env.observation_spec
    )
    return acting or policy, policy, world_model


def _specs(env: EnvBase) -> dict[str, Any]:
    return {"observation_spec": env.observation_spec, "action_spec": env.action_spec}


def build_replay(
    config: DictConfig, directory: Path | None, env: EnvBase, policy: Policy, *, read_only: bool = False
) -> Replay:
    """The replay, no larger than the run can fill, with its demonstrations.

    Args:
        config: the configuration.
        directory: folder of the memory-mapped files; None keeps the records in memory.
        env: an environment, for its specs.
        policy: the policy, for its latent states.
        read_only: whether to map existing files copy-on-write, leave out demonstrations and keep batches on the CPU.

    Raises:
        UserError: the disk has not enough free space.
    """
    settings = OmegaConf.to_container(config.replay, resolve=True)
    assert isinstance(settings, dict)
    demos = settings.pop("demos")
    per_episode = agent_steps_per_episode(config) + 1
    episodes = -(-config.total_env_steps // env_steps_per_step(config) // (per_episode - 1)) + config.collect.workers
    episodes *= 1 + terminates(config)  # An episode of one step takes two records.
    records = episodes * per_episode
    settings["capacity"] = min(settings["capacity"], records)
    # Reserve: records beyond the capacity that must not be overwritten, because a kept checkpoint refers to them.
    # Two checkpoints are kept, so count the episodes of two checkpoint intervals, each rounded up to whole batches,
    # one unfinished episode per worker at the older checkpoint, and the one that a single worker is writing now.
    # Short runs need it too: an episode that ends early has one record more than steps.
    steps = config.checkpoint_every // env_steps_per_step(config) + config.collect.frames_per_batch - 1
    kept = 2 * (steps // (per_episode - 1) + 1) + config.collect.workers + 1  # episodes
    reserve = min(kept * (1 + terminates(config)), episodes) * per_episode
    fields = record_fields(env.observation_spec, env.action_spec)
    options = {"reserve": reserve, "directory": directory, "fields": fields, "latents": latent_types(policy)}
    options |= {"stacks": EMBEDDING not in options["latents"], "grows": config.collect.workers == 1}
    options["run_device"] = torch.device("cpu") if read_only else pick_device(config.device)
    settings |= {"device": "cpu"} if read_only else {}
    replay: Replay = make(settings, Replay, place="replay", **options, read_only=read_only)
    if not read_only:
        replay.require_disk_space()
    if demos is not None and not read_only:
        replay.add_demos(_demonstrations(config, Path(demos)))
    return replay


def build_checkpoints(
    directory: Path, agent: Agent, replay: Replay, progress: dict[str, Any], generators: RandomStates
) -> Checkpoints:
    """The checkpoints of a run in its folder; `mbrl/run_folder/checkpoint.py` says which files they are."""
    parts: dict[str, Part] = {"replay": replay, "policy": ModulePart(agent.policy)}
    if agent.world_model is not None:
        parts["world_model"] = ModulePart(agent.world_model)
    parts["optimizers"] = OptimizersPart(agent.optimizers)
    if agent.imagination is not None:
        parts["imagination"] = agent.imagination.buffer
    parts |= {"agent": agent, "progress": ValuesPart(progress), "random": generators}
    return Checkpoints(directory / CHECKPOINTS, parts)


def _demonstrations(config: DictConfig, folder: Path) -> list[TensorDictBase]:
    """The demonstrations in the form of the run's environment: view, action repeat, observations and success bonus."""
    bonus = float(config.env.get("success_bonus", 0.0))  # The environment adds it; files do not have it.
    has_camera = config.env.pixels and {"camera", "mirrored"} <= set(config.env)
    view = view_name(config.env.camera, config.env.mirrored) if has_camera else None
    episodes = read_demonstrations(folder, task=config.env.task, action_repeat=env_steps_per_step(config), view=view)
    for episode in episodes:
        episode["reward"] += bonus * episode["success"]
    if config.env.pixels:
        return episodes
    # An agent from state does not use pixels. An episode with nothing else is refused when the agent is built.
    return [episode.exclude("pixels") if "state" in episode.keys() else episode for episode in episodes]


def build_agent(config: DictConfig, env: EnvBase, policy: Policy, replay: Replay) -> Agent:
    """Build the agent that `agent._target_` names, and its parts."""
    world_model = build_world_model(config, env)
    if terminates(config):
        require_terminations(world_model)
    _check_observations(config, env, policy, world_model, replay)
    observer = embedding_policy(policy, world_model, env.observation_spec)
    imagination = build_imagination(config, env, policy, observer.model if observer else world_model, replay)
    planner = build_planner(config, env, policy, world_model)
    model_error = build_model_error(config, env, world_model)
    return assemble(config, policy, world_model, imagination, planner, model_error, observer)


def assemble(
    config: DictConfig,
    policy: Policy,
    world_model: WorldModel | None = None,
    imagination: Imagination | None = None,
    planner: Policy | None = None,
    model_error: ModelError | None = None,
    observer: EmbeddingPolicy | None = None,
) -> Agent:
    """Build the agent from existing parts."""
    settings = {k: v for k, v in config.agent.items() if k not in (*PARTS, *REFERENCES, *RATES)}
    parts = {
        "world_model": world_model,
        "imagination": imagination,
        "planner": planner,
        "model_error": model_error,
        "observer": observer,
    }
    given = {name: part for name, part in parts.items() if part is not None}
    agent: Agent = make(settings, Agent, place="agent", policy=policy, schedule=build_schedule(config), **given)
    return agent


def build_imagination(
    config: DictConfig, env: EnvBase, policy: Policy, world_model: WorldModel | None, replay: Replay
) -> Imagination | None:
    """Imagined rollouts of the policy; None if the policy learns from real transitions alone."""
    if world_model is None or not build_schedule(config).imagines:
        return None
    pixels = "pixels" in world_model.observations
    return Imagination(
        world_model,
        policy,
        replay,
        action_spec=env.action_spec,
        resolution=env.observation_spec["pixels"].shape[-1] if pixels else None,
        episode_steps=agent_steps_per_episode(config),
        **config.agent.imagination,
    )


def build_model_error(config: DictConfig, env: EnvBase, world_model: WorldModel | None) -> ModelError | None:
    """Build the evaluation of the world model during training; None if `agent.model_error` is null."""
    settings = config.agent.get("model_error")
    if settings is None or world_model is None or world_model.goal_conditioned:
        return None
    simulator = simulator_for(env, partial(env_factory(config), seed=config.seed))
    per_episode = agent_steps_per_episode(config) * env_steps_per_step(config)
    return ModelError(world_model, simulator, gamma=config.replay.gamma, episode_env_steps=per_episode, **settings)


def _check_observations(
    config: DictConfig, env: EnvBase, policy: Policy, world_model: WorldModel | None, replay: Replay
) -> None:
    """Check the observations that the agent reads. Warns if pixels are rendered and not read.

    Raises:
        UserError: the demonstrations lack an observation that the agent reads.
    """
    read = {"pixels" if key == "frames" else str(key) for key in policy.actor.in_keys}
    read |= set(world_model.observations) if world_model is not None else set()
    read &= {*OBSERVATIONS} - {EMBEDDING}  # Leaves out the recurrent state of an actor.
    if config.env.pixels and "pixels" not in read:
        _log.warning("agent.pixels=true renders pixels, and %s does not read them: set it to false", config.agent.name)
    if replay.demos is not None:
        check_compatible(replay.demos, env.observation_spec, env.action_spec, read, segment_records(config))
