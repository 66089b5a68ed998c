"""When demonstrations are imitated."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl.errors import UserError


@dataclass(frozen=True)
class Cloning:
    """Imitate first; then, while the critic learns, keep what was imitated alive less and less.

    An agent that clones has its policy act from the first env step on: no step is random.

    Args:
        updates: gradient steps on demonstrations alone, before the first env step; 0 clones nothing.
        weight: of imitation in the actor's loss at the first env step (see `policies.bc.imitation`); or of the step of
            imitation that follows each update of a policy which learns from rollouts, where nothing is demonstrated.
        env_steps: the weight falls linearly to 0 over that many.
    """

    updates: int = 0
    weight: float = 0.0
    env_steps: int = 1

    def __post_init__(self) -> None:
        if self.updates < 0 or self.weight < 0 or self.env_steps < 1:
            raise UserError(
                f"agent.cloning: updates ({self.updates}) and weight ({self.weight}) must be 0 or more, "
                f"env_steps ({self.env_steps}) 1 or more"
            )

    def weight_at(self, env_steps: int) -> float:
        """The weight of imitation after so many env steps; 0 where nothing was cloned."""
        return self.weight * max(0.0, 1.0 - env_steps / self.env_steps) if self.updates else 0.0
