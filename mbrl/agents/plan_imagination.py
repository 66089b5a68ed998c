"""Plans in a world model: their scores, and the prior's proposals.

B decisions in parallel, N candidates, M proposals, C context frames, K frame stack, H horizon, A action, R resolution,
L imagined rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from policies.base import Policy
from worldmodel.base import Outcome, WorldModel


class PlanImagination(torch.nn.Module):
    """Scores candidate plans in the world model, from one encoded context.

    Args:
        world_model: predicts the outcome of plans.
        prior: acts in the proposals; None makes none.
        critics: the policy whose values of the last imagined state are part of a score; None: rewards alone.
        gamma: discount of one agent step.
        samples: imagined rollouts of each candidate, whose mean is its score.
        goal: uint8 [3, R, R], what the last frame is compared with instead; None: plans are scored by rewards.
    """

    def __init__(
        self,
        world_model: WorldModel,
        prior: TensorDictModuleBase | None,
        critics: Policy | None,
        gamma: float,
        samples: int,
        goal: Tensor | None,
    ) -> None:
        super().__init__()
        self.world_model, self.prior, self.critics = world_model, prior, critics
        self.gamma, self.samples = gamma, samples
        self.register_buffer("goal", goal, persistent=False)
        self.goal: Tensor | None  # uint8 [3, R, R]

    def start(self, context: TensorDict) -> Any:
        """Encode real steps [B, C] once."""
        if self.world_model.goal_conditioned:
            assert self.goal is not None
            context["goal"] = self.goal.expand_as(context["pixels"])
        return self.world_model.start(context)

    def scorer(self, state: Any, observed: TensorDict) -> Callable[[Tensor], Tensor]:
        """A function that scores actions [B, N, H, A] from this state: [B, N], higher is better.

        Args:
            state: the encoded context, B rows.
            observed: `frames` [B, 3K, R, R], and observations that do not change.
        """

        def imagine(actions: Tensor) -> Tensor:
            batch, candidates, horizon, _ = actions.shape
            copies = candidates * self.samples
            plans = actions.flatten(0, 1).repeat_interleave(self.samples, 0)
            stack, has_goal = observed["frames"].shape[1] // 3, self.goal is not None
            frames = int(has_goal) if self.critics is None else min(stack, horizon)
            outcome = self.world_model.outcome(self.world_model.fork(state, copies), plans, frames)
            if self.goal is not None:
                assert outcome.pixels is not None
                score = -((outcome.pixels[:, -1].float() - self.goal) / 255).square().mean((1, 2, 3))
            else:
                assert outcome.reward is not None
                score = (outcome.reward * self.gamma ** torch.arange(horizon, device=actions.device)).sum(1)
                if self.critics is not None:
                    last = self.value(outcome, observed.repeat_interleave(copies, 0), self.critics)
                    score = score + self.gamma**horizon * last
            return score.view(batch, candidates, self.samples).mean(2)

        return imagine

    def value(self, outcome: Outcome, observed: TensorDict, critics: Policy) -> Tensor:
        """Critic value [L] of the last imagined states, at the deterministic action of the critics' policy.

        It is the mean over the critics, as in TD-MPC2 (Hansen et al. 2024, arXiv 2310.16828): TD-MPC's minimum is low
        where critics differ, which is where a plan leads to something new. It is 0 after a termination.

        Args:
            outcome: of L imagined rollouts, with the last frames.
            observed: [L], as for `scorer`.
            critics: the policy.
        """
        assert outcome.pixels is not None
        stack = observed["frames"].shape[1]
        frames = torch.cat([observed["frames"], outcome.pixels.flatten(1, 2)], 1)[:, -stack:]
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            last = critics.acting(observed.copy().set("frames", frames))
        found = critics.values(last, last["action"])
        assert found is not None
        return found[:, 0] if outcome.terminated is None else found[:, 0].masked_fill(outcome.terminated, 0.0)

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
