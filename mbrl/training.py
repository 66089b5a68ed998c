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
    build_agent,
    build_checkpoints,
    build_policy,
    build_replay,
    env_factory,
    env_steps_per_step,
    terminates,
)
from mbrl.checks.sizes import require_batches
from mbrl.checks.train import check, warn_of_unused_weights
from mbrl.collecting.collector import make_collector, shut_down, steps_of
from mbrl.collecting.evaluation import Evaluator
from mbrl.collecting.run_evaluator import run_evaluator
from mbrl.data.episodes import INITIAL, with_initial
from mbrl.device import cpu_threads, pick_device, repeating
from mbrl.envs.opengl import draw_on
from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory
from mbrl.processes.stopping import StopRequest
from mbrl.processes.tracker import start_quietly
from mbrl.replay.replay import Replay
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.config import claim_run_folder, flatten, require_own_folder
from mbrl.run_folder.files import remove_leftovers, require_regular_files
from mbrl.run_folder.lock import FolderLock
from mbrl.run_folder.logger import Logger
from mbrl.run_folder.parts import RandomStates
from mbrl.run_folder.provenance import record_start
from mbrl.run_folder.state import CURVE, FAILURE, MAY_LACK_SUCCESS
from mbrl.run_folder.videos import imagination_video
from mbrl.run_folder.wandb import WandbTracker

CLONING_UPDATES = 100  # updates of imitation between two rows of metrics
UNSAVED_SECONDS = 120.0  # a checkpoint is due after this time, even before `checkpoint_every` env steps
UNSAVED_SAVES = 50  # and not before 50 times the duration of the last save: saving takes at most 2 % of the time

_log = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """The objects that a training run consists of, and its counters."""

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
        self.evaluator.close()
        self.logger.close()
        shut_down(self.collector)
        self.lock.release()


def run(config: DictConfig) -> Path:
    """Train one agent with one seed. If the run folder has a checkpoint, the run resumes from the last one.

    Returns:
        The run folder: config.yaml, metrics.jsonl, eval.csv, TensorBoard events, checkpoints, curve.png, videos.
    """
    check(config)
    warn_of_unused_weights(config)
    start_quietly()
    keep_freed_memory()
    device = pick_device(config.device)
    if device.type == "cuda":
        draw_on(device.index or 0)
    with cpu_threads(config.threads), repeating(config.deterministic):
        parts = build(config)
        try:
            with parts.stop.on_sigterm():
                clone(config, parts)
                train(config, parts)
                finish(config, parts)
        finally:
            parts.close()
    return parts.directory


def build(config: DictConfig) -> TrainingRun:
    """Build a run, in its state at the last checkpoint if there is one."""
    directory = Path(config.run_dir)
    evaluator = run_evaluator(config)
    policy = build_policy(config, evaluator.env)
    require_batches(config, evaluator.env, policy)
    replay = build_replay(config, directory / "replay", evaluator.env, policy)
    agent = build_agent(config, evaluator.env, policy, replay)
    require_regular_files(directory)
    lock = FolderLock(directory)  # Only now, so that a run with a wrong setting does not lock the folder.
    remove_leftovers(directory)
    require_own_folder(directory, config, longer=True)
    (directory / FAILURE).unlink(missing_ok=True)  # The file of an earlier attempt in a sweep.
    progress: dict[str, Any] = {"env_steps": 0, "agent_steps": 0, "episodes": 0, "wall_time": 0.0}
    generators = RandomStates()
    checkpoints = build_checkpoints(directory, agent, replay, progress, generators)
    checkpoints.clean()
    resumed = checkpoints.load_latest()
    claim_run_folder(directory, config, longer=True)  # After loading, so that a failed resume changes nothing.
    (directory / CURVE).unlink(missing_ok=True)  # It marks a run as finished; this one continues.
    record_start(directory, progress["env_steps"])
    settings = flatten(OmegaConf.to_container(config, resolve=True))
    tracker = WandbTracker(config.wandb, directory, settings) if config.wandb else None
    logger = Logger(
        directory, config.total_env_steps, progress["env_steps"] if resumed else None, tracker,
        may_lack_success=config.env._target_ in MAY_LACK_SUCCESS,
    )  # fmt: skip
    logger.describe(settings)
    collector = make_collector(
        env_factory(config),
        agent.acting_policy,
        seed=config.seed,
        random_steps=agent.random_steps - progress["agent_steps"],
        first_episode=progress["episodes"],
        **config.collect,
    )
    seed_everything(config.seed)
    if resumed:
        generators.restore()  # A second time, because building the collector drew random numbers.
    return TrainingRun(directory, agent, replay, collector, evaluator, logger, checkpoints, lock, progress)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch. Environments have generators of their own."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries use the global generator
    torch.manual_seed(seed)


def clone(config: DictConfig, run: TrainingRun) -> None:
    """Imitate the demonstrations before the training loop, if `agent.cloning.updates` is above 0, and evaluate."""
    agent, progress, started = run.agent, run.progress, time.monotonic()
    if agent.cloning_left == 0:
        return
    while agent.cloning_left > 0:
        metrics = agent.clone(run.replay, CLONING_UPDATES, run.logger.tick)
        progress["wall_time"] = time.monotonic() - started
        counters = {k: progress[k] for k in ("env_steps", "agent_steps", "wall_time")}
        run.logger.log(metrics, gradient_steps=agent.gradient_steps, **counters)
    if agent.acting_policy is agent.policy:  # The world model of a planner has not been trained yet.
        evaluate(config, run)


