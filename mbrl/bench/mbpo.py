"""MBPO's policy updates, with their fits and rollouts, compared with a plain loop on the same networks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.agents.agent import Agent
from mbrl.agents.imagination import Imagination
from mbrl.bench import Row
from mbrl.bench._baseline_mbpo import baseline_updates, imagine, model_update
from mbrl.bench._machine import median_seconds, row
from mbrl.bench.policies import ACTIONS, STATE, filled_replay
from mbrl.build import assemble
from mbrl.compose import CONFIGS
from mbrl.replay.replay import Replay
from mbrl.targets import make
from policies.base import Policy
from policies.sac import SAC
from worldmodel.base import WorldModel
from worldmodel.ensemble.model import ProbabilisticEnsemble

REPEATS, FIT_UPDATES = 3, 200
ENV_STEPS = 100_000  # env steps at which rollouts have their final length


def run() -> Iterator[Row]:
    """Updates per second of both over the agent steps between two fits."""
    config = _config()
    replay = filled_replay()
    agent = _agent(config, replay)
    span = config.agent.model_fit_every
    each = [config.agent.updates_per_step * span, config.agent.model_updates_per_step * span]
    updates, fits = (round(count) for count in each)
    done = agent.schedule.learning_starts - span

    def ours() -> None:
        nonlocal done
        done += span
        agent.update(replay, done, ENV_STEPS)

    ours()  # The first fit and the first rollouts.
    baseline = baseline_updates(
        agent, replay.steps("state"), fits=fits, imaginations=span // config.agent.imagine_every, updates=updates
    )
    our_seconds, baseline_seconds = median_seconds([ours, baseline], REPEATS)
    name = f"MBPO update, batch {config.agent.batch_size}, fits and rollouts counted"
    yield row(name, updates / our_seconds, "updates/s")
    yield row(f"{name}: a plain loop of the same networks", updates / baseline_seconds, "updates/s")
    yield row(f"{name}: ours over the plain loop", baseline_seconds / our_seconds, "×", "≥ 0.8")
    yield from _compare_parts(agent, replay)


def _compare_parts(agent: Agent, replay: Replay) -> Iterator[Row]:
    """Rollouts and gradient steps of the ensemble apart; ours are kept as episodes, and judged on held-out data."""
    policy, model, imagination = agent.policy, agent.world_model, agent.imagination
    assert isinstance(policy, SAC) and isinstance(model, ProbabilisticEnsemble) and imagination is not None
    steps, rollouts, horizon = replay.steps("state"), imagination.env.batch_size[0], imagination.schedule.last
    starts = steps["state"][:rollouts]
    real = (steps["state"], steps["action"], steps["next", "reward"], steps["next", "state"])
    update = model_update(model, real)
    ours, plain, fit, plain_fit = median_seconds(
        [
            lambda: imagination.run(ENV_STEPS),
            lambda: imagine(policy, model, starts, horizon),
            lambda: model.fit(steps, FIT_UPDATES),
            lambda: [update() for _ in range(FIT_UPDATES)],
        ],
        REPEATS,
    )
    yield row("MBPO imagined transitions", rollouts * horizon / ours, "transitions/s")
    yield row("MBPO imagined transitions: ours over the plain loop", plain / ours, "×")
    yield row("MBPO gradient steps of the ensemble: ours over the plain loop", plain_fit / fit, "×")


def _config() -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train", ["agent=mbpo"])
    config.agent.world_model.patience = 10**6  # A fit on random data would stop early.
    return config


def _agent(config: DictConfig, replay: Replay) -> Agent:
    torch.manual_seed(0)
    specs = {
        "observation_spec": Composite(state=Unbounded((STATE,))),
        "action_spec": Bounded(-1.0, 1.0, (ACTIONS,)),
    }
    policy = make(config.agent.policy, Policy, place="agent.policy", **specs)
    world_model = make(config.agent.world_model, WorldModel, place="agent.world_model", **specs)
    imagination = Imagination(
        world_model, policy, replay, action_spec=specs["action_spec"], **config.agent.imagination
    )  # fmt: skip
    return assemble(config, policy, world_model, imagination)
