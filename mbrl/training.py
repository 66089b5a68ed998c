"""`mbrl train`: build the named objects, then the training loop."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.collectors import Collector

from mbrl.agents.agent import Agent
from mbrl.build import (
    agent_steps_per_episode,
    build_agent,
    build_checkpoints,
    build_policy,
    build_replay,
    env_factory,
    env_steps_per_step,
    segment_records,
)
from mbrl.collecting.collector import check_workers, make_collector, shut_down, steps_of
from mbrl.collecting.evaluation import Evaluator
from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory
from mbrl.processes.stopping import StopRequest
from mbrl.replay.replay import Replay
from mbrl.results.plot import plot
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.config import claim_run_folder, flatten
from mbrl.run_folder.files import remove_leftovers, require_regular_files
from mbrl.run_folder.lock import FolderLock
from mbrl.run_folder.logger import Logger
from mbrl.run_folder.parts import RandomStates
from mbrl.run_folder.provenance import record_start
from mbrl.run_folder.state import FAILURE
from mbrl.run_folder.videos import imagination_video
from mbrl.run_folder.wandb import WandbTracker, require_package

CLONING_UPDATES = 100  # updates of imitation between two rows of metrics
STEPS = ("total_env_steps", "checkpoint_every", "eval.every", "eval.episodes")  # settings that are 1 or more

_log = logging.getLogger(__name__)


@dataclass
class Run:
    """The named objects of a run."""

    directory: Path
    agent: Agent
    replay: Replay
    collector: Collector
    evaluator: Evaluator
    logger: Logger
    checkpoints: Checkpoints
    lock: FolderLock
    progress: dict[str, Any]  # env_steps, agent_steps, episodes so far; wall_time in seconds
    stop: StopRequest = field(default_factory=StopRequest)

    def close(self) -> None:
        self.logger.close()
        shut_down(self.collector)
        self.evaluator.close()
        self.lock.release()


def run(config: DictConfig) -> Path:
    """Train one agent with one seed. If the run folder has a checkpoint, the run resumes from the last one.

    Returns:
        The run folder: config.yaml, metrics.jsonl, eval.csv, TensorBoard events, checkpoints, curve.png, videos.
    """
    check(config)
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parts = build(config)
    try:
        with parts.stop.on_sigterm():
            clone(config, parts)
            train(config, parts)
            finish(config, parts)
    finally:
        parts.close()
    return parts.directory


def build(config: DictConfig) -> Run:
    """Build a run, in its state at the last checkpoint if there is one."""
    directory = Path(config.run_dir)
    evaluator = Evaluator(
        env_factory(config, evaluation=True),
        episodes=config.eval.episodes,
        max_steps=agent_steps_per_episode(config),
        seed=config.eval.seed,
    )
    policy = build_policy(config, evaluator.env)
    replay = build_replay(config, directory / "replay", evaluator.env, policy)
    agent = build_agent(config, evaluator.env, policy, replay)
    require_regular_files(directory)
    lock = FolderLock(directory)  # Only now, so that a run with a wrong setting does not lock the folder.
    remove_leftovers(directory)
    claim_run_folder(directory, config)
    (directory / FAILURE).unlink(missing_ok=True)  # The file of an earlier attempt in a sweep.
    progress: dict[str, Any] = {"env_steps": 0, "agent_steps": 0, "episodes": 0, "wall_time": 0.0}
    generators = RandomStates()
    checkpoints = build_checkpoints(directory, agent, replay, progress, generators)
    checkpoints.clean()
    resumed = checkpoints.load_latest()
    record_start(directory, progress["env_steps"])
    settings = flatten(OmegaConf.to_container(config, resolve=True))
    tracker = WandbTracker(config.wandb, directory, settings) if config.wandb else None
    logger = Logger(directory, config.total_env_steps, progress["env_steps"] if resumed else None, tracker)
    logger.describe(settings)
    collector = make_collector(
        env_factory(config),
        agent.acting,
        seed=config.seed,
        random_steps=agent.random_steps - progress["agent_steps"],
        first_episode=progress["episodes"],
        **config.collect,
    )
    seed_everything(config.seed)
    if resumed:
        generators.restore()  # A second time, because building the collector drew random numbers.
    return Run(directory, agent, replay, collector, evaluator, logger, checkpoints, lock, progress)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch. Environments have generators of their own."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries use the global generator
    torch.manual_seed(seed)


def clone(config: DictConfig, run: Run) -> None:
    """Imitate the demonstrations before the training loop, if `agent.cloning.updates` is above 0, and evaluate."""
    agent, progress, started = run.agent, run.progress, time.monotonic()
    if agent.cloning_left == 0:
        return
    while agent.cloning_left > 0:
        metrics = agent.clone(run.replay, CLONING_UPDATES, run.logger.tick)
        progress["wall_time"] = time.monotonic() - started
        counters = {k: progress[k] for k in ("env_steps", "agent_steps", "wall_time")}
        run.logger.log(metrics, gradient_steps=agent.gradient_steps, **counters)
    if agent.acting is agent.policy:  # The world model of a planner has not been trained yet.
        evaluate(config, run)


def evaluate(config: DictConfig, run: Run) -> None:
    """Evaluate the agent, and log the result."""
    evaluation = run.evaluator(run.agent.acting, run.logger.heartbeat)
    run.logger.log_eval(evaluation, seed=config.seed, env_steps=run.progress["env_steps"])


def train(config: DictConfig, run: Run) -> None:
    """The training loop: collect, store, update, and at intervals evaluate and save."""
    agent, replay, progress, steps = run.agent, run.replay, run.progress, steps_of(run.collector)
    repeat, saved = env_steps_per_step(config), progress["env_steps"]
    started = time.monotonic() - progress["wall_time"]
    while progress["env_steps"] < config.total_env_steps:
        before = progress["env_steps"]
        batch = next(steps)
        finished = replay.extend(batch)
        progress["episodes"] += len(finished)
        progress["agent_steps"] += batch.numel()
        progress["env_steps"] = progress["agent_steps"] * repeat
        error = agent.assess(finished, progress["env_steps"])
        metrics = agent.update(replay, progress["agent_steps"], progress["env_steps"], run.logger.tick)
        progress["wall_time"] = time.monotonic() - started
        counters = {k: progress[k] for k in ("env_steps", "agent_steps", "wall_time")}
        run.logger.log({**collected(finished), **error, **metrics}, gradient_steps=agent.gradient_steps, **counters)
        done = progress["env_steps"] >= config.total_env_steps
        if done or progress["env_steps"] // config.eval.every > before // config.eval.every:
            evaluate(config, run)
        # With one worker, checkpoints are written between episodes, so that a resumed run repeats and loses no step.
        whole = replay.between_episodes or config.collect.workers > 1
        due = progress["env_steps"] - saved >= config.checkpoint_every or run.stop.requested
        if done or (whole and due):
            saved = progress["env_steps"]
            replay.flush()  # The checkpoint refers to records of the replay.
            run.checkpoints.save(saved)
            run.stop.leave()


def collected(episodes: list[TensorDictBase]) -> dict[str, float]:
    """Mean success at any step and mean return of the training episodes that have ended, with exploration."""
    if not episodes:
        return {}
    success = sum(bool(episode["success"].any()) for episode in episodes)
    total = sum(float(episode["reward"].sum()) for episode in episodes)
    return {"collect/success": success / len(episodes), "collect/return": total / len(episodes)}


def finish(config: DictConfig, run: Run) -> None:
    """Draw the learning curve and, if the agent imagines frames, write the video: reality, imagination, difference."""
    plot([run.directory], run.directory / "curve.png", aggregates=False)
    imagined = run.agent.imagined
    if config.video and imagined is not None and "pixels" in imagined[0].observations:
        model, horizon = imagined
        rollout = run.evaluator.play(run.agent.acting, 0)
        if run.agent.goal is not None:
            rollout["goal"] = run.agent.goal.to(rollout["pixels"].device).expand_as(rollout["pixels"])
        video = run.directory / "imagination.mp4"
        try:
            frames = imagination_video(model, rollout, horizon, video)
        except UserError as error:  # The episode is shorter than the horizon.
            _log.warning("no video of the imagination: %s", error)
            return
        run.logger.video(video, frames, run.progress["env_steps"])


def check(config: DictConfig) -> None:
    """Check settings before anything is built. Numbers of steps such as 1e5 become integers in `config`.

    Raises:
        UserError: a setting cannot work; the message names it and what is allowed.
    """
    for key in STEPS:
        OmegaConf.update(config, key, whole_number(key, OmegaConf.select(config, key)))
    per_episode, frames = agent_steps_per_episode(config), config.collect.frames_per_batch
    if config.collect.workers == 1 and per_episode % frames:
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
    segment = segment_records(config)
    if per_episode + 1 < segment:
        raise UserError(
            f"agent.segment_length ({segment}) is longer than the {per_episode + 1} frames "
            "of an episode: lengthen env.episode_length"
        )
    check_workers(**config.collect)
    if config.wandb:
        require_package()
    check_demonstrations(config)
    if not isinstance(config.seed, int):
        raise UserError(f"seed must be a whole number, not {config.seed!r}")


def whole_number(name: str, value: Any) -> int:
    """The value as an integer.

    Raises:
        UserError: it is not a whole number, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer() or value < 1:
        raise UserError(f"{name} must be a whole number, 1 or more, not {value!r}")
    return int(value)


def check_demonstrations(config: DictConfig) -> None:
    """Check the settings of demonstrations.

    Raises:
        UserError: demonstrations would not be used, or imitation has no demonstrations.
    """
    demos, share = config.replay.demos, config.replay.demo_share
    cloning = config.agent.get("cloning") or {"updates": 0, "weight": 0.0, "_target_": None}
    if "_target_" not in cloning:
        raise UserError(f"{config.agent.name} imitates no demonstrations: leave agent.cloning out")
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
