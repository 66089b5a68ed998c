"""Use model uncertainty to truncate, down-weight or reward imagined steps.

B rollouts, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mbrl.errors import UserError
from policies.ranges import Factor, Weight
from worldmodel.base import WorldModel

MIN_WEIGHT = 1e-8  # so that a batch can be drawn even where every transition is very uncertain
PerEstimate = Mapping[str, Weight | None] | None  # a number for each estimate; None: it is not used
Factors = Mapping[str, Factor | None] | None  # the same with numbers that may be negative


@dataclass(frozen=True)
class UncertaintyRules:
    """Rules that truncate, down-weight or reward imagined steps by uncertainty estimates.

    Truncating rollouts and drawing uncertain transitions less often follow M2AC and Infoprop, which do so for MBPO.
    The bonus is an upper confidence bound of the reward; H-UCRL (Curi et al. 2020, arXiv 2006.08684) is optimistic in
    the dynamics instead.

    Attributes:
        cut_above: estimate -> threshold. A step above it, and all steps after it, are left out.
        weigh_by: estimate -> scale. A transition is drawn with weight exp(-s / scale), where s is the sum of the
            estimate up to the last step whose reward the transition sums.
        optimism: estimate -> factor. Factor times estimate is added to the reward of a step.
    """

    cut_above: Mapping[str, float]
    weigh_by: Mapping[str, float]
    optimism: Mapping[str, float]

    @classmethod
    def of(cls, cut_above: PerEstimate, weigh_by: PerEstimate, optimism: Factors = None) -> UncertaintyRules:
        """Build from settings; estimates with the value None are not used."""
        settings_of_rules = ((settings or {}).items() for settings in (cut_above, weigh_by, optimism))
        return cls(*({name: value for name, value in items if value is not None} for items in settings_of_rules))

    @property
    def estimates(self) -> list[str]:
        """Names of the estimates that are used."""
        return [*self.cut_above, *self.weigh_by, *self.optimism]

    def require(self, world_model: WorldModel) -> None:
        """Have the world model return every estimate that is used, and check that scales are positive.

        Raises:
            UserError: the model has no such estimate, or a scale is not positive; the message names it.
        """
        if self.estimates:
            world_model.enable_all_uncertainties()
        for name in self.estimates:
            if name not in world_model.uncertainty_keys:
                known = ", ".join(world_model.uncertainty_keys) or "none"
                used = next(key for key in ("cut_above", "weigh_by", "optimism") if name in getattr(self, key))
                raise UserError(
                    f"imagination needs the uncertainty estimate {name!r}, but this world model has {known}: set "
                    f"agent.imagination.{used}.{name}=null"
                )
        for name, scale in self.weigh_by.items():
            if not scale > 0:
                raise UserError(f"agent.imagination.weigh_by.{name} must be above 0, not {scale}: null does not use it")

    def bonus(self, estimates: Mapping[str, Tensor]) -> Tensor:
        """The bonus added to rewards, float32 [B, H]; estimates are [B, H]."""
        return torch.stack([factor * estimates[name] for name, factor in self.optimism.items()]).sum(0)

    def steps(self, estimates: Mapping[str, Tensor]) -> Tensor:
        """Steps of each rollout before the first that is cut, int64 [B]."""
        too_uncertain = [estimates[name] > limit for name, limit in self.cut_above.items()]
        certain = ~torch.stack(too_uncertain).any(0)
        return certain.cumprod(1).sum(1)

    def weights(self, estimates: Mapping[str, Tensor], n_step: int = 1, steps: Tensor | None = None) -> Tensor:
        """Weights in (0, 1] of the transitions of up to `n_step` steps, float32 [B, H].

        Args:
            estimates: [B, H] each.
            n_step: steps whose rewards a transition sums, at most.
            steps: int64 [B], steps of each rollout before it was cut or terminated; None for all H.
        """
        total = torch.stack([_sums_so_far(estimates[name]) / scale for name, scale in self.weigh_by.items()]).sum(0)
        horizon = total.shape[1]
        last = (torch.arange(horizon, device=total.device) + n_step - 1).clamp(max=horizon - 1).expand_as(total)
        if steps is not None:  # the rewards of a transition are not summed beyond the end of its rollout
            last = last.minimum((steps - 1).clamp(min=0)[:, None])
        return total.gather(1, last).neg().exp().clamp(min=MIN_WEIGHT)


def _sums_so_far(values: Tensor) -> Tensor:
    """Cumulative sum of values [B, H] over steps, deterministic on every device (CUDA's cumsum is not)."""
    return torch.stack(list(accumulate(values.double().unbind(1))), 1).to(values.dtype)
