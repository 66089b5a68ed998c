"""Refuse what would learn or plan as if episodes went on for ever, in an environment that terminates them."""

from __future__ import annotations

from mbrl.errors import UserError
from policies.base import Policy
from worldmodel.base import WorldModel


def require_terminations(policy: Policy, world_model: WorldModel | None) -> None:
    """Check that neither a policy nor a world model ignores terminations.

    Raises:
        UserError: one does: it would give states the value of an episode without an end.
    """
    remedy = "if no episode terminates, set env.terminates=false"
    if policy.plans_beyond_ends:
        raise UserError(
            "env.terminates=true, but this agent plans as if no episode terminated: use agent=sac, mbpo, drqv2, "
            f"mbpo_ivideogpt or dreamerv3; {remedy}"
        )
    if world_model is not None and not world_model.predicts_end:
        raise UserError(
            f"env.terminates=true, but {type(world_model).__name__} predicts no terminations (the ensemble does, and "
            f"iVideoGPT with an agent.world_model.reward_network); {remedy}"
        )
