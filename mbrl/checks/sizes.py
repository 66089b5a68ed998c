"""Refuse sizes that take more memory than there is, with the setting that decides them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from omegaconf import DictConfig
from torch import nn
from torchrl.envs import EnvBase

from mbrl.agents.schedule import learns_model
from mbrl.build import build_policy, build_world_model
from mbrl.device import pick_device
from mbrl.settings.memory import require_memory
from policies.base import Policy

FLOAT = 4  # bytes of a number in an update


def require_sizes(config: DictConfig, env: EnvBase) -> None:
    """Check that the batches of a run, its policy and its world model fit into memory. Builds the last two.

    Args:
        config: the checked configuration of the run.
        env: its environment.

    Raises:
        UserError: something does not fit; says what is needed and what there is.
    """
    require_batches(config, env, build_policy(config, env))
    build_world_model(config, env)


def require_batches(config: DictConfig, env: EnvBase, policy: Policy) -> None:
    """Check that a batch of each kind fits into memory; arguments and errors as in `require_sizes`.

    What is counted is the least that a batch needs: its observations and actions, and its widest layer in the policy.
    """
    for setting, value, size in _batches(config, env, policy):
        require_memory(f"{setting}={value}", size, pick_device(config.device))
    for setting, value, size in _kept(config, env):
        require_memory(f"{setting}={value}", size, torch.device("cpu"))


def _batches(config: DictConfig, env: EnvBase, policy: Policy) -> Iterator[tuple[str, int, int]]:
    """Setting, value and bytes of what is on the device of the run."""
    agent, spec = config.agent, env.observation_spec
    numbers = {key: math.prod(spec[key].shape) for key in spec.keys()}
    seen = numbers.get("frames", numbers.get("state", 1))
    actions = env.action_spec.shape[-1]
    widest = max((layer.out_features for layer in policy.modules() if isinstance(layer, nn.Linear)), default=0)
    rows = agent.segment_length + policy.segment_history if policy.learns_from == "segments" else 2
    yield "agent.batch_size", agent.batch_size, agent.batch_size * (rows * seen + actions + widest) * FLOAT
    if learns_model(config) and "model_batch_size" in agent:
        rows = agent.model_batch_size * agent.segment_length
        yield "agent.model_batch_size", agent.model_batch_size, rows * numbers.get("pixels", seen) * FLOAT
    model, error = agent.get("world_model"), agent.get("model_error")
    if model is not None and {"members", "batch_size", "width"} <= set(model):
        yield "agent.world_model.batch_size", model.batch_size, model.members * model.batch_size * model.width * FLOAT
    for place, planner in (("agent", agent.get("planner")), ("agent.policy", agent.policy.get("planner"))):
        if planner is not None and "candidates" in planner and "horizon" in planner:
            plans = planner.candidates * planner.horizon
            yield f"{place}.planner.candidates", planner.candidates, plans * actions * FLOAT
    if error is not None:
        plans = error.starts * error.plans
        yield "agent.model_error.plans", error.plans, plans * error.horizon * actions * FLOAT


def _kept(config: DictConfig, env: EnvBase) -> Iterator[tuple[str, int, int]]:
    """Setting, value and bytes of what is kept in the memory of the machine."""
    spec = env.observation_spec
    record = sum(math.prod(spec[key].shape) * spec[key].dtype.itemsize for key in spec.keys() if key != "frames")
    frames = config.collect.frames_per_batch
    yield "collect.frames_per_batch", frames, frames * record
    imagination = config.agent.get("imagination")
    if imagination is not None:
        horizon = imagination.horizon
        steps = max(horizon["first"], horizon["last"]) if isinstance(horizon, Mapping | DictConfig) else horizon
        rollouts = imagination.rollouts * imagination.retain
        yield "agent.imagination.rollouts", imagination.rollouts, rollouts * steps * record
