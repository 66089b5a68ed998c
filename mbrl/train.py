"""mbrl train: build the named objects, then THE loop."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase

from mbrl.build import (
    agent_steps_per_episode,
    build_agent,
    build_replay,
    env_factory,
    env_steps_per_step,
)
from mbrl.checkpoint import RunCheckpoint, claim_run_folder
from mbrl.collect import make_collector
from mbrl.evaluate import Evaluator
from mbrl.logger import Logger
from mbrl.plot import plot
from mbrl.video import imagination_video


def run(config: DictConfig) -> Path:
    """Train one agent on one task with one seed; goes on from the run folder's last checkpoint where there is one.

    Returns:
        The run folder: config.yaml, metrics.jsonl, eval.csv, TensorBoard events, checkpoints, curve.png, videos.
    """
    check(config)
    run_dir = Path(config.run_dir)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    evaluator = Evaluator(
        env_factory(config, evaluation=True),
        episodes=config.eval.episodes,
        longest=agent_steps_per_episode(config),
        seed=config.eval.seed,
    )
    replay = build_replay(config, run_dir / "replay")
    agent = build_agent(config, evaluator.env, replay)
    claim_run_folder(run_dir, config)  # only now: a mistyped task must not take the folder
    progress: dict[str, Any] = {"env_steps": 0, "agent_steps": 0, "episodes": 0, "wall_time": 0.0}
    checkpoint = RunCheckpoint(run_dir, agent=agent, replay=replay, progress=progress)
    resumed = checkpoint.load_latest()
    collector = make_collector(
        env_factory(config),
        agent.policy,
        seed=config.seed,
        random_steps=agent.learning_starts - progress["agent_steps"],
        first_episode=progress["episodes"],
        **config.collect,
    )
    logger = Logger(run_dir, config.total_env_steps, progress["env_steps"] if resumed else None)
    seed_everything(config.seed)
    if resumed:
        checkpoint.load_latest()  # once more: building the collector drew random numbers
    try:
        train(config, agent, replay, iter(collector), evaluator, logger, checkpoint, progress)
        finish(config, agent, evaluator, run_dir)
    finally:
        logger.close()
        collector.shutdown()
        evaluator.close()
    return run_dir


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global generators; environments have their own."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global one is the point
    torch.manual_seed(seed)


def train(
    config: DictConfig,
    agent: Any,
    replay: Any,
    steps: Any,
    evaluator: Evaluator,
    logger: Logger,
    checkpoint: RunCheckpoint,
    progress: dict[str, Any],
) -> None:
    """THE loop: collect, remember, learn, and now and then evaluate and save."""
    repeat, saved = env_steps_per_step(config), progress["env_steps"]
    started = time.monotonic() - progress["wall_time"]
    while progress["env_steps"] < config.total_env_steps:
        before = progress["env_steps"]
        batch = next(steps)
        finished = replay.extend(batch)
        progress["episodes"] += len(finished)
        progress["agent_steps"] += batch.numel()
        progress["env_steps"] = progress["agent_steps"] * repeat
        metrics = agent.update(replay, progress["agent_steps"], progress["env_steps"], logger.tick)
        progress["wall_time"] = time.monotonic() - started
        counters = {k: progress[k] for k in ("env_steps", "agent_steps", "wall_time")}
        logger.log(collected(finished) | metrics, gradient_steps=agent.gradient_steps, **counters)
        if progress["env_steps"] // config.eval.every > before // config.eval.every:
            logger.log_eval(evaluator(agent.policy), seed=config.seed, env_steps=progress["env_steps"])
        done = progress["env_steps"] >= config.total_env_steps
        # one process saves between episodes, so that a resumed run repeats nothing and loses nothing
        whole = replay.between_episodes or config.collect.workers > 1
        if done or (whole and progress["env_steps"] - saved >= config.checkpoint_every):
            saved = progress["env_steps"]
            checkpoint.save(saved)


def collected(episodes: list[TensorDictBase]) -> dict[str, float]:
    """Success at any step and return of the training episodes that have just ended, exploration and all."""
    if not episodes:
        return {}
    success = sum(bool(episode["success"].any()) for episode in episodes)
    total = sum(float(episode["reward"].sum()) for episode in episodes)
    return {"collect/success": success / len(episodes), "collect/return": total / len(episodes)}


def finish(config: DictConfig, agent: Any, evaluator: Evaluator, run_dir: Path) -> None:
    """The picture of the curve, and the video of imagination beside reality."""
    plot([run_dir], run_dir / "curve.png")
    if agent.imagination is not None and config.video:
        rollout = evaluator.play(agent.policy, 0)
        imagination_video(agent.world_model, rollout, agent.imagination.horizon, run_dir / "imagination.mp4")


def check(config: DictConfig) -> None:
    """Refuse settings that could not work, before anything is built.

    Raises:
        ValueError: one line that says which setting, and what it may be.
    """
    per_episode, frames = agent_steps_per_episode(config), config.collect.frames_per_batch
    if config.collect.workers == 1 and per_episode % frames:
        raise ValueError(
            f"collect.frames_per_batch ({frames}) must divide the {per_episode} agent steps of an episode, "
            "so that a run can be saved between episodes"
        )
    for key in ("total_env_steps", "checkpoint_every"):
        if config[key] < 1:
            raise ValueError(f"{key} must be 1 or more, not {config[key]}")
    if config.eval.every < 1:
        raise ValueError(f"eval.every must be 1 or more, not {config.eval.every}")
