"""The types of the settings under `agent`, which are the arguments of several constructors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mbrl.agents.agent import Agent
from mbrl.agents.imagination import Imagination
from mbrl.agents.model_error import ModelError
from mbrl.agents.planning import PlanningPolicy
from mbrl.agents.schedule import Schedule
from mbrl.errors import UserError
from mbrl.settings.annotations import types_of
from mbrl.settings.values import Arguments, SettingError, describe
from mbrl.targets import check, typed
from policies.base import Planner, Policy
from policies.ranges import Horizon, PositiveShare
from worldmodel.base import WorldModel

# Arguments that a run fills in itself, and that are no settings.
MEASURED = ("world_model", "simulator", "gamma", "episode_env_steps")
IMAGINED = ("world_model", "policy", "replay", "action_spec", "resolution", "episode_steps")
PLANNED = ("world_model", "planner", "prior", "observation_spec", "action_spec")
# What are no arguments of the agent's class: its parts, its schedule, and settings that others refer to.
TYPES: dict[str, Any] = {
    "policy": Policy,
    "world_model": WorldModel | None,
    "planner": Planner | None,
    "imagination": Annotated[Mapping[str, Any], Arguments(Imagination, given=IMAGINED)] | None,
    "planning": Annotated[Mapping[str, Any], Arguments(PlanningPolicy, given=PLANNED)] | None,
    "model_error": Annotated[Mapping[str, Any], Arguments(ModelError, given=MEASURED)] | None,
    "name": str,
    "size": Literal["1M", "5M"],  # of TD-MPC2
    "pixels": bool,
    "snapshots": bool,
    "n_step": Horizon,
    "gamma": PositiveShare,
}


def check_agent(settings: Any, place: str) -> dict[str, Any]:
    """The settings of an agent, resolved and checked as in `mbrl.targets.check`.

    Args:
        settings: plain settings by name, resolved.
        place: their key, for error messages.
    """
    if not isinstance(settings, Mapping):
        raise SettingError(place, settings, "an agent: choose one with agent=NAME")
    types = {**types_of(Schedule), **TYPES}
    if "policy" not in settings:
        raise SettingError(f"{place}.policy", None, "settings whose _target_ makes a Policy")
    found = {key: typed(value, types[key], f"{place}.{key}") for key, value in settings.items() if key in types}
    for key in ("batch_size", "updates_per_step", "learning_starts", "name", "pixels", "n_step"):
        if key not in found:
            raise UserError(f"{place}.{key} is missing: it must be {describe(types[key])}")
    for part, settings_of_it in (("planner", "planning"), ("world_model", "imagination")):
        used = part == "planner" or found.get("real_ratio", 1) < 1
        if used and found.get(part) is not None and found.get(settings_of_it) is None:
            raise SettingError(f"{place}.{settings_of_it}", None, f"settings by name, because there is a {part}")
    own = check({key: value for key, value in settings.items() if key not in types}, Agent, place)
    return {key: own[key] if key in own else found[key] for key in settings}