def evaluate(config: DictConfig, run: TrainingRun, *, may_leave: bool = False) -> None:
    """Evaluate the agent, and log the result.

    Args:
        config: of the run.
        run: its parts.
        may_leave: whether SIGTERM stops it early, without a result. The resumed run then evaluates first.
    """

    def on_step() -> None:
        run.logger.heartbeat()
        if may_leave and run.stop.requested:
            raise _StoppedEarlyError

    try:
        evaluation = run.evaluator(run.agent.acting_policy, on_step)
    except _StoppedEarlyError:
        return
    run.logger.log_eval(evaluation, seed=config.seed, env_steps=run.progress["env_steps"])


class _StoppedEarlyError(Exception):
    """An evaluation was left before its end."""


def evaluation_due(config: DictConfig, run: TrainingRun) -> bool:
    """Whether `eval.every` env steps, or all of the run, have passed since the last evaluation."""
    now, before = run.progress["env_steps"], run.logger.evaluated
    return now // config.eval.every > before // config.eval.every or (now >= config.total_env_steps and now > before)


def train(config: DictConfig, run: TrainingRun) -> None:
    """The training loop: collect, store, update, and at intervals evaluate and save."""
    agent, replay, progress, steps = run.agent, run.replay, run.progress, steps_of(run.collector)
    repeat, saved = env_steps_per_step(config), progress["env_steps"]
    started, saved_at, saving = time.monotonic() - progress["wall_time"], time.monotonic(), 0.0
    if progress["env_steps"] > 0 and evaluation_due(config, run):
        evaluate(config, run)  # The run was stopped before it could.
    while progress["env_steps"] < config.total_env_steps:
        before = progress["env_steps"]
        batch = next(steps)
        finished = replay.extend(batch, hold_back=agent.holds_back(before))
        progress["episodes"] += len(finished)
        progress["agent_steps"] += batch.numel()
        progress["env_steps"] = progress["agent_steps"] * repeat
        error = agent.evaluate_world_model(replay.unseen, progress["env_steps"])
        metrics = agent.update(replay, progress["agent_steps"], progress["env_steps"], run.logger.tick)
        progress["wall_time"] = time.monotonic() - started
        counters = {k: progress[k] for k in ("env_steps", "agent_steps", "wall_time")}
        run.logger.log({**collected(finished), **error, **metrics}, gradient_steps=agent.gradient_steps, **counters)
        done = progress["env_steps"] >= config.total_env_steps
        # With one worker and fixed-length episodes, checkpoints are written only between episodes: a resumed run then
        # neither repeats nor loses a step.
        whole = replay.between_episodes or config.collect.workers > 1 or terminates(config)
        if evaluation_due(config, run):
            evaluate(config, run, may_leave=whole)
        long_ago = time.monotonic() - saved_at >= max(UNSAVED_SECONDS, UNSAVED_SAVES * saving)
        due = progress["env_steps"] - saved >= config.checkpoint_every or long_ago or run.stop.requested
        if done or (whole and due):
            saved, saved_at = progress["env_steps"], time.monotonic()
            replay.flush()  # The checkpoint refers to records of the replay.
            run.checkpoints.save(saved)
            saving = time.monotonic() - saved_at
            run.stop.leave()


def collected(episodes: list[TensorDictBase]) -> dict[str, float]:
    """Mean success at any step and mean return of the training episodes that have ended, with exploration."""
    if not episodes:
        return {}
    success = sum(bool(episode["success"].any()) for episode in episodes)
    total = sum(float(episode["reward"].sum()) for episode in episodes)
    return {"collect/success": success / len(episodes), "collect/return": total / len(episodes)}


def finish(config: DictConfig, run: TrainingRun) -> None:
    """Write the video, if the agent imagines frames, and draw the learning curve last: it marks the run as done."""
    from mbrl.results.plot import plot  # imports matplotlib, a tenth of the start of a run

    if config.video:
        film_imagination(run)
    plot([run.directory], run.directory / CURVE, aggregates=False)


def film_imagination(run: TrainingRun) -> None:
    """Write the video of reality, imagination and their difference in one episode, if the agent imagines frames."""
    imagined = run.agent.imagined
    if imagined is None or "pixels" not in imagined[0].observations:
        return
    model, horizon = imagined
    rollout = run.evaluator.play(run.agent.acting_policy, 0)
    if run.agent.goal is not None:
        rollout["goal"] = run.agent.goal.to(rollout["pixels"].device).expand_as(rollout["pixels"])
    if INITIAL in model.context_keys:
        rollout = with_initial(rollout)
    video = run.directory / "imagination.mp4"
    try:
        frames = imagination_video(model, rollout, horizon, video)
    except UserError as error:  # The episode is shorter than the horizon.
        _log.warning("no video of the imagination: %s", error)
        return
    run.logger.video(video, frames, run.progress["env_steps"])
