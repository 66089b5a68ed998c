"""Plans in a world model: their scores, and the prior's proposals.

B decisions in parallel, N candidates, M proposals, C context frames, K frame stack, H horizon, A action, R resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from worldmodel.base import WorldModel


class PlanImagination(torch.nn.Module):
    """Scores candidate plans in the world model, from one encoded context."""

    def __init__(
        self,
        world_model: WorldModel,
        prior: TensorDictModuleBase | None,
        gamma: float,
        samples: int,
        goal: Tensor | None,
    ) -> None:
        super().__init__()
        self.world_model, self.prior, self.gamma, self.samples = world_model, prior, gamma, samples
        self.register_buffer("goal", goal, persistent=False)
        self.goal: Tensor | None  # uint8 [3, R, R]

    def start(self, context: TensorDict) -> Any:
        """Encode real steps [B, C] once."""
        if self.world_model.goal_conditioned:
            assert self.goal is not None
            context["goal"] = self.goal.expand_as(context["pixels"])
        return self.world_model.start(context)

    def scorer(self, state: Any) -> Callable[[Tensor], Tensor]:
        """A function that scores actions [B, N, H, A] from this state: [B, N], higher is better."""

        def imagine(actions: Tensor) -> Tensor:
            batch, candidates, horizon, _ = actions.shape
            forked = self.world_model.fork(state, candidates * self.samples)
            plans = actions.flatten(0, 1).repeat_interleave(self.samples, 0)
            outcome = self.world_model.outcome(forked, plans, frames=int(self.goal is not None))
            if self.goal is not None:
                assert outcome.pixels is not None
                score = -((outcome.pixels[:, -1].float() - self.goal) / 255).square().mean((1, 2, 3))
            else:
                assert outcome.reward is not None
                score = (outcome.reward * self.gamma ** torch.arange(horizon, device=actions.device)).sum(1)
            return score.view(batch, candidates, self.samples).mean(2)

        return imagine

    def propose(self, state: Any, observed: TensorDict, proposals: int, horizon: int) -> Tensor:
        """Candidates of the prior: its actions [B, M, H, A], exploring, along imagined rollouts.

        Args:
            state: the encoded context, B rows.
            observed: `frames` [B, 3K, R, R], and observations that do not change.
            proposals: M.
            horizon: H.
        """
        assert self.prior is not None
        state, observed = self.world_model.fork(state, proposals), observed.repeat_interleave(proposals, 0)
        actions: list[Tensor] = []
        with set_exploration_type(ExplorationType.RANDOM):
            for step in range(horizon):
                if step > 0:
                    state, prediction = self.world_model.step(state, actions[-1])
                    observed["frames"] = torch.cat([observed["frames"][:, 3:], prediction["pixels"]], 1)
                actions.append(self.prior(observed.copy())["action"])
        return torch.stack(actions, 1).unflatten(0, (-1, proposals))
