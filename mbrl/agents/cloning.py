"""When demonstrations are imitated."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl.errors import UserError
from policies.ranges import Count, PositiveCount, Weight


@dataclass(frozen=True)
class Cloning:
    """Behaviour cloning before the first env step, then an imitation term whose weight falls to 0.

    A policy that was cloned acts from the first env step: no step is random.

    Args:
        updates: gradient steps on demonstrations alone before the first env step; 0 disables imitation.
        weight: weight of imitation in the actor's loss at the first env step (see `policies.bc.imitation`). For a
            policy that learns from rollouts: weight of the gradient step of imitation that follows each update.
        env_steps: env steps over which the weight falls linearly to 0.
        critic_updates: gradient steps of the critics alone on the clone's own episodes, before the actor's first update.
        proposals: whether the frozen clone goes on proposing actions beside the actor's, for acting and for targets;
            the critics choose.
    """

    updates: Count = 0
    weight: Weight = 0.0
    env_steps: PositiveCount = 1
    critic_updates: Count = 0
    proposals: bool = False

    def __post_init__(self) -> None:
        if self.updates < 0 or self.weight < 0 or self.env_steps < 1:
            raise UserError(
                f"agent.cloning: updates ({self.updates}) and weight ({self.weight}) must be 0 or more, "
                f"env_steps ({self.env_steps}) 1 or more"
            )

    def weight_at(self, env_steps: int) -> float:
        """The weight of imitation after this number of env steps; 0 where nothing was cloned."""
        return self.weight * max(0.0, 1.0 - env_steps / self.env_steps) if self.updates else 0.0
