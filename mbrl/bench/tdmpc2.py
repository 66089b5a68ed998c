"""TD-MPC2 from state at its default sizes: planned steps and updates, beside the lower bound of their products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.agents.tdmpc2 import LatentPlanner
from mbrl.bench import Row
from mbrl.bench._machine import count_flops, matmul_rate, median_seconds, row
from mbrl.bench.policies import ACTIONS, STATE, filled_replay
from mbrl.build import assemble
from mbrl.compose import CONFIGS
from mbrl.targets import make
from policies.base import Policy

REPEATS = 20


def run() -> Iterator[Row]:
    """Both rates, and how many times as long as its matrix products alone each takes."""
    config = composed()
    policy = build(config)
    learner, replay = assemble(config, policy).learner, filled_replay()
    calls: list[Callable[[], object]] = [planned(policy), lambda: learner.update(replay, 0.0)]
    planner, width = config.agent.policy.planner, config.agent.policy.world_model.width
    names = (
        (f"TD-MPC2 plans, {planner.iterations} iterations of {planner.candidates} candidates", "agent steps/s"),
        (f"TD-MPC2 updates, {config.agent.batch_size} segments, with sampling", "updates/s"),
    )
    rate = matmul_rate(torch.float32, planner.candidates, width, width)
    for (name, unit), call, seconds in zip(names, calls, median_seconds(calls, REPEATS), strict=True):
        yield row(name, 1 / seconds, unit)
        yield row(f"{name}: time over the lower bound", seconds * rate / count_flops(call), "×")


def composed(*settings: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("train", ["agent=tdmpc2", *settings])


def build(config: DictConfig) -> LatentPlanner:
    """The policy at the sizes of Meta-World, from state."""
    specs = {
        "observation_spec": Composite(state=Unbounded((STATE,))),
        "action_spec": Bounded(-1.0, 1.0, (ACTIONS,)),
    }
    policy = make(config.agent.policy, Policy, place="agent.policy", **specs)
    assert isinstance(policy, LatentPlanner)
    return policy


def planned(policy: LatentPlanner) -> Callable[[], object]:
    """A function that chooses one action, as in the first step of an episode while exploring."""
    memory = {key: spec.zero()[None] for key, spec in policy.actor.memory.items()}
    step = TensorDict({"state": torch.randn(1, STATE), **memory}, batch_size=[1]).to(policy.device)

    def act() -> object:
        with set_exploration_type(ExplorationType.RANDOM):
            return policy.actor(step.clone())

    return act
