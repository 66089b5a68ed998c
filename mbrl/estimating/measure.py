"""Measures the parts of a run, each for a few seconds, in a folder that is removed afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase

from mbrl.agents.agent import Agent
from mbrl.agents.model_learners import ModelLearner
from mbrl.build import (
    agent_steps_per_episode,
    build_agent,
    build_checkpoints,
    build_policy,
    build_replay,
    env_factory,
    env_steps_per_step,
)
from mbrl.collecting.collector import make_collector, shut_down, steps_of
from mbrl.collecting.evaluation import MOST_THREADS
from mbrl.collecting.run_evaluator import run_evaluator
from mbrl.device import repeating
from mbrl.estimating.counts import Counts, Lengths
from mbrl.malloc import keep_freed_memory
from mbrl.processes.usage import peak_memory, usable_cores
from mbrl.replay.replay import Replay
from mbrl.run_folder.checkpoint import KEPT_CHECKPOINTS
from mbrl.run_folder.parts import RandomStates

SECONDS = 3.0  # each part is measured for at least this long
LONG = 30.0  # seconds; a part whose first call takes longer is called once, without a call to warm up
EPISODES = 4  # that the replay of the measurement has room for
FITTED = 50  # gradient steps of a measured fit


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        env_steps: env steps of the run.
        seconds: seconds of each part by its name, in the whole run.
        memory: bytes of memory of the process and its workers at its peak, with all of the replay in memory.
        gpu_memory: bytes of GPU memory at its peak; 0 without a GPU.
        disk: bytes of the run folder at its peak: replay and checkpoints.
    """

    env_steps: int
    seconds: dict[str, float]
    memory: int
    gpu_memory: int
    disk: int

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def as_dict(self) -> dict[str, Any]:
        """The attributes, for JSON."""
        return asdict(self)


def measure(config: DictConfig) -> Estimate:
    """Measure each part of a run, and multiply it by how often the run does it.

    Nothing is written to the run folder. Call it in a process of its own, whose peak of memory is the run's.

    Args:
        config: the configuration of the run, checked.

    Raises:
        UserError: the run could not be built.
    """
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with TemporaryDirectory(prefix="mbrl-estimate-") as folder, repeating(config.deterministic):
        return _measure(config, Path(folder))


def _measure(config: DictConfig, folder: Path) -> Estimate:
    threads = min(config.get("threads") or usable_cores(), MOST_THREADS)
    episodes = min(config.eval.episodes, max(EPISODES, threads))  # as many environments as the run has
    short = OmegaConf.merge(config, {"total_env_steps": EPISODES * config.env.episode_length, "run_dir": str(folder)})
    assert isinstance(short, DictConfig)
    evaluator = run_evaluator(config, episodes)
    policy = build_policy(short, evaluator.env)
    replay = build_replay(short, folder / "replay", evaluator.env, policy)
    whole = OmegaConf.merge(config, {"replay": {"demos": None}})
    assert isinstance(whole, DictConfig)
    filled = build_replay(whole, Path(config.run_dir) / "replay", evaluator.env, policy)
    agent = build_agent(short, evaluator.env, policy, replay)
    counts, stopwatch = Counts.of(agent, lengths_of(config)), Stopwatch(policy.device)
    collected = _collect(config, agent, replay, stopwatch)
    seconds = {"collect": counts.agent_steps * collected.seconds}
    seconds |= _learn(agent, replay, counts, stopwatch)
    if counts.assessments and agent.model_error is not None:
        assess = agent.model_error
        seconds["model_error"] = counts.assessments * stopwatch.mean(lambda: assess(collected.episode))
    evaluation = stopwatch.mean(lambda: evaluator(agent.acting_policy))
    seconds["evaluate"] = counts.evaluations * evaluation * config.eval.episodes / episodes
    evaluator.close()
    progress: dict[str, Any] = {"env_steps": 0, "agent_steps": 0, "episodes": 0, "wall_time": 0.0}
    checkpoints = build_checkpoints(folder, agent, replay, progress, RandomStates())
    seconds["checkpoint"] = counts.checkpoints * stopwatch.once(lambda: checkpoints.save(0))
    saved = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*"))
    gpu = torch.cuda.max_memory_reserved(policy.device) if policy.device.type == "cuda" else 0
    kept = min(KEPT_CHECKPOINTS + 1, counts.checkpoints)  # one more while it is written
    latents = filled.online.latents.room - replay.online.latents.room
    memory = peak_memory(torch.device("cpu")) + collected.workers_memory + filled.room - replay.room + latents
    return Estimate(config.total_env_steps, seconds, memory, gpu, filled.room + kept * (saved + latents))


