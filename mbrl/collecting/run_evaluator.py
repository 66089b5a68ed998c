"""What evaluates a run while it trains, from its configuration."""

from __future__ import annotations

from omegaconf import DictConfig

from mbrl.build import agent_steps_per_episode, env_factory
from mbrl.collecting.evaluation import Evaluator


def run_evaluator(config: DictConfig, episodes: int) -> Evaluator:
    """An evaluator of a run over this number of goals.

    Critics are asked what they expect unless there is a success bonus: they have learned it, and evaluation has none.
    """
    return Evaluator(
        env_factory(config, evaluation=True),
        episodes=episodes,
        max_steps=agent_steps_per_episode(config),
        seed=config.eval.seed,
        success=config.eval.success,
        gamma=None if config.env.get("success_bonus") else config.replay.gamma,
    )
