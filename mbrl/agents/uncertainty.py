"""What follows from what the world model says of how unsure it is: what is believed, and what is worth a look.

B rollouts, H steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl.errors import UserError
from worldmodel.base import WorldModel

LEAST = 1e-8  # of a weight, so that a batch can be drawn even where the model is unsure of everything
Settings = Mapping[str, float | None] | None


@dataclass(frozen=True)
class Trust:
    """Cuts rollouts short, or draws their transitions less often (after M2AC and Infoprop, which do so for MBPO); or
    rewards what is unknown, so that the policy goes and sees (optimism, as in H-UCRL, Curi et al. 2020, arXiv
    2006.08684, here as an upper confidence bound of the reward).

    Attributes:
        cut_above: measure -> the value above which a step, and all after it, is left out.
        weigh_by: measure -> scale: a transition counts by exp(-s / scale), s the sum of the measure up to the last step
            whose reward it sums.
        optimism: measure -> weight: so many times the measure is added to the reward of a step.
    """

    cut_above: Mapping[str, float]
    weigh_by: Mapping[str, float]
    optimism: Mapping[str, float]

    @classmethod
    def of(cls, cut_above: Settings, weigh_by: Settings, optimism: Settings = None) -> Trust:
        """From settings in which None stands for a measure that is not asked for."""
        given = ((settings or {}).items() for settings in (cut_above, weigh_by, optimism))
        return cls(*({name: value for name, value in items if value is not None} for items in given))

    @property
    def measures(self) -> list[str]:
        """What must be known of each step."""
        return [*self.cut_above, *self.weigh_by, *self.optimism]

    def check(self, world_model: WorldModel) -> None:
        """ValueError where the world model does not say what is asked for, or a scale is not positive."""
        for name in self.measures:
            if name not in world_model.measures:
                known = ", ".join(world_model.measures) or "none: set agent.world_model.uncertainty=true"
                raise UserError(f"imagination needs the measure {name!r}, but this world model has {known}")
        for name, scale in self.weigh_by.items():
            if not scale > 0:
                raise UserError(f"imagination.weigh_by.{name} must be above 0, not {scale}")

    def bonus(self, measured: Mapping[str, Tensor]) -> Tensor:
        """What is added to the rewards, float32 [B, H]."""
        return torch.stack([weight * measured[name] for name, weight in self.optimism.items()]).sum(0)

    def steps(self, measured: Mapping[str, Tensor]) -> Tensor:
        """Steps of each rollout that are believed, int64 [B]; measures are [B, H]."""
        over = [measured[name] > limit for name, limit in self.cut_above.items()]
        believed = ~torch.stack(over).any(0)
        return believed.cumprod(1).sum(1)

    def weights(self, measured: Mapping[str, Tensor], n_step: int = 1) -> Tensor:
        """Weights in (0, 1] of the transitions of up to `n_step` steps, float32 [B, H]."""
        doubt = torch.stack([measured[name].cumsum(1) / scale for name, scale in self.weigh_by.items()]).sum(0)
        horizon = doubt.shape[1]
        last = (torch.arange(horizon, device=doubt.device) + n_step - 1).clamp(max=horizon - 1).expand_as(doubt)
        if self.cut_above:  # no sum reaches beyond a cut
            last = last.minimum((self.steps(measured) - 1).clamp(min=0)[:, None])
        return doubt.gather(1, last).neg().exp().clamp(min=LEAST)
