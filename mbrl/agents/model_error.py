"""Evaluate the world model during training, on held-out real episodes.

S starts, N plans from each, C context frames, H horizon, A action.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl.data.episodes import INITIAL, with_initial
from mbrl.device import fork_rng
from policies.base import Metrics
from policies.ranges import Horizon, PositiveCount
from worldmodel.base import WorldModel
from worldmodel.metrics.control import (
    LEVELS,
    at_level,
    correlation,
    moving_psnr,
    within_start_rank_correlation,
)
from worldmodel.metrics.plans import plan_returns


class ModelError:
    """Compares imagined rollouts with what really happened, and ranks random plans against the simulator.

    Args:
        world_model: the model.
        simulator: the perfect model, for the ranking of plans; None leaves it out.
        gamma: discount of the returns of plans.
        episode_env_steps: env steps of an episode.
        every: env steps between two comparisons. Each is on an episode that nothing has learned from before it ended.
        starts: S, contexts in that episode, evenly spaced.
        horizon: steps of the rollouts and of the plans. H is the smaller of it and what the model can imagine.
        plans: N, plans with uniformly random actions from each start.

    Attributes:
        last: env steps when one was last due; 0 at the start; None if a checkpoint of an earlier version lacks it.
    """

    def __init__(
        self,
        world_model: WorldModel,
        simulator: WorldModel | None,
        *,
        gamma: float,
        episode_env_steps: int,
        every: PositiveCount,
        starts: PositiveCount,
        horizon: Horizon,
        plans: PositiveCount,
    ) -> None:
        self.world_model, self.simulator, self.gamma = world_model, simulator, gamma
        self.episode_env_steps, self.every = episode_env_steps, every
        self.last: int | None = 0
        self.starts, self.horizon, self.plans = starts, min(horizon, world_model.max_horizon), plans

    def due(self, env_steps: int) -> bool:
        """Whether to compare at the end of an episode, after this number of env steps."""
        last = env_steps - self.episode_env_steps if self.last is None else self.last
        return env_steps // self.every > last // self.every

    @torch.no_grad()
    def __call__(self, episode: TensorDictBase) -> Metrics:
        """Compare on a record episode [R] of at least C + H rows; {} where it is shorter.

        The random numbers of training are left as they were.

        Returns:
            `reward_correlation`; `return_correlation`, `return` and `true_return`, correlation and means of the
            discounted returns of the rollouts; `reward_LEVEL` and `true_reward_LEVEL`, mean imagined and true reward of
            the steps whose true reward is low (below 2), middle or high (8 or more), where there are any, and
            `reward_correlation_LEVEL`; for a model that predicts pixels `psnr_moving` and `psnr_moving_copy`, of the
            imagined frames and of copies of the last real one; with the simulator `plan_rank_correlation`, see
            `within_start_rank_correlation`.
        """
        length = self.world_model.context_length + self.horizon
        if len(episode) < length:
            return {}
        training = self.world_model.training
        self.world_model.eval()
        try:
            with fork_rng():
                torch.manual_seed(0)  # the same draws at every comparison
                places = torch.linspace(0, len(episode) - length, self.starts).long().unique().tolist()
                if INITIAL in self.world_model.context_keys:
                    episode = with_initial(episode)
                segments = torch.stack([episode[place : place + length] for place in places])
                assert isinstance(segments, TensorDict)
                return self._rollouts(segments) | self._plans(segments)
        finally:
            self.world_model.train(training)

    def _rollouts(self, segments: TensorDict) -> Metrics:
        """Compare rollouts under the real actions of segments [S, C + H]."""
        model, context = self.world_model, self.world_model.context_length
        actions = segments["action"][:, context - 1 : -1]
        imagined = model.predict(segments[:, :context].to(model.device), actions.to(model.device)).cpu()
        metrics: Metrics = {}
        if model.predicts_reward:
            metrics |= self._rewards(imagined["reward"], segments["reward"][:, context - 1 : -1])
        if "pixels" in model.observations:
            last, real = segments["pixels"][:, context - 1], segments["pixels"][:, context:]
            metrics["psnr_moving"] = moving_psnr(imagined["pixels"], real, last)
            metrics["psnr_moving_copy"] = moving_psnr(last[:, None].expand_as(real), real, last)
        return {name: value for name, value in metrics.items() if torch.isfinite(value)}

    def _rewards(self, predicted: Tensor, real: Tensor) -> Metrics:
        """Compare the rewards [S, H, 1] of rollouts, and their discounted returns."""
        discounts = self.gamma ** torch.arange(real.shape[1])[:, None]
        returns, true_returns = (predicted * discounts).sum(1), (real * discounts).sum(1)
        metrics: Metrics = {
            "reward_correlation": correlation(predicted, real),
            "return_correlation": correlation(returns, true_returns),
            "return": returns.mean(),
            "true_return": true_returns.mean(),
        }
        for name in LEVELS:
            chosen = at_level(real, name)
            if chosen.any():
                metrics |= {
                    f"reward_{name}": predicted[chosen].mean(),
                    f"true_reward_{name}": real[chosen].mean(),
                    f"reward_correlation_{name}": correlation(predicted[chosen], real[chosen]),
                }
        return metrics

    def _plans(self, segments: TensorDict) -> Metrics:
        """Rank random plans from the contexts of segments [S, C + H]."""
        if self.simulator is None or not self.world_model.predicts_reward:
            return {}
        context = segments[:, : self.world_model.context_length]
        actions = torch.rand(len(segments), self.plans, self.horizon, segments["action"].shape[-1]) * 2 - 1
        models = (self.world_model, self.simulator)
        predicted, real = (plan_returns(model, context, actions, self.gamma).squeeze(-1) for model in models)
        found = within_start_rank_correlation(predicted, real)
        return {"plan_rank_correlation": found} if torch.isfinite(found) else {}