def lengths_of(config: DictConfig) -> Lengths:
    """The lengths of a run, from its configuration."""
    return Lengths(
        env_steps=config.total_env_steps,
        repeat=env_steps_per_step(config),
        per_episode=agent_steps_per_episode(config),
        per_batch=config.collect.frames_per_batch,
        workers=config.collect.workers,
        eval_every=config.eval.every,
        checkpoint_every=config.checkpoint_every,
    )


class _Collected(NamedTuple):
    """Seconds of an agent step, the last episode, and bytes of memory of the worker processes."""

    seconds: float
    episode: TensorDictBase
    workers_memory: int


def _collect(config: DictConfig, agent: Agent, replay: Replay, stopwatch: Stopwatch) -> _Collected:
    """Collect until an episode has ended, and for SECONDS at least."""
    collector = make_collector(
        env_factory(config), agent.acting_policy, seed=config.seed, random_steps=0, **config.collect
    )
    try:
        steps, taken = steps_of(collector), 0
        finished: list[TensorDictBase] = []
        next(steps)  # starts the workers
        collector.reset()
        began = time.monotonic()
        while not finished or time.monotonic() - began < SECONDS:
            batch = next(steps)
            finished = replay.extend(batch) or finished
            taken += batch.numel()
        stopwatch.wait()
        seconds = (time.monotonic() - began) / taken
        workers = sum(worker.memory_info().rss for worker in psutil.Process().children(recursive=True))
        return _Collected(seconds, finished[-1], workers)
    finally:
        shut_down(collector)


def _learn(agent: Agent, replay: Replay, counts: Counts, stopwatch: Stopwatch) -> dict[str, float]:
    """Seconds that every kind of learning takes in the whole run, by its name."""
    seconds: dict[str, float] = {}
    agent.set_env_steps(0)
    if counts.imitations:
        seconds["imitate"] = counts.imitations * stopwatch.mean(lambda: agent.learner.imitate(replay, 1.0))
    if agent.model_learner is not None and counts.model_updates:
        seconds["world_model"] = _of_model(agent.model_learner, replay, counts.model_updates, stopwatch)
    if agent.observer is not None:
        observer = agent.observer
        seconds["embed"] = stopwatch.once(lambda: observer.store_embeddings(replay)) * counts.agent_steps / len(replay)
    if counts.reward_updates:
        seconds["rewards"] = counts.reward_updates * stopwatch.mean(lambda: agent.learn_rewards(replay))
    if counts.imaginations and agent.imagination is not None:
        seconds["imagine"] = counts.imaginations * stopwatch.mean(agent.imagination.run)
    for count, weight in ((counts.imitating, 1.0), (counts.policy_updates - counts.imitating, 0.0)):
        if count:
            each = stopwatch.mean(partial(agent.learner.update, replay, weight))
            seconds["policy"] = seconds.get("policy", 0.0) + count * each
    return seconds


def _of_model(learner: ModelLearner, replay: Replay, updates: dict[int, int], stopwatch: Stopwatch) -> float:
    """Seconds of the world model's updates, as many of each kind as `Counts.model_updates` says."""
    model, seconds = learner.world_model, 0.0
    if model.fits:
        transitions = replay.steps(*model.observations).to(model.device)
        model.fit(transitions, FITTED)
        taken: list[float] = []
        each = stopwatch.mean(lambda: taken.append(float(model.fit(transitions, FITTED)["updates"])))
        return sum(updates.values()) * each * len(taken) / sum(taken)
    for number, count in sorted(updates.items()):

        def update(number: int = number) -> None:
            model.skip_to(number)
            learner.update(replay)

        seconds += count * stopwatch.mean(update)
    return seconds


class Stopwatch:
    """Times calls, and waits for a GPU to finish what it was given.

    Args:
        device: where the calls compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def once(self, work: Callable[[], object]) -> float:
        """Seconds of the work."""
        self.wait()
        began = time.monotonic()
        work()
        self.wait()
        return time.monotonic() - began

    def mean(self, work: Callable[[], object]) -> float:
        """Mean seconds of the work, after once to warm up; or of the first time, where that takes LONG."""
        first = self.once(work)
        if first > LONG:
            return first
        times: list[float] = []
        while sum(times) < SECONDS:
            times.append(self.once(work))
        return sum(times) / len(times)
