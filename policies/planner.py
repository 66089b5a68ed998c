"""Sampling-based planners: CEM and MPPI on scores of imagined action sequences.

B decisions in parallel, N candidates, E elites, M proposals, H horizon, A action.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.base import Imagine, Plan, Planner
from policies.ranges import Candidates, Horizon, Number, PositiveStd, ShareBelowOne, Weight


@dataclass(frozen=True, kw_only=True)
class SamplingPlanner(Planner):
    """Draws candidates from a Gaussian over action sequences, scores them, and refits the Gaussian to the best.

    Actions lie in [-1, 1]. Random numbers come from torch's global generator.

    Attributes:
        horizon: H, actions of a plan, 1 or more.
        candidates: N, action sequences of one iteration, proposals included.
        elites: E, number of best candidates that the Gaussian is refitted to, 1 to N.
        iterations: number of draws and refits of one decision, 1 or more.
        std: standard deviation of the first draw, and the maximum of later draws.
        min_std: minimum standard deviation, above 0, so that later iterations still search.
        momentum: share of the old mean and std that a refit keeps, in [0, 1).
        warm_start: start from the rest of the previous plan instead of zeros.
        draws: take the action of one of the last elites, sampled by weight, instead of their mean, also without
            exploration, as TD-MPC2's published code does.

    Raises:
        ValueError: a number is out of range.
    """

    horizon: Horizon
    candidates: Candidates
    elites: Candidates
    iterations: Number
    std: PositiveStd = 1.0
    min_std: PositiveStd = 0.05
    momentum: ShareBelowOne = 0.0
    warm_start: bool = True
    draws: bool = False

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.iterations < 1:
            raise ValueError(f"planner: horizon ({self.horizon}) and iterations ({self.iterations}) must be 1 or more")
        if not 1 <= self.elites <= self.candidates:
            raise ValueError(f"planner: elites ({self.elites}) must be 1 to candidates ({self.candidates})")
        if not 0 < self.min_std <= self.std:
            raise ValueError(f"planner: min_std ({self.min_std}) must be above 0 and at most std ({self.std})")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"planner: momentum is {self.momentum}: it must be 0 or more and below 1")

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """Weights of the elites in the refit: scores [B, E] -> weights [B, E] that sum to 1."""

    def __call__(self, imagine: Imagine, previous: Tensor, proposals: Tensor | None = None) -> Plan:
        """Plan as in `Planner`; `imagine` is called once per iteration.

        Raises:
            FloatingPointError: a score is NaN or infinite.
        """
        mean = previous if self.warm_start else torch.zeros_like(previous)
        std = torch.full_like(mean, self.std)
        finite = torch.ones((), dtype=torch.bool, device=mean.device)
        for _ in range(self.iterations):
            candidates = self._draw(mean, std, proposals)
            scores = imagine(candidates)
            finite = finite & torch.isfinite(scores).all()
            best, index = scores.topk(self.elites, 1)
            elites = candidates.gather(1, index[..., None, None].expand(-1, -1, *mean.shape[1:]))  # [B, E, H, A]
            weights = self.weights(best)
            share = weights[..., None, None]
            new_mean = (share * elites).sum(1)
            new_std = (share * (elites - new_mean[:, None]).square()).sum(1).sqrt()
            mean = torch.lerp(new_mean, mean, self.momentum)
            std = torch.lerp(new_std, std, self.momentum).clamp(self.min_std, self.std)
        if not bool(finite):  # once for each plan, because it waits for the GPU
            raise FloatingPointError("an imagined score is not finite: the world model has diverged")
        return Plan(mean, std, _drawn(elites[:, :, 0], weights) if self.draws else mean[:, 0])

    def _draw(self, mean: Tensor, std: Tensor, proposals: Tensor | None) -> Tensor:
        drawn = self.candidates - (0 if proposals is None else proposals.shape[1])
        noise = torch.randn(len(mean), drawn, *mean.shape[1:], device=mean.device)
        candidates = (mean[:, None] + std[:, None] * noise).clamp(-1.0, 1.0)
        return candidates if proposals is None else torch.cat([candidates, proposals], 1)


class CEM(SamplingPlanner):
    """Cross-entropy method: all elites have the same weight.

    Botev et al. 2013; for planning as in PETS (Chua et al. 2018, arXiv 1805.12114).
    """

    def weights(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores, 1 / scores.shape[1])


@dataclass(frozen=True, kw_only=True)
class MPPI(SamplingPlanner):
    """Model predictive path integral control: elites are weighted by exp(temperature * (score - best)).

    As in TD-MPC2 (Hansen et al. 2024, arXiv 2310.16828).

    Attributes:
        temperature: 0 or more, in units of 1 / score. 0 is CEM; high values approach the single best candidate. Its
            scale depends on the scores: sums of rewards differ by tens between plans, pixel errors by thousandths.
    """

    temperature: Weight = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < 0:
            raise ValueError(f"planner: temperature is {self.temperature}: it must be 0 or more")

    def weights(self, scores: Tensor) -> Tensor:
        return (self.temperature * scores).softmax(1)


def _drawn(elites: Tensor, weights: Tensor) -> Tensor:
    """Sample one of elites [B, E, A] with probabilities `weights` [B, E]; `multinomial` would wait for the GPU."""
    index = (weights / torch.empty_like(weights).exponential_()).argmax(1)
    return elites.take_along_dim(index[:, None, None], 1)[:, 0]
