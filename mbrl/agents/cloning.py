"""How demonstrations are imitated, and what keeps the cloned skill when the policy goes on to learn by itself."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mbrl.errors import UserError
from policies.base import Policy, ValuePolicy
from policies.ranges import Count, PositiveCount, Weight


@dataclass(frozen=True)
class Cloning:
    """Behaviour cloning before the first env step, and no imitation after that.

    A policy that was cloned acts from the first env step: no step is random.

    Args:
        updates: gradient steps on demonstrations alone before the first env step; 0 disables imitation.

    Raises:
        UserError: a setting is too low.
    """

    updates: Count = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            least, value = int(field.name == "env_steps"), getattr(self, field.name)
            if not value >= least:
                raise UserError(f"agent.cloning.{field.name} is {value}: it must be {least} or more")

    def prepare(self, policy: Policy) -> None:
        """Give a new policy what this needs, before its weights are loaded or trained.

        Raises:
            UserError: the policy cannot have it.
        """

    def weight_at(self, env_steps: int) -> float:
        """Weight of the gradient step of imitation that follows each update, after this number of env steps."""
        return 0.0

    def calibrations(self) -> int:
        """Gradient steps of the critics alone before the first update."""
        return 0


@dataclass(frozen=True)
class Fading(Cloning):
    """Cloning, then a gradient step of imitation after each update, whose weight falls to 0.

    Args:
        updates: as in `Cloning`.
        weight: weight of that step at the first env step.
        env_steps: env steps over which the weight falls linearly to 0.
    """

    weight: Weight = 0.0
    env_steps: PositiveCount = 1

    def weight_at(self, env_steps: int) -> float:
        return self.weight * max(0.0, 1.0 - env_steps / self.env_steps) if self.updates else 0.0


@dataclass(frozen=True)
class Proposing(Cloning):
    """Cloning, then a frozen clone that proposes actions beside the actor's: the critics choose (see `ValuePolicy`).

    Args:
        updates: as in `Cloning`.
        critic_updates: gradient steps of the critics alone, on the episodes that the clone collected until
            `agent.learning_starts` and on `replay.demo_share` of demonstrations, before the actor's first update.
    """

    critic_updates: Count = 0

    def prepare(self, policy: Policy) -> None:
        if not self.updates:
            return
        if not isinstance(policy, ValuePolicy):
            raise UserError(
                f"{type(policy).__name__} has no critics of actions to choose between its own and a clone's: set "
                "cloning@agent.cloning=fading, or agent.cloning.updates=0"
            )
        policy.keep_clone()

    def calibrations(self) -> int:
        return self.critic_updates if self.updates else 0
