"""Train a world model on the first episodes of a run's replay, as an agent trains it, without the agent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tqdm import tqdm

from mbrl.agents.model_learners import ModelLearner, model_learner_for
from mbrl.agents.schedule import build_schedule
from mbrl.build import (
    agent_steps_per_episode,
    build_policy,
    build_replay,
    build_world_model,
    env_factory,
    env_steps_per_step,
)
from mbrl.checks.train import check
from mbrl.compose import composed
from mbrl.device import cpu_threads, fork_rng
from mbrl.errors import UserError
from mbrl.malloc import keep_freed_memory
from mbrl.prediction.models import check_predicts_frames
from mbrl.prediction.replays import recorded, write_trained_on
from mbrl.replay.replay import Replay, record_episode
from mbrl.run import Run
from mbrl.run_folder.checkpoint import Checkpoints
from mbrl.run_folder.config import claim_run_folder
from mbrl.run_folder.files import require_regular_files
from mbrl.run_folder.lock import FolderLock
from mbrl.run_folder.parts import ModulePart
from mbrl.run_folder.paths import CHECKPOINTS, checkpoint_folders
from worldmodel.base import WorldModel

GIVEN = ("env", "collect", "run_dir", "total_env_steps")  # settings that the replay and the model's folder decide


def train_model(
    folder: Path, source: Run, episodes: int, settings: Sequence[str], config_dir: Path | None = None
) -> None:
    """Train a world model on the first episodes of a replay, and keep it as a run folder without a policy.

    Each update takes place after as many agent steps as in a run with these settings, and draws its batch from the
    episodes that had ended by then. A model that is in the folder already is not trained again.

    Args:
        folder: folder of the model.
        source: the run whose replay is learned from.
        episodes: number of episodes, from its first on.
        settings: settings of `mbrl train`; environment and collection are those of `source`.
        config_dir: folder of the user's own configurations.

    Raises:
        UserError: a setting cannot work, the replay has fewer episodes, or the folder holds another model.
    """
    total = recorded(source)
    if not 1 <= episodes <= total:
        raise UserError(
            f"--train needs --after N, the number of episodes to train on: 1 to {total} in the replay of "
            f"{source.folder}, not {episodes}"
        )
    config = _config(folder, source, episodes, settings, config_dir)
    require_regular_files(folder)
    lock = FolderLock(folder)
    try:
        claim_run_folder(folder, config, setting="MODEL")
        if checkpoint_folders(folder / CHECKPOINTS):
            return
        write_trained_on(folder, source, episodes)  # first: it tells the folder of a model from that of a run
        model = _trained(config, source, episodes)
        Checkpoints(folder / CHECKPOINTS, {"world_model": ModulePart(model)}).save(int(config.total_env_steps))
    finally:
        lock.release()


def _config(folder: Path, source: Run, episodes: int, settings: Sequence[str], config_dir: Path | None) -> DictConfig:
    """The configuration of the run that would have trained the model."""
    for setting in settings:
        key = setting.partition("=")[0].lstrip("+~").split(".")[0]
        if key in GIVEN:
            raise UserError(f"--train {setting}: {key} is that of {source.folder} and of MODEL; leave it out")
    config = composed(settings, config_dir=config_dir)
    config.env, config.collect, config.run_dir = source.config.env, source.config.collect, str(folder)
    config.total_env_steps = episodes * agent_steps_per_episode(config) * env_steps_per_step(config)
    check(config)
    if config.agent.get("planner") is not None:
        raise UserError(f"agent={config.agent.name} plans: train the world model of an agent without a planner")
    return config


def _trained(config: DictConfig, source: Run, episodes: int) -> WorldModel:
    """A new world model, trained."""
    keep_freed_memory()
    with cpu_threads(config.threads), fork_rng(), closing(env_factory(config)(seed=config.seed)) as env:
        model = build_world_model(config, env)
        if model is None:
            raise UserError(f"agent={config.agent.name} trains no world model: give agent=mbpo_ivideogpt, or another")
        check_predicts_frames(model, Path(config.run_dir))
        replay = build_replay(config, None, env, build_policy(config, env))
        torch.manual_seed(config.seed)
        schedule = build_schedule(config)
        learner = model_learner_for(model, schedule)
        steps = episodes * agent_steps_per_episode(config) - schedule.learning_starts
        total = None if model.fits else schedule.model_updates_first + int(steps * schedule.model_updates_per_step)
        if model.optimizers and (steps < 0 or total == 0):
            raise UserError(
                f"the world model would not be trained: agent.learning_starts ({schedule.learning_starts} agent steps) "
                f"lie beyond {episodes} episodes, or no updates are due; raise --after or lower agent.learning_starts"
            )
        with tqdm(total=total, desc="training the world model", unit="update") as bar:
            episodes_in_order = (record_episode(source.replay.online, number) for number in range(episodes))
            learn(learner, replay, episodes_in_order, config.collect.frames_per_batch, bar)
    return model


def learn(
    learner: ModelLearner, replay: Replay, episodes: Iterable[TensorDictBase], frames: int, bar: tqdm[Any]
) -> None:
    """Take the updates that are due while episodes come in, as the training loop does.

    Args:
        learner: trains the model.
        replay: empty at first; it gains each episode at its end.
        episodes: record episodes.
        frames: agent steps between two calls of the agent's update.
        bar: counts updates.
    """
    steps, imaginations = -learner.schedule.learning_starts, 0
    for episode in episodes:
        length = len(episode) - 1
        for first in range(0, length, frames):
            last = min(first + frames, length)
            steps += last - first
            if last == length:
                replay.online.extend(episode[None])
            if steps < 0 or not replay.has_episode:
                continue
            while learner.due(steps):
                before = learner.updates
                learner.update(replay)
                bar.update(learner.updates - before)
            while imaginations < learner.schedule.imaginations(steps):  # nothing is imagined, but rewards learn before
                imaginations += 1
                for _ in range(learner.schedule.reward_updates):
                    learner.learn_rewards(replay)
