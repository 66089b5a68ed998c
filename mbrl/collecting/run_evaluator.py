"""Build the evaluator of a run from its configuration."""

from __future__ import annotations

from omegaconf import DictConfig

from mbrl.build import agent_steps_per_episode, env_factory
from mbrl.collecting.evaluation import Evaluator
from mbrl.processes.usage import usable_cores


def run_evaluator(
    config: DictConfig, episodes: int | None = None, seed: int | None = None, values: bool = True
) -> Evaluator:
    """Build an evaluator from a run's settings; it renders in as many threads as the run has.

    Args:
        config: the settings.
        episodes: number of goals; None for that of the run.
        seed: of the list of goals; None for that of the run.
        values: whether to log critic values against returns. Never done with a success bonus, because critics then
            include the bonus and evaluation returns do not.
    """
    compared = values and not config.env.get("success_bonus")
    return Evaluator(
        env_factory(config, evaluation=True),
        episodes=config.eval.episodes if episodes is None else episodes,
        max_steps=agent_steps_per_episode(config),
        seed=config.eval.seed if seed is None else seed,
        success=config.eval.success,
        gamma=config.replay.gamma if compared else None,
        threads=config.get("threads") or usable_cores(),
    )
