"""A DreamerV3 update, compared with TorchRL's modules and losses, at sizes for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.agents.learners import Learner
from mbrl.bench import Row
from mbrl.bench._machine import median_seconds, row
from mbrl.bench._torchrl_dreamer import learner, updater
from mbrl.bench.replay import fields_of
from mbrl.build import assemble
from mbrl.compose import CONFIGS
from mbrl.replay.replay import Replay
from mbrl.targets import make
from policies.base import Policy

ACTIONS, ROWS, REPEATS = 4, 101, 10  # those of Meta-World; ROWS are the records of an episode
OBSERVATIONS = {
    "state": Unbounded((39,)),
    "pixels": Bounded(0, 255, (3, 64, 64), dtype=torch.uint8),
}


def run() -> Iterator[Row]:
    """Updates per second of both, and their ratio per trained parameter, from state and from pixels."""
    for key, spec in OBSERVATIONS.items():
        config = compose_for(key)
        model = config.agent.policy.world_model
        ours, parameters = learner_update(config, Composite({key: spec}))
        losses = learner(key, spec.shape, ACTIONS, model.units, config.agent.horizon)
        sample = _sample(config, spec)
        theirs, their_parameters = updater(losses, sample, model.learning_rate)
        our_seconds, their_seconds = median_seconds([ours, theirs], REPEATS)
        name = f"DreamerV3 update from {key}, {config.agent.batch_size} segments of {config.agent.segment_length}"
        millions, their_millions = parameters / 1e6, their_parameters / 1e6
        rate, their_rate = 1 / our_seconds, 1 / their_seconds
        yield row(f"{name}, {millions:.2f} M parameters", rate, "updates/s")
        yield row(f"{name}: TorchRL's, {their_millions:.2f} M parameters", their_rate, "updates/s")
        ratio = (rate * millions) / (their_rate * their_millions)
        yield row(f"{name}: ours over TorchRL's, per parameter", ratio, "×", "≥ 1")


def compose_for(key: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("train", ["agent=dreamerv3", f"agent.pixels={key == 'pixels'}"])


def learner_update(
    config: DictConfig, observation_spec: Composite, device: torch.device | str = "cpu"
) -> tuple[Callable[[], Any], int]:
    """A function that takes one update as in a run, with sampling and latents, and the number of trained parameters."""
    learner, replay = learner_and_replay(config, observation_spec, device)
    parameters = sum(parameter.numel() for parameter in learner.policy.parameters() if parameter.requires_grad)
    return lambda: learner.update(replay, 0.0), parameters


def learner_and_replay(
    config: DictConfig, observation_spec: Composite, device: torch.device | str = "cpu"
) -> tuple[Learner, Replay]:
    """A learner as in a run, and a replay of four random episodes."""
    specs = {"observation_spec": observation_spec, "action_spec": Bounded(-1.0, 1.0, (ACTIONS,))}
    policy = make(config.agent.policy, Policy, place="agent.policy", **specs).to(device)
    learner = assemble(config, policy).learner
    assert learner is not None
    flag = torch.zeros(4, ROWS, 1, dtype=torch.bool)
    observations = {key: spec.expand(4, ROWS, *spec.shape).rand() for key, spec in observation_spec.items()}
    records = TensorDict(
        **observations, action=torch.rand(4, ROWS, ACTIONS) * 2 - 1, reward=torch.rand(4, ROWS, 1),
        success=flag, terminated=flag.clone(), truncated=flag.clone(), batch_size=[4, ROWS],
    )  # fmt: skip
    replay = Replay(10 * ROWS, fields=fields_of(records), run_device=policy.device)
    replay.online.extend(records)
    return learner, replay


def _sample(config: DictConfig, spec: Any) -> TensorDict:
    """Segments [B, T] in the layout of TorchRL's losses."""
    shape, units = (config.agent.batch_size, config.agent.segment_length), config.agent.policy.world_model.units
    flag = torch.zeros(*shape, 1, dtype=torch.bool)
    after = {"observation": spec.expand(*shape, *spec.shape).rand(), "reward": torch.rand(*shape, 1), "done": flag}
    return TensorDict(
        state=torch.zeros(*shape, 2 * units), belief=torch.zeros(*shape, 8 * units),
        action=torch.rand(*shape, ACTIONS) * 2 - 1, is_init=flag.clone(),
        next=after | {"terminated": flag.clone()}, batch_size=shape,
    )  # fmt: skip
