"""Schedule of behaviour cloning, and options that keep the cloned behaviour during reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl.errors import UserError
from policies.base import Policy
from policies.ranges import Count, PositiveCount, Weight
from policies.value_base import ValuePolicy


@dataclass(frozen=True)
class Cloning:
    """Behaviour cloning before the first env step, then an imitation term whose weight falls to 0.

    A policy that was cloned acts from the first env step: no step is random.

    Args:
        updates: gradient steps on demonstrations alone before the first env step; 0 disables imitation.
        weight: weight of imitation in the actor's loss at the first env step (see `policies.bc.imitation`). For a
            policy that learns from rollouts: weight of the gradient step of imitation that follows each update.
        env_steps: env steps over which the weight falls linearly to 0.
        critic_updates: gradient steps of the critics alone before the first update, on what the clone collected until
            `learning_starts` and on demonstrations.
        anchor: whether the imitation term also imitates a frozen clone, on transitions that are not demonstrations,
            see `policies.value_base.ValuePolicy`.
    """

    updates: Count = 0
    weight: Weight = 0.0
    env_steps: PositiveCount = 1
    critic_updates: Count = 0
    anchor: bool = False

    def prepare(self, policy: Policy) -> None:
        """Give a new policy a frozen clone if it is asked for, before weights are loaded or trained.

        Raises:
            UserError: the policy has no Q-functions, which this needs.
        """
        if not self.updates or not (self.critic_updates or self.anchor):
            return
        if not isinstance(policy, ValuePolicy):
            raise UserError(
                f"{type(policy).__name__} has no Q-functions: set agent.cloning.critic_updates=0 "
                "agent.cloning.anchor=false"
            )
        if self.anchor:
            policy.keep_clone()

    def calibrations(self) -> int:
        """Gradient steps of the critics alone before the first update; 0 where nothing was cloned."""
        return self.critic_updates if self.updates else 0

    def weight_at(self, env_steps: int) -> float:
        """The weight of imitation after this number of env steps; 0 where nothing was cloned."""
        return self.weight * max(0.0, 1.0 - env_steps / self.env_steps) if self.updates else 0.0
