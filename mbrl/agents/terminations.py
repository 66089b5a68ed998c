"""Refuse what would learn as if episodes went on for ever, in an environment that terminates them."""

from __future__ import annotations

from mbrl.errors import UserError
from worldmodel.base import WorldModel


def require_terminations(world_model: WorldModel | None) -> None:
    """Check that a world model does not ignore terminations.

    Raises:
        UserError: it does: states would get the value of an episode without an end.
    """
    if world_model is not None and not world_model.predicts_termination:
        raise UserError(
            f"env.terminates=true, but {type(world_model).__name__} predicts no terminations (the ensemble does, and "
            f"iVideoGPT with an agent.world_model.reward_network); if no episode terminates, set env.terminates=false"
        )
